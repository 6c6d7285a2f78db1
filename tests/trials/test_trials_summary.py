"""Summaries: small, and what is read from them is what the run wrote, but for rounding."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from bayesws.io.tables import as_text
from bayesws.training.result import SharingRow
from bayesws.trials.comparison import Comparison
from bayesws.trials.ranking import LayerRanking, RankedNetwork, Ranking
from bayesws.trials.records import Trial
from bayesws.trials.scores import Scores
from bayesws.trials.study_table import rows, study_groups_table, study_table
from bayesws.trials.summary import cells_of, load_summary, records_in, save_summary, summary_of, trials_in

SCRIPT = Path(__file__).parents[2] / "experiments" / "summarise.py"


def sharing(seed):
    return [
        SharingRow(
            "lift", 0.9 + seed / 70, {"shared": 10 / 3, "free": seed / 7}, {"shared": 9, "free": 36}, {"a": 1.0}
        ),
        SharingRow("head", math.nan, {"weight": 2.0}, {"weight": 20}, {"weight": 0.0}),
    ]


def trial(objective, seed):
    return Trial(
        *("turned", seed, "both", objective, 0.9 + seed / 300, 1 / (3 + seed), 0.1, -100 / 3 - seed, sharing(seed)),
        weight_decay=None if objective == "evidence" else 1e-4,
        seconds=1.5,
        training_seconds=0.5,
        notes=["it still moved"] * seed,
        elsewhere={"upright": Scores(0.5, 1 / 7, 0.1, 0.2)},
        data=f"{seed:064x}"[::-1],
        meaning=1,
    )


@pytest.fixture
def comparison():
    trials = [trial(objective, seed) for objective in ("evidence", "task") for seed in range(3)]
    words = ["bayesws", "compare", "--seeds", "3", "--out", "somewhere/else", "--json"]
    return Comparison(trials, {"epochs": 4, "versions": {"bayesws": "0"}, "command": words})


def study_record(method, seed, groups, learned=9):
    settings = {"task": "turned", "train_size": 60, "method": method, "model": "WSCNN", "seed": seed}
    found = {"name": "flips" if groups else None, "reason": "", "closure_error": 1 / 3, "entropy": 0.0}
    record = {"task": "turned", "seed": seed, "pathways": "", "objective": "evidence", "accuracy": 0.8 + seed / 30}
    record |= {"nll": 0.3, "train_nll": 0.2, "log_evidence": -60.0 - seed, "seconds": 3.0, "training_seconds": 3.0}
    record |= {"sharing": [vars(row) for row in sharing(seed)], "notes": [], "start": [], "history": [{"epoch": 0}]}
    return record | {"settings": settings, "parameters": 99, "stack_parameters": learned, "groups": {"lift": found}}


@pytest.fixture
def study():
    learned = [study_record("soft", seed, groups=seed) for seed in (0, 1)]
    return {"command": ["bayesws", "study", "a.json"], "trials": [*learned, study_record("fixed", 0, True, learned=0)]}


@pytest.fixture
def ranking():
    both = [
        RankedNetwork(n, e, [e], 0, 12, sharing(0), {"lift": n}, 1.0, [], data="1f" * 32, meaning=1)
        for n, e in (("a", -10 / 3), ("b", -20.0))
    ]
    return LayerRanking(("a",), [{"a": -10 / 3, "b": -20.0}], Ranking(both, {"bound": "exact", "command": ["bayesws"]}))


def kept(record, folder):
    """Summarised, written and read."""
    save_summary(summary_of(json.loads(record) if isinstance(record, str) else record), folder / "summary.json")
    return load_summary(folder / "summary.json")


def test_records_come_back_from_their_cells_rounded():
    records = [
        {"net": net, "n": n, "nll": n / 7, "gamma": {"free": n / 3, "shared": 1.0}, "drawn": [n / 9, 2], "why": None}
        for net in "ab"
        for n in (30, 100, 300)
    ]
    cells = cells_of(records, ("net",), along="n", digits=3)
    assert [cell["net"] for cell in cells] == ["a", "b"]
    assert cells[0]["gamma"] == {"free": [10.0, 33.3, 100.0], "shared": 1.0} and cells[0]["why"] is None
    found = records_in(cells, along="n")
    assert len(found) == len(records)
    for a, b in zip(found, records, strict=True):
        assert a.keys() == b.keys() and a["nll"] == float(f"{b['nll']:.3g}")
        assert a["drawn"] == [float(f"{b['drawn'][0]:.3g}"), 2]


@pytest.mark.parametrize(
    "values",
    [
        ({"a": 1.0}, {"b": 1.0}),  # other fields in every seed
        ({}, {}),
        ([1], [1]),  # a list that is the same for all is not a column
        (1, True),
        (1, 1.0),
        (None, 0.5),
        ("x", "x"),
    ],
)
def test_columns_tell_apart_what_python_takes_for_equal(values):
    records = [{"net": "a", "seed": seed, "value": value} for seed, value in enumerate(values)]
    found = [record["value"] for record in records_in(json.loads(json.dumps(cells_of(records, ["net"]))))]
    assert found == list(values) and list(map(type, found)) == list(map(type, values))


def test_numbers_that_json_does_not_have_are_none():
    assert cells_of([{"seed": 0, "nll": math.nan}], [])[0]["nll"] is None


def test_tables_of_a_comparison_are_those_of_its_summary(comparison, tmp_path):
    summary = kept(comparison.as_json(), tmp_path)
    assert summary["command"] == "bayesws compare --seeds 3" and summary["versions"] == {"bayesws": "0"}
    again = Comparison.load(tmp_path / "summary.json")
    for name in ("table", "calibration_table", "difference_table", "elsewhere_table", "sharing_table"):
        assert as_text(getattr(again, name)()) == as_text(getattr(comparison, name)())
    assert [len(t.notes) for t in again.trials] == [0, 1, 1] * 2
    assert again.trials[2].notes == ["2 notes: see the run's own file"]
    assert again.settings == {"epochs": 4}
    assert [(t.data, t.meaning) for t in again.trials] == [(f"{seed}00000000000", 1) for seed in range(3)] * 2


def test_tables_of_a_study_are_those_of_its_summary(study, tmp_path):
    cells = list(rows(trials_in(kept(study, tmp_path))))
    for table in (study_table, study_groups_table):
        assert as_text(table(cells)) == as_text(table(list(rows(study["trials"]))))
    assert "history" not in (tmp_path / "summary.json").read_text()


def test_tables_of_a_ranking_are_those_of_its_summary(ranking, tmp_path):
    ranking.save(tmp_path / "ranking.json")
    summary = kept((tmp_path / "ranking.json").read_text(), tmp_path)
    assert summary["command"] == "bayesws"
    assert str(LayerRanking.load(tmp_path / "summary.json")) == str(ranking)
    assert Ranking.load(tmp_path / "summary.json").rows[0].log_evidence == -3.33333


def test_fewer_digits_make_it_smaller(comparison):
    record = json.loads(comparison.as_json())
    full, short = (summary_of(record, digits)["cells"][0] for digits in (6, 2))
    assert full["nll"] == [0.333333, 0.25, 0.2] and short["nll"] == [0.33, 0.25, 0.2]
    assert short["layers"]["lift"]["effective"]["shared"] == 3.3


def test_what_wrote_no_run_is_refused():
    with pytest.raises(ValueError, match=r"no run of bayesws: expected the record of comparison\.json"):
        summary_of({"settings": {}})


def test_a_summary_stays_small(tmp_path):
    cells = cells_of([{"seed": seed, "nll": math.sqrt(seed)} for seed in range(3000)], [])
    with pytest.raises(ValueError, match=r"expected at most 20000; round to fewer digits, or leave out fields"):
        save_summary({"cells": cells}, tmp_path / "summary.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is damaged"), ("[1]", r"\[1\] came, expected an object"), (None, "cannot be read")]
)
def test_files_that_are_no_summary(text, message, tmp_path):
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_summary(tmp_path / "summary.json")


def test_a_run_is_summarised_by_one_command(comparison, tmp_path):
    run, into = tmp_path / "run", tmp_path / "page"
    comparison.save(run / "comparison.json")
    (run / "comparison.png").write_bytes(b"drawn")
    done = subprocess.run([sys.executable, SCRIPT, run, into], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (into / "comparison.png").read_bytes() == b"drawn"
    assert len(Comparison.load(into / "summary.json").trials) == 6
    done = subprocess.run([sys.executable, SCRIPT, into, into], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "expected the --out of a finished run" in done.stderr

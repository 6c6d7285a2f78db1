"""The comparison: trials, table, files, command line."""

import json
import shutil
from dataclasses import asdict, replace

import pytest

import bayesws as bws
from bayesws.cli import main


def test_compare_pairs_objectives_over_seeds():
    data = bws.data.load("digits", task="turned", train_size=100, test_size=50)
    comparison = bws.compare(
        lambda: bws.models.WSCNN(hidden_channels=2), data.train, data.test, seeds=2, epochs=3, weight_decays=(1e-3,)
    )
    assert [(t.objective, t.seed) for t in comparison.trials] == [
        ("evidence", 0),
        ("evidence", 1),
        ("task", 0),
        ("task", 1),
    ]
    assert all(0 <= t.accuracy <= 1 and t.nll > 0 for t in comparison.trials)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    arguments = ["compare", "--seeds", "1", "--epochs", "2", "--train-size", "100", "--hidden-channels", "2"]
    arguments += ["--task", "turned", "--pathways", "all", "--jobs", "1", "--out", str(out)]
    assert main(arguments) == 0
    return out


def test_compare_command_writes_json_and_picture(run):
    assert sorted(p.name for p in run.iterdir()) == ["comparison.json", "comparison.png", "fits", "trials"]
    assert sorted(p.name for p in (run / "fits").iterdir()) == ["turned-both-evidence-0", "turned-both-task-0"]
    assert bws.FitResult.load(run / "fits" / "turned-both-evidence-0").posterior
    assert (run / "comparison.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((run / "comparison.json").read_text())
    assert record["settings"]["fit"] == {"epochs": 2}
    cells = [(t["pathways"], t["objective"]) for t in record["trials"]]
    assert cells == [("both", "evidence"), ("both", "task"), ("shared", "evidence"), ("free", "evidence")]


def test_saved_comparison_comes_back(run, tmp_path):
    comparison = bws.trials.Comparison.load(run / "comparison.json")
    comparison.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (run / "comparison.json").read_text()
    assert comparison.table().row_count == 4 and comparison.sharing_table().row_count == 6
    (tmp_path / "cut.json").write_text((run / "comparison.json").read_text()[:100])
    with pytest.raises(ValueError, match="is damaged: no JSON at line"):
        bws.trials.Comparison.load(tmp_path / "cut.json")


def test_numbers_do_not_depend_on_the_number_of_processes(run, tmp_path):
    arguments = ["compare", "--seeds", "1", "--epochs", "2", "--train-size", "100", "--hidden-channels", "2"]
    arguments += ["--task", "turned", "--jobs", "2", "--out", str(tmp_path)]
    assert main(arguments) == 0
    key = [(t.log_evidence, t.nll) for t in bws.trials.Comparison.load(tmp_path / "comparison.json").trials]
    assert key == [(t.log_evidence, t.nll) for t in bws.trials.Comparison.load(run / "comparison.json").trials][:2]


SMALL = ["compare", "--epochs", "2", "--train-size", "100", "--hidden-channels", "2", "--jobs", "1"]


def test_interrupted_comparison_goes_on_to_the_same_numbers(tmp_path, capsys):
    arguments = [*SMALL, "--task", "turned", "--task", "upright", "--seeds", "2", "--objectives", "evidence,fixed"]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    told = capsys.readouterr()
    assert "8 of 8 trials" in told.err and "tested on" in told.out and "seeds won" in told.out
    shutil.copytree(tmp_path / "whole" / "trials", tmp_path / "half" / "trials")
    left = tmp_path / "half" / "trials" / "turned-both-fixed-1.json"
    left.unlink()
    assert main([*arguments, "--out", str(tmp_path / "half")]) == 0
    again, whole = (
        bws.trials.Comparison.load(tmp_path / name / "comparison.json").trials for name in ("half", "whole")
    )
    assert left.exists() and [timeless(t) for t in again] == [timeless(t) for t in whole]
    assert main([*arguments, "--out", str(tmp_path / "half"), "--layers", "1"]) == 2
    assert "run with other settings" in capsys.readouterr().err


def timeless(trial):
    return json.dumps(asdict(replace(trial, seconds=0.0, training_seconds=0.0)))


def test_tasks_with_the_same_labels_are_tested_on_each_other(tmp_path, capsys):
    arguments = [*SMALL, "--task", "turned", "--task", "upright", "--task", "orientation", "--objectives", "evidence"]
    assert main([*arguments, "--seeds", "1", "--json", "--out", str(tmp_path)]) == 0
    trials = json.loads(capsys.readouterr().out)["trials"]
    assert [list(t["elsewhere"]) for t in trials] == [["upright"], ["turned"], []]
    fit = bws.FitResult.load(tmp_path / "fits" / "turned-both-evidence-0")
    other = bws.data.load("digits", task="upright", train_size=100, seed=0).test
    assert trials[0]["elsewhere"]["upright"]["nll"] == fit.nll(*other, kind="map")


def test_differences_are_of_paired_seeds():
    def trial(objective, seed, accuracy):
        return bws.trials.Trial("turned", seed, "both", objective, accuracy, 1.0, 0.5, -3.0, [], None, 1.0, 1.0, [])

    trials = [trial("task", s, 0.8 + 0.01 * s) for s in range(3)] + [trial("evidence", s, 0.9) for s in (2, 1)]
    found = bws.trials.Comparison(trials).differences()["turned", "both", "task"]["accuracy %"]
    assert (found.pairs, found.wins) == (2, 2) and found.mean == pytest.approx(0.9 - 0.815)
    with pytest.raises(ValueError, match="no trial by 'fixed'"):
        bws.trials.Comparison(trials).differences("fixed")

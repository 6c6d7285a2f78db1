"""The comparison: trials, table, files, command line."""

import json

import pytest
import torch

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
    arguments += ["--task", "turned", "--structures", "all", "--jobs", "1", "--out", str(out)]
    assert main(arguments) == 0
    return out


def test_compare_command_writes_json_and_picture(run):
    assert sorted(p.name for p in run.iterdir()) == ["comparison.json", "comparison.png"]
    assert (run / "comparison.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((run / "comparison.json").read_text())
    assert record["settings"]["epochs"] == 2
    cells = [(t["structure"], t["objective"]) for t in record["trials"]]
    assert cells == [("chosen", "evidence"), ("chosen", "task"), ("shared", "evidence"), ("free", "evidence")]


def test_saved_comparison_comes_back(run, tmp_path):
    comparison = bws.Comparison.load(run / "comparison.json")
    comparison.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (run / "comparison.json").read_text()
    assert comparison.table().row_count == 4 and comparison.sharing_table().row_count == 4
    (tmp_path / "cut.json").write_text((run / "comparison.json").read_text()[:100])
    with pytest.raises(ValueError, match="not a comparison"):
        bws.Comparison.load(tmp_path / "cut.json")


def test_numbers_do_not_depend_on_the_number_of_processes(run, tmp_path):
    arguments = ["compare", "--seeds", "1", "--epochs", "2", "--train-size", "100", "--hidden-channels", "2"]
    arguments += ["--task", "turned", "--jobs", "2", "--out", str(tmp_path)]
    assert main(arguments) == 0
    key = [(t.log_evidence, t.nll) for t in bws.Comparison.load(tmp_path / "comparison.json").trials]
    assert key == [(t.log_evidence, t.nll) for t in bws.Comparison.load(run / "comparison.json").trials][:2]


def test_fit_command_saves_a_fit(tmp_path, capsys):
    out = tmp_path / "fit"
    arguments = ["fit", "--epochs", "2", "--train-size", "100", "--hidden-channels", "2", "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "test accuracy" in printed and "lift: ρ" in printed
    fit = bws.FitResult.load(out)
    data = bws.data.load("digits", seed=0, train_size=100)
    assert fit.predict(data.test[0]).sum(-1).allclose(torch.ones(len(data.test[0])))

"""A study: every trial once, kept whole, told apart from trials with other settings."""

import json

import pytest
import torch

from bayesws.analysis.study_table import layer_groups, study_table
from bayesws.cli import main
from bayesws.data import load, moving
from bayesws.study import Study, rows

PLAN = {
    "data": {"name": "digits", "test_size": 50},
    "tasks": ["turned"],
    "train_sizes": [40, 60],
    "seeds": 2,
    "epochs": {"40": 2, "60": 1},
    "methods": {
        "evidence": {"model": "WSCNN", "network": {"hidden_channels": 2, "stack": "product", "layers": 1}},
        "plain": {
            "model": "CNN",
            "network": {"hidden_channels": 4, "kernel_size": 3, "layers": 1},
            "fit": {"objective": "task", "weight_decays": [1e-4]},
            "train_sizes": [60],
            "seeds": 1,
        },
    },
}


def written(folder, **changes):
    path = folder / "study.json"
    path.write_text(json.dumps(PLAN | changes))
    return path


def test_cells_are_methods_by_sizes_and_seeds(tmp_path):
    cells = Study.read(written(tmp_path)).cells
    assert [(c.train_size, c.method, c.seed) for c in cells] == [
        (40, "evidence", 0),
        (40, "evidence", 1),
        (60, "evidence", 0),
        (60, "evidence", 1),
        (60, "plain", 0),
    ]
    assert [c.fit["epochs"] for c in cells] == [2, 2, 1, 1, 1]
    assert len({c.name for c in cells}) == len(cells)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    study = Study.read(written(folder))
    return study, folder, study.run(folder / "out", processes=2)


def test_records_say_how_each_trial_did(finished):
    study, _, records = finished
    assert [r["settings"] for r in records] == [c.settings for c in study.cells]
    for record in records:
        assert 0 <= record["accuracy"] <= 1 and record["nll"] > 0 and len(record["history"]) > 0
    assert records[0]["parameters"] == 2 * 9 + 2 * 4 * 9 + 2 + 2 * 10 + 10  # shared, free, bias, head
    assert records[0]["stack_parameters"] == 3 * (1 + 81)
    assert set(records[0]["groups"]) == {"lift"}
    assert records[4]["groups"] == {} and records[4]["stack_parameters"] == 0


def test_what_is_finished_is_not_run_again(finished, monkeypatch):
    study, folder, records = finished
    kept = sorted((folder / "out" / "trials").iterdir())
    stamps = [path.stat().st_mtime_ns for path in kept]
    (folder / "out" / "trials" / f"{study.cells[2].name}.json").unlink()
    steps = []
    again = study.run(folder / "out", processes=1, advance=lambda: steps.append(1))
    assert len(steps) == len(records)
    assert [r["nll"] for r in again] == [r["nll"] for r in records]  # the one that was run again, too
    unchanged = [p.stat().st_mtime_ns == s for p, s in zip(kept, stamps, strict=True)]
    assert unchanged.count(False) == 1


def test_trials_with_other_settings_are_not_mixed_in(finished):
    _, folder, _ = finished
    other = Study.read(written(folder, epochs=3))
    with pytest.raises(ValueError, match="was run with other settings: choose another --out"):
        other.run(folder / "out", processes=1)


def test_table_has_a_row_for_every_method(finished):
    cells = list(rows(finished[2]))
    assert [(size, method, len(found)) for _, size, method, found in cells] == [
        (40, "evidence", 2),
        (60, "evidence", 2),
        (60, "plain", 1),
    ]
    assert study_table(cells).row_count == 3
    names = {"a": {"name": "flips"}, "b": {"name": None}}
    assert layer_groups({"groups": names}) == "flips, no group"
    assert layer_groups({"groups": {"a": names["a"], "c": names["a"]}}) == "flips in all 2"


BAD = [
    ({"methods": {"x": {"model": "Perceptron"}}}, "model 'Perceptron': expected one of"),
    ({"methods": {"x": {"network": {}}}}, "method 'x': model missing"),
    ({"methods": {"x": {"model": "CNN", "nets": 1}}}, "unknown nets"),
    ({"shuffle": True}, "unknown shuffle"),
    ({"epochs": {"40": 3}}, "no epochs for 60 training images"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_studies_are_told_in_one_line(changes, message, tmp_path, capsys):
    path = written(tmp_path, **changes)
    assert main(["study", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_files_that_are_no_study(text, tmp_path, capsys):
    (tmp_path / "study.json").write_text(text)
    assert main(["study", str(tmp_path / "study.json"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["study", str(tmp_path / "none.json")]) == 2


def test_moving_images_move_anew_in_every_epoch():
    images = load("digits", train_size=30)
    first, second = (torch.cat([x for x, _ in moving(images, "turned", 10, seed)]) for seed in (0, 0))
    assert torch.equal(first, second)  # from the same seed
    loader = moving(images, "turned", 30, 0)
    epochs = [next(iter(loader))[0] for _ in range(2)]
    assert not torch.equal(*(e.sum(1).flatten(1).sort(0).values for e in epochs))
    still = sorted(float(x.sum()) for x in images.train[0])
    assert sorted(float(x.sum()) for x in epochs[0]) == pytest.approx(still)
    with pytest.raises(ValueError, match="batch_size=0"):
        moving(images, "turned", 0, 0)


def test_shrunk_images_are_means_of_squares():
    images = load("digits", train_size=3).shrunk(4)
    full = load("digits", train_size=3)
    assert images.image_shape == (1, 4, 4)
    torch.testing.assert_close(images.train[0][:, :, 1, 2], full.train[0][:, :, 2:4, 4:6].mean((-2, -1)))
    with pytest.raises(ValueError, match="cannot be averaged to a side of 3"):
        full.shrunk(3)

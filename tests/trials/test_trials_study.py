"""A study: every trial once, kept whole, told apart from trials with other settings."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from bayesws.cli import main
from bayesws.data import load, moving
from bayesws.evidence.curvature import Curvature
from bayesws.io.json_files import of_kind
from bayesws.report.run_files import StudyTrial
from bayesws.trials.study import Study
from bayesws.trials.study_table import layer_groups, rows, study_groups_table, study_table

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
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
            "fit": {"objective": "task", "weight_decays": [1e-4], "starts": 2},
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
    assert [(c.labels["train_size"], c.labels["method"], c.seed) for c in cells] == [
        (40, "evidence", 0),
        (40, "evidence", 1),
        (60, "evidence", 0),
        (60, "evidence", 1),
        (60, "plain", 0),
    ]
    assert [c.fit["epochs"] for c in cells] == [2, 2, 1, 1, 1]
    assert len({c.name for c in cells}) == len(cells)
    assert all(c.judge is None for c in cells)
    judged = Study.read(written(tmp_path, judge={"kind": "full", "samples": 2})).cells
    assert all(c.judge == Curvature("full", samples=2) for c in judged)
    later = Study.read(written(tmp_path, seed=20)).cells
    assert [c.seed for c in later] == [20 + c.seed for c in cells]
    assert [c.seed for c in Study.read(written(tmp_path, seed=20), seeds=1).cells] == [20, 20, 20]


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
    assert (
        records[0]["parameters"] == 5 * (2 * 9 + 2 + 2 * 10) + 10
    )  # every one once shared and four times free, and the classes' bias
    assert records[0]["stack_parameters"] == 3 * (1 + 81)
    assert set(records[0]["groups"]) == {"lift"}
    assert records[4]["groups"] == {} and records[4]["stack_parameters"] == 0
    starts = of_kind(records[4], StudyTrial, "a record", "").starts  # as the report reads it
    assert [start.number for start in starts] == [0, 1] and records[0]["starts"] == []
    assert [start.kept for start in starts] == [s.held_out_nll == min(t.held_out_nll for t in starts) for s in starts]


def test_what_is_finished_is_not_run_again(finished, monkeypatch):
    study, folder, records = finished
    kept = sorted((folder / "out" / "trials").iterdir())
    stamps = [path.stat().st_mtime_ns for path in kept]
    (folder / "out" / "trials" / f"{study.cells[2].name}.json").unlink()
    steps = []
    again = study.run(folder / "out", processes=1, advance=steps.append)
    assert sorted(steps) == sorted(cell.name for cell in study.cells)
    assert [r["nll"] for r in again] == [r["nll"] for r in records]  # the one that was run again, too
    unchanged = [p.stat().st_mtime_ns == s for p, s in zip(kept, stamps, strict=True)]
    assert unchanged.count(False) == 1


def test_trials_with_other_settings_are_not_mixed_in(finished):
    _, folder, _ = finished
    other = Study.read(written(folder, epochs=3))
    with pytest.raises(ValueError, match="was run with other settings: choose another --out"):
        other.run(folder / "out", processes=1)


def test_trials_on_data_that_has_changed_since_are_not_mixed_in(tmp_path):
    images = load("digits", train_size=60, test_size=20)

    def write(shift):
        (x, y), (test_x, test_y) = images.train, images.test
        arrays = {"train_x": x.roll(shift, 0), "train_y": y, "test_x": test_x, "test_y": test_y}
        np.savez(tmp_path / "mine.npz", **{name: array.numpy() for name, array in arrays.items()})

    methods = {name: {"model": "CNN", "network": {"hidden_channels": 1, "layers": 1}} for name in "ab"}
    changes = {"data": {"name": str(tmp_path / "mine.npz")}, "train_sizes": [40], "seeds": 1, "methods": methods}
    study = Study.read(written(tmp_path, epochs=1, **changes))
    write(0)
    study.run(tmp_path, processes=1)
    (tmp_path / "trials" / "turned-40-b-0.json").unlink()
    write(1)
    with pytest.raises(ValueError, match=r"turned-40-a-0 was trained on data .*trial turned-40-b-0 on data"):
        study.run(tmp_path, processes=1)


def test_table_has_a_row_for_every_method(finished):
    cells = list(rows(finished[2]))
    assert [(size, method, len(found)) for _, size, method, found in cells] == [
        (40, "evidence", 2),
        (60, "evidence", 2),
        (60, "plain", 1),
    ]
    assert study_table(cells).row_count == 3 + 2  # and a heading for each number of images
    assert study_groups_table(cells).row_count == 2 + 2
    one = study_table(cells[:1])
    assert one.row_count == 1 and "turned, 40 images" in str(one.title)
    names = {"a": {"name": "flips"}, "b": {"name": None}}
    assert layer_groups({"groups": names}) == "flips, no group"
    assert layer_groups({"groups": {"a": names["a"], "c": names["a"]}}) == "flips in all 2"


def test_tables_fit_into_80_columns():
    group = {"name": "quarter-turns"}
    record = {"accuracy": 0.95, "nll": 0.1, "seconds": 1234.0, "stack_parameters": 1}
    record["groups"] = {"a": group, "b": {"name": None}, "c": group}
    seeds = [record | {"log_evidence": -1e5 * s} for s in (1, 2)]
    many = "task loss, random, no projection [/x] and a long name"
    cells = [(task, 10_000, many, seeds) for task in ("rotated:0:360", "turned")]
    console = Console(width=80, file=io.StringIO())
    console.print(study_table(cells), study_groups_table(cells), sep="\n")
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in console.file.getvalue()
    (row,) = [line for line in lines if line.startswith("task loss") and "95.00 ± 0.00" in line][:1]
    assert row.split()[-1] == "1234"  # the numbers of a row are on one line
    assert "[/x]" in console.file.getvalue()


def method(**changes):
    return {"methods": {"x": {"model": "WSCNN"} | changes}}


BAD = [
    (method(model="Perceptron"), "method 'x': model 'Perceptron': expected one of"),
    ({"methods": {"x": {"network": {}}}}, "method 'x': model missing"),
    (method(nets=1), "method 'x': unknown nets"),
    ({"shuffle": True}, "unknown shuffle"),
    ({"epochs": {"40": 3}}, "method 'evidence': no epochs for 60 training images"),
    # what is no list, no number, or empty
    ({"tasks": "turned"}, 'tasks "turned": expected a list, each text'),
    ({"tasks": []}, "tasks is empty"),
    ({"tasks": ["turned", "turned"]}, 'tasks has "turned" twice'),
    ({"tasks": ["turn"]}, "unknown task 'turn'; did you mean 'turned'?"),
    ({"tasks": ["rotated:0"]}, "task 'rotated:0' has 1 numbers"),
    ({"train_sizes": []}, "train_sizes is empty"),
    ({"train_sizes": [40, "60"]}, "expected a list, each a whole number"),
    ({"train_sizes": [40, 40]}, "train_sizes has 40 twice"),
    ({"train_sizes": [0]}, "train_sizes 0: expected at least 1"),
    ({"seeds": 2.5}, "seeds 2.5: expected a whole number"),
    ({"seeds": True}, "seeds true: expected a whole number"),
    ({"seed": -1}, "seed=-1: expected a whole number from 0"),
    ({"seeds": 0}, "seeds 0: expected at least 1"),
    ({"epochs": "3"}, 'epochs "3": expected a whole number or an object of whole numbers'),
    ({"epochs": {"40": 2, "60": 0}}, "epochs 0: expected at least 1"),
    ({"methods": []}, "methods []: expected an object"),
    ({"methods": {}}, "methods is empty"),
    ({"methods": {"x": "CNN"}}, "method 'x': \"CNN\": expected an object with"),
    # data
    ({"data": "digits"}, 'data "digits": expected an object'),
    ({"data": {}}, "data: name missing"),
    ({"data": {"name": 3}}, "data: name 3: expected text"),
    ({"data": {"name": "digits", "seed": 1}}, "data: seed cannot be given: the study sets it"),
    ({"data": {"name": "digits", "sides": 4}}, "data: unknown sides; expected"),
    ({"data": {"name": "digit"}}, "unknown data set 'digit'; did you mean 'digits'?"),
    ({"data": {"name": "digits", "side": 3}}, "expected a divisor"),
    # methods
    (method(seeds=0), "method 'x': seeds 0"),
    (method(seeds="2"), "method 'x': seeds \"2\""),
    (method(train_sizes=[]), "method 'x': train_sizes []: expected some of the study's, [40, 60]"),
    (method(train_sizes=[50]), "method 'x': train_sizes [50]: expected some of"),
    (method(network=[1]), "method 'x': network [1]: expected an object"),
    (method(network={"layer": 3}), "method 'x': network: unknown layer; expected"),
    (method(network={"num_classes": 3}), "method 'x': network: num_classes cannot be given"),
    (method(network={"layers": "3"}), "method 'x': network: layers \"3\": expected a whole number"),
    (method(network={"layers": 0}), "method 'x': network: layers=0: expected at least 1"),
    (method(network={"group_size": 0}), "method 'x': network: group_size=0: expected at least 1"),
    (method(network={"stack": "soft"}), "method 'x': network: stack 'soft'"),
    (method(network={"group": "quarter-turn"}), "method 'x': network: group 'quarter-turn' on a 3×3"),
    (method(network={"group": ["flips", 3]}), "method 'x': network: group [\"flips\", 3]: expected text or a list"),
    (
        method(network={"group": ["flips"]}),
        "method 'x': network: group with 1 groups: expected one, or one for each of 2",
    ),
    (method(network={"pathways": "shared"}), "method 'x': network: pathways \"shared\": expected a list, each text"),
    (method(model="WSResNet", network={"constraint": 1}), "method 'x': network: constraint 1: expected text"),
    (
        method(network={"sharing": {}}),
        "method 'x': network: unknown sharing; expected constraint, contains, group",
    ),
    (method(model="CNN", network={"stack": "dense"}), "method 'x': network: unknown stack; expected"),
    (method(fit=3), "method 'x': fit 3: expected an object"),
    (method(fit={"epoch": 3}), "method 'x': fit: unknown epoch; expected batch_size"),
    (method(fit={"seed": 3}), "method 'x': fit: seed cannot be given"),
    (method(fit={"epochs": 0}), "method 'x': fit: epochs=0: expected at least 1"),
    (method(fit={"batch_size": 8.5}), "method 'x': fit: batch_size 8.5: expected a whole number"),
    (method(fit={"objective": "elbo"}), 'fit: objective "elbo": expected one of "evidence", "task"'),
    (method(fit={"start": "group"}), 'fit: start "group": expected one of null, "moments"'),
    (method(fit={"likelihood": "regression"}), 'expected one of "classification"'),
    (
        method(fit={"objective": "task", "weight_decays": [-1]}),
        "fit: weight_decays=-1: expected one or more",
    ),
    (method(fit={"objective": "task", "weight_decays": 0.1}), "fit: weight_decays 0.1: expected a list, each a number"),
    (method(fit={"objective": "task", "entropy": -1}), "fit: entropy=-1: expected a weight"),
    (method(curvature="kron"), "method 'x': curvature \"kron\": expected an object or null"),
    (method(curvature={"sample": 1}), "method 'x': curvature: unknown sample; expected"),
    (method(curvature={"samples": 0}), "method 'x': curvature: samples=0"),
    ({"judge": "kron"}, 'judge "kron": expected an object or null'),
    ({"judge": {"sample": 1}}, "judge: unknown sample; expected"),
    # names that are no file's, or another's, too
    ({"methods": {"a:b": {"model": "CNN"}, "a_b": {"model": "CNN"}}}, "methods 'a:b' and 'a_b' would both be kept in"),
    ({"methods": {"../../x": {"model": "CNN"}}}, "method '../../x': the name becomes part of a file's"),
    ({"methods": {"": {"model": "CNN"}}}, "method '': the name"),
    ({"methods": {"a\nb": {"model": "CNN"}}}, "the name becomes part"),
    ({"methods": {"x" * 300: {"model": "CNN"}}}, "a name of 300 characters is too long"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_studies_are_told_in_one_line(changes, message, tmp_path, capsys):
    path = written(tmp_path, **changes)
    assert main(["study", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert str(path) in error or "trial turned-60" in error
    assert not (tmp_path / "out").exists()


def test_files_of_trials_keep_their_names(tmp_path):
    methods = {"task loss, plain CNN": {"model": "CNN"}}
    cells = Study.read(written(tmp_path, tasks=["rotated:0:360"], methods=methods, seeds=1)).cells
    assert cells[0].name == "rotated_0_360-40-task loss, plain CNN-0"


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*/*.json")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_studies_of_the_experiments_are_sound(path):
    plan = json.loads(path.read_text())
    if "methods" not in plan or "tasks" not in plan:
        pytest.skip("no study")
    assert len(Study.read(path).cells) > 0


FAILING = [
    ({"fit": {"learning_rate": 1e30, "warm_up": 0, "weight_decays": [0.0], "objective": "task"}}, "not finite"),
    ({"network": {"layers": 5, "pooling": False}, "model": "CNN"}, "Kernel size"),
]


@pytest.mark.parametrize(("changes", "message"), FAILING)
def test_a_trial_that_fails_is_named(changes, message, tmp_path, capsys):
    path = written(tmp_path, **method(**changes), train_sizes=[40], seeds=1)
    assert main(["study", str(path), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 2
    error = capsys.readouterr().err
    assert "error: trial turned-40-x-0: " in error and message in error and error.count("\n") == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"settings": {}}'])
def test_a_damaged_trial_is_named(text, tmp_path, capsys):
    path = written(tmp_path)
    trial = tmp_path / "out" / "trials" / f"{Study.read(path).cells[0].name}.json"
    trial.parent.mkdir(parents=True)
    trial.write_text(text)
    assert main(["study", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"{trial} is damaged: " in error and "; remove it, and the trial is run again" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("kept", [0, 2])
def test_interrupted_studies_say_what_is_kept(kept, tmp_path, capsys, monkeypatch):
    path, out = written(tmp_path), tmp_path / "out"

    def stopped(study, folder, processes, advance, begin):
        for cell in study.cells[:kept]:
            (folder / "trials").mkdir(parents=True, exist_ok=True)
            (folder / "trials" / f"{cell.name}.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, "run", stopped)
    assert main(["study", str(path), "--out", str(out)]) == 130
    goes_on = f"2 of 5 trials are kept in {out / 'trials'}: the same command goes on from there"
    said = goes_on if kept else "nothing was written"
    assert capsys.readouterr().err == f"bayesws study: interrupted, {said}\n"


@pytest.mark.skipif(os.name == "nt", reason="needs a group of processes to interrupt")
def test_ctrl_c_is_told_in_one_line_by_one_process(tmp_path):
    path, out = written(tmp_path, seeds=300), tmp_path / "out"
    command = [sys.executable, "-m", "bayesws.cli", "study", str(path), "--out", str(out), "--jobs", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as study:
        while not list(out.glob("trials/*.json")) and study.poll() is None:
            time.sleep(0.1)
        os.killpg(study.pid, signal.SIGINT)
        error = study.communicate(timeout=60)[1]
    assert study.returncode == 130
    lines = error.splitlines()
    assert "of 601 trials are kept in" in lines[-1]
    assert all("minutes left" in line for line in lines[:-1])  # a pipe is told how far it is


def test_help_shows_a_study_that_runs_and_fits_into_80_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    plan = text[text.index('  {"data"') : text.index("\n\ndata:")]
    (tmp_path / "study.json").write_text(plan)
    assert len(Study.read(tmp_path / "study.json").cells) == 8
    example = next(word for word in text.split() if word.startswith("experiments/"))
    assert (EXPERIMENTS.parent / example).exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"tasks": [], "tasks": []}'])
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


def test_zeros_are_put_around_images_before_they_are_moved_and_averaged():
    plain, padded = (load("digits", train_size=3, task="quadrant", pad=pad) for pad in (0, 4))
    assert padded.image_shape == (1, 32, 32)
    for small, large in zip(plain.train[0], padded.train[0], strict=True):
        down, right = (small[0].amax(1 - axis).argmax() // 8 * 16 + 4 for axis in (0, 1))
        torch.testing.assert_close(large[:, down : down + 8, right : right + 8].sum(), small.sum())
    assert load("digits", train_size=3, pad=4, side=4).image_shape == (1, 4, 4)
    with pytest.raises(ValueError, match="pad=9 around images of 8×8: expected 0 to 8"):
        load("digits", train_size=3, pad=9)

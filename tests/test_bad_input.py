"""Twenty and more bad inputs: one clear line each; at the command line exit code 2 and nothing half-written."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import bayesws as bws
from bayesws.cli import main


def images(n=6, size=8, classes=3):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, size, size, generator=generator), torch.arange(n) % classes


def net(**changes):
    return bws.models.WSCNN(**({"num_classes": 3, "hidden_channels": 2} | changes))


def plain():
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 3))


def with_nan(x):
    x = x.clone()
    x[1, 0, 0, 0] = float("nan")
    return x


x, y = images()

PYTHON = {
    "wrong image shape": (lambda: net()(torch.rand(2, 3, 8, 8)), r"\(2, 3, 8, 8\).*expected \(batch, 1"),
    "images too small": (lambda: net()(torch.rand(2, 1, 4, 4)), "2×2 positions.*3×3"),
    "NaN pixels": (lambda: bws.fit(net(), (with_nan(x), y), epochs=1), "1 NaN or infinite"),
    "label out of range": (lambda: bws.fit(net(), (x, y + 1), epochs=1), "labels from 1 to 3: expected 0 to 2"),
    "float labels": (lambda: bws.fit(net(), (x, y.float()), epochs=1), "integers"),
    "empty data": (lambda: bws.fit(net(), (x[:0], y[:0]), epochs=1), "empty"),
    "lengths differ": (lambda: bws.fit(net(), (x, y[:-1]), epochs=1), "6 inputs and 5 targets"),
    "data of another type": (lambda: bws.fit(net(), "digits", epochs=1), "type str: expected a pair"),
    "group does not fit kernel": (
        lambda: bws.layers.WSLiftConv2d(1, 2, (3, 5), stack="fixed"),
        "quarter-turns.*3×5.*square",
    ),
    "group of another size": (
        lambda: bws.layers.WSLiftConv2d(1, 2, 3, stack="fixed", group="dihedral", group_size=4),
        "dihedral.*8 elements",
    ),
    "group size without a known group": (lambda: net(group_size=5), "group_size=5"),
    "network over no elements": (lambda: net(group_size=0), "group_size=0: expected at least 1"),
    "unknown group": (lambda: net(group="quarter-turn"), "did you mean 'quarter-turns'"),
    "unknown stack": (lambda: net(stack="soft"), "soft.*fixed, dense, product, power"),
    "unknown pathway": (lambda: net(pathways=("shared", "extra")), "extra"),
    "unknown objective": (lambda: bws.fit(net(), (x, y), objective="elbo"), "elbo.*evidence, task"),
    "unknown likelihood": (lambda: bws.fit(net(), (x, y), likelihood="poisson"), "poisson.*classification"),
    "unknown curvature": (
        lambda: bws.log_evidence(net(), (x, y), curvature="kfac"),
        "kfac.*full, layer.*kron",
    ),
    "unknown setting": (lambda: bws.fit(net(), (x, y), epoch=3), "'epoch'.*epochs"),
    "no epochs": (lambda: bws.fit(net(), (x, y), epochs=0), "epochs=0"),
    "negative weight decay": (
        lambda: bws.fit(net(), (x, y), objective="task", weight_decays=(-1.0, 0.0)),
        "none negative",
    ),
    "unknown pathway in the prior": (lambda: bws.log_evidence(net(), (x, y), prior={"lift.fre": 0.0}), "lift.fre"),
    "unknown data set": (lambda: bws.data.load("digit"), "digits"),
    "unknown task": (lambda: bws.data.load("digits", task="turn"), "turned"),
    "sharing without a free pathway": (lambda: bws.share(plain(), pathways=("shared",)), "expected 'free' among them"),
    "sharing over no elements": (lambda: bws.share(plain(), group_size=0), "group_size=0: expected at least 1"),
    "sharing with an unknown stack": (lambda: bws.share(plain(), stack="soft"), "^stack 'soft': expected one of fixed"),
    "sharing with an unknown setting": (lambda: bws.share(plain(), groupsize=2), "'groupsize'.* group_size"),
    "network with a value and keywords": (
        lambda: net(sharing=bws.Sharing(8, "fixed"), group_size=8),
        "group_size beside sharing: expected one or the other",
    ),
    "sharing with an unknown group": (
        lambda: bws.share(plain(), stack="fixed", group="quater-turns"),
        "layer '0': .*did you mean 'quarter-turns'",
    ),
    "keeping an unknown layer": (lambda: bws.share(plain(), keep=("conv1",)), "keep='conv1': expected .* among 0, 2"),
    "nothing to share": (lambda: bws.share(torch.nn.ReLU()), "ReLU can be shared: it has no nn.Linear and no conv"),
    "no layer of a multiple": (lambda: bws.share(plain(), group_size=7), "layer '0': 4 outputs are no multiple of"),
    "hardening what is no network": (lambda: bws.harden({}), "a dict to harden: expected a network or a FitResult"),
    "hardening with an empty example": (lambda: bws.harden(net(), x[:0]), "example with no data: expected"),
    "hardening without an example": (lambda: bws.harden(net()), "a WSCNN to harden: expected example="),
    "loading what is no fit": (lambda: bws.FitResult.load("/nonexistent"), "not a saved fit"),
}


@pytest.mark.parametrize("name", PYTHON)
def test_python_raises_value_error_in_one_line(name):
    call, pattern = PYTHON[name]
    with pytest.raises(ValueError, match=pattern) as error:
        call()
    assert "\n" not in str(error.value)


def truncated(folder: Path) -> Path:
    whole = folder / "whole.npz"
    data = {"train_x": x.numpy(), "train_y": y.numpy(), "test_x": x.numpy(), "test_y": y.numpy()}
    np.savez_compressed(whole, **data)
    path = folder / "cut.npz"
    path.write_bytes(whole.read_bytes()[:200])
    whole.unlink()
    return path


def without_labels(folder: Path) -> Path:
    path = folder / "keys.npz"
    np.savez(path, train_x=x.numpy())
    return path


def nan_pixels(folder: Path) -> Path:
    path = folder / "nan.npz"
    np.savez(path, train_x=with_nan(x).numpy(), train_y=y.numpy(), test_x=x.numpy(), test_y=y.numpy())
    return path


def a_file(folder: Path) -> Path:
    path = folder / "file"
    path.write_text("not a folder")
    return path


COMMANDS = {
    "unknown command": (lambda d: ["compere"], "compere"),
    "no command": (lambda d: [], "command"),
    "unknown option": (lambda d: ["compare", "--sedes", "3"], "--sedes"),
    "seeds not a number": (lambda d: ["compare", "--seeds", "many"], "whole number"),
    "zero seeds": (lambda d: ["compare", "--seeds", "0"], "at least 1"),
    "unknown task": (lambda d: ["compare", "--task", "turn"], "turned"),
    "unknown data": (lambda d: ["fit", "--data", "mnits"], "mnist"),
    "missing npz": (lambda d: ["fit", "--data", str(d / "none.npz")], "none.npz"),
    "truncated npz": (lambda d: ["fit", "--data", str(truncated(d))], "cut.npz"),
    "npz without keys": (lambda d: ["compare", "--data", str(without_labels(d))], "train_y"),
    "npz with NaN": (lambda d: ["compare", "--data", str(nan_pixels(d))], "NaN"),
    "too many images": (lambda d: ["fit", "--train-size", "100000"], "1797"),
    "set that is not there": (lambda d: ["fit", "--data", "mnist", "--data-root", str(d)], "--data-root"),
    "unknown device": (lambda d: ["compare", "--device", "tpu9"], "tpu9"),
    "unknown group to select": (lambda d: ["select", "--groups", "none,quarter-turn"], "did you mean 'quarter-turns'"),
    "group to select twice": (lambda d: ["select", "--groups", "none,none"], "twice"),
    "no groups to select": (lambda d: ["select", "--groups", ""], "expected one of trivial"),
    "width that a group does not divide": (lambda d: ["select", "--width", "12"], "width=12"),
    "unknown curvature to select by": (lambda d: ["select", "--curvature", "kfac"], "kfac"),
    "task to select on": (lambda d: ["select", "--task", "turn"], "turned"),
    "selection into a file": (lambda d: ["select", "--out", str(a_file(d))], "not a folder"),
    "output is a file": (lambda d: ["compare", "--out", str(a_file(d))], "not a folder"),
    "output below a file": (lambda d: ["fit", "--out", str(a_file(d) / "x")], "not a folder"),
    "output holds something else": (lambda d: ["fit", "--out", str(a_file(d).parent)], "not a saved fit"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_exits_2_with_one_line_and_writes_nothing(name, tmp_path, capsys, monkeypatch):
    arguments, word = COMMANDS[name]
    arguments = arguments(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert word in captured.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0 and os.name == "nt", reason="needs a place that nobody may write")
def test_output_that_cannot_be_written_is_told_before_training(capsys):
    assert main(["compare", "--out", "/proc/nowhere"]) == 2
    assert "/proc/nowhere" in capsys.readouterr().err


def test_a_damaged_fit_is_named(tmp_path):
    folder = tmp_path / "fit"
    bws.fit(net(), (x, y), epochs=1, progress=False).save(folder)
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(ValueError, match="damaged"):
        bws.FitResult.load(folder)


def test_a_diverging_fit_says_so():
    with pytest.raises((FloatingPointError, ValueError), match=r"not finite|NaN or infinite"):
        bws.fit(net(), (x, y), epochs=3, learning_rate=1e30, warm_up=1, progress=False)

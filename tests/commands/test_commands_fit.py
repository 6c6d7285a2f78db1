"""bayesws fit: what it writes and prints, Ctrl-C and going on, curves for TensorBoard."""

import json

import pytest
import torch

import bayesws as bws
from bayesws.cli import main
from bayesws.training.checkpoint import Checkpoint

SMALL = ["fit", "--epochs", "4", "--train-size", "100", "--hidden-channels", "2"]


def test_fit_command_saves_a_fit(tmp_path, capsys):
    out = tmp_path / "fit"
    assert main([*SMALL, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "test accuracy" in printed and "lift: ρ" in printed
    assert [p.name for p in tmp_path.iterdir()] == ["fit"]
    fit = bws.FitResult.load(out)
    data = bws.data.load("digits", seed=0, train_size=100)
    for kind in ("map", "posterior"):
        assert fit.predict(data.test[0], kind).sum(-1).allclose(torch.ones(len(data.test[0])))


@pytest.mark.parametrize("objective", ["evidence", "constrained"])
def test_interrupted_fit_goes_on_to_the_last_bit(objective, tmp_path, capsys, monkeypatch):
    arguments = [*SMALL, "--objective", objective]
    monkeypatch.setattr("bayesws.commands.fit.command", lambda: ["bayesws", "fit"])
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "fit"

    def stopping(self, run, what, epochs, after=Checkpoint.after_epoch):
        self.seconds = 0.0
        after(self, run, what, epochs)
        if epochs == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "after_epoch", stopping)
        assert main([*arguments, "--out", str(out)]) == 130
    goes_on = f"what was done is kept in {out}.unfinished: the same command goes on from there"
    assert capsys.readouterr().err.endswith(f"bayesws fit: interrupted, {goes_on}\n") and not out.exists()
    assert main([*arguments, "--out", str(out), "--seed", "1"]) == 2
    assert "with other data or settings" in capsys.readouterr().err
    assert main([*arguments, "--out", str(out)]) == 0
    weights = [(path / "weights.safetensors").read_bytes() for path in (out, tmp_path / "whole")]
    assert weights[0] == weights[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fit", "whole"]


def test_interrupt_before_anything_is_kept(tmp_path, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bayesws.commands.fit.fit", stopped)
    assert main([*SMALL, "--out", str(tmp_path / "fit")]) == 130
    assert capsys.readouterr().err == "bayesws fit: interrupted, nothing was written\n"


def test_curves_for_tensorboard_are_the_history(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert main([*SMALL, "--out", str(tmp_path / "fit"), "--tensorboard", str(tmp_path / "curves")]) == 0
    events = event_accumulator.EventAccumulator(str(tmp_path / "curves")).Reload()
    history = bws.FitResult.load(tmp_path / "fit").history
    assert {"loss", "log_evidence"} <= set(events.Tags()["scalars"])
    logged = {event.step: event.value for event in events.Scalars("loss")}
    assert logged == pytest.approx({int(r["epoch"]): r["loss"] for r in history})


def test_all_starts_are_told(tmp_path, capsys):
    arguments = [*SMALL, "--epochs", "2", "--starts", "2", "--out", str(tmp_path / "fit")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "start 1, as given: log evidence -" in printed and "start 2, weights drawn anew, apart: log" in printed
    assert printed.count(" nats, kept\n") == 1
    starts = bws.FitResult.load(tmp_path / "fit").starts
    assert [start.number for start in starts] == [0, 1] and sum(start.kept for start in starts) == 1


def test_normalisation_and_rate_reach_network_and_schedule(tmp_path, capsys):
    arguments = [*SMALL, "--norm", "layer", "--learning-rate", "0.01", "--out", str(tmp_path / "fit")]
    assert main(arguments) == 0
    fit = bws.FitResult.load(tmp_path / "fit")
    assert fit.model.settings["norm"] == "layer" and fit.recipe.schedule["learning_rate"] == 0.01


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "fast", "1e40"])
def test_a_rate_that_is_none_is_told(rate, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main([*SMALL, f"--learning-rate={rate}", "--out", str(tmp_path / "fit")])
    told = capsys.readouterr().err
    assert left.value.code == 2 and "expected a positive number" in told and told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_numbers_as_json(tmp_path, capsys):
    assert main([*SMALL, "--out", str(tmp_path / "fit"), "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["log_evidence"] == bws.FitResult.load(tmp_path / "fit").log_evidence
    assert 0 <= numbers["test"]["accuracy"] <= 1
    lift, conv, head = numbers["sharing"]
    assert 0 < lift["strength"] < 1 and 0 < conv["strength"] < 1
    assert 0 < head["strength"] < 1 and list(head["parameters"]) == ["shared", "free", "bias"]


def test_fit_does_not_write_over_what_is_not_its_own(tmp_path, capsys, monkeypatch):
    out = tmp_path / "fit"
    monkeypatch.setattr("sys.argv", ["bayesws", *SMALL])
    assert main([*SMALL, "--out", str(out)]) == 0
    monkeypatch.setattr("sys.argv", ["bayesws", *SMALL, "--task", "turned"])
    before = (out / "weights.safetensors").read_bytes()
    assert main([*SMALL, "--task", "turned", "--out", str(out)]) == 2
    assert "holds a fit that was made by another command" in capsys.readouterr().err
    (out / "notes.txt").write_text("mine")
    assert main([*SMALL, "--out", str(out)]) == 2
    assert "holds 'notes.txt' beside a fit" in capsys.readouterr().err
    assert (out / "notes.txt").exists() and (out / "weights.safetensors").read_bytes() == before


@pytest.mark.parametrize("verb", ["compare", "select", "strength", "study"])
def test_other_verbs_leave_a_fit_alone(verb, tmp_path, capsys):
    (tmp_path / "fit.json").write_text("{}")
    given = {"strength": ["resnet18"], "study": ["study.json"]}.get(verb, [])
    assert main([verb, *given, "--out", str(tmp_path)]) == 2
    assert "holds a fit (fit.json): choose another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["fit.json"]


def test_an_empty_folder_is_written_into(tmp_path):
    assert main([*SMALL, "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit.json", "weights.safetensors"]


REFUSED = {
    "a file": ("file", "file is not a folder; choose another place"),
    "below a file": ("file/out", "file is not a folder; choose another place"),
    "what is not ours": ("mine", "mine exists and is not a saved fit: choose another path"),
    "a name of 300": ("x" * 300, "a name of 300 bytes, expected at most 255"),
    "a name of 230, too long with .unfinished": ("x" * 230, "File name too long; choose another place"),
    "a link for what is unfinished": ("linked", "linked.unfinished is a symbolic link"),
    "the root": ("/", "/"),
    "a mount": ("/proc", "/proc"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_out_is_looked_at_before_anything_is_loaded(case, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    (tmp_path / "linked.unfinished").symlink_to(tmp_path / "mine")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("bayesws.data.load", None)
    name, message = REFUSED[case]
    try:
        code = main([*SMALL, "--out", str(tmp_path / name)])
    except SystemExit as left:  # argparse
        code = left.code
    told = capsys.readouterr().err
    assert code == 2 and message in told and told.count("\n") == 1 and len(told) < 400
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.filterwarnings("ignore:only 1 steps")
def test_a_network_of_branches(tmp_path, capsys):
    blocks = ["fit", "--epochs", "2", "--train-size", "60", "--blocks", "conv+fc", "--width", "1"]
    assert main([*blocks, "--out", str(tmp_path / "fit")]) == 0
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("blocks.0: ρ = 0.", "; branches conv ", "conv.weight"))
    fit = bws.FitResult.load(tmp_path / "fit")
    assert fit.model.settings["blocks"] == "conv+fc" and list(fit.sharing[0].shares) == ["conv", "fc"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--width", "2"], "--width 2 is of a network of --blocks: give both"),
        (["--prune", "1"], "--prune 1 takes branches of --blocks out by --objective evidence: give both"),
        (["--blocks", "fc+conv", "--prune", "1", "--objective", "task"], "--prune 1 takes branches"),
        (["--blocks", "fc", "--norm", "layer"], "--norm beside --blocks fc: its network has eight blocks"),
        (["--blocks", "fc", "--pathways", "free"], "--pathways beside --blocks fc"),
        (["--blocks", "fc+dense"], "blocks='fc+dense': expected one or more of gconv"),
        (["--blocks", "fc", "--pad", "1"], "images of 10×10: expected a side that is a power of two; try --pad"),
        (["--pad", "9"], "pad=9 around images of 8×8: expected 0 to 8"),
    ],
)
def test_networks_that_do_not_fit_are_told(arguments, told, tmp_path, capsys):
    assert main([*SMALL[:5], *arguments, "--out", str(tmp_path / "fit")]) == 2
    err = capsys.readouterr().err
    assert told in err and not any(tmp_path.iterdir())

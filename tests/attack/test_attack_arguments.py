"""Bad arguments, at the Python door and at the command line: every public callable, every option, a palette of values.

Each must be refused by a raise statement of this library, in one line, or be accepted; none may end in a traceback from
the depths, or hang. The fast part is a seeded draw, the whole is slow.
"""

import argparse
import inspect
import random
import signal
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayesws as bws
from bayesws import cli
from bayesws.training.objectives.names import KINDS

pytestmark = pytest.mark.usefixtures("without_type_checks")
SECONDS = 30  # of one call: what takes longer counts as a hang
DRAWN, DRAWN_COMMANDS = 250, 120  # calls and commands of the fast part
HERE = str(Path(bws.__file__).parent)


def images(n=8, classes=3):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, 6, 6, generator=generator), torch.arange(n) % classes


def net():
    torch.manual_seed(0)
    return bws.models.WSCNN(num_classes=3, hidden_channels=1, layers=1)


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


@cache
def fitted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bws.fit(net(), images(), epochs=1, progress=False)


def unsampled():
    return replace(fitted(), posterior={})


def nothing(*_):
    return None


PALETTE = {
    "None": lambda: None,
    "True": lambda: True,
    "minus one": lambda: -1,
    "zero": lambda: 0,
    "a half": lambda: 0.5,
    "one and a half": lambda: 1.5,
    "NaN": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "minus infinity": lambda: float("-inf"),
    "huge": lambda: 10**30,
    "huge negative": lambda: -(10**30),
    "huge float": lambda: 1e300,
    "complex": lambda: 1j,
    "numpy integer": lambda: np.int64(-3),
    "numpy NaN": lambda: np.float32("nan"),
    "empty text": lambda: "",
    "text": lambda: "x",
    "digits": lambda: "3",
    "not ASCII": lambda: "größe\u202e",
    "lines": lambda: "a\nb",
    "zero byte": lambda: "a\0b",
    "long text": lambda: "x" * 5000,
    "bytes": lambda: b"x",
    "empty list": list,
    "list": lambda: [1],
    "list of text": lambda: ["x", "y"],
    "empty tuple": tuple,
    "tuple": lambda: ("x",),
    "triple": lambda: (1, 2, 3),
    "dict": dict,
    "named": lambda: {"x": 1},
    "set": lambda: {1},
    "object": object,
    "class": lambda: int,
    "function": lambda: nothing,
    "generator": lambda: (i for i in range(3)),
    "array": lambda: np.array([1.0, 2.0]),
    "array of text": lambda: np.array(["a", "b"]),
    "scalar tensor": lambda: torch.tensor(0.5),
    "empty tensor": lambda: torch.zeros(0),
    "vector": lambda: torch.rand(3),
    "NaN tensor": lambda: torch.full((8, 1, 6, 6), float("nan")),
    "sparse tensor": lambda: torch.eye(3).to_sparse(),
    "complex tensor": lambda: torch.zeros(8, 1, 6, 6, dtype=torch.complex64),
    "meta tensor": lambda: torch.zeros(8, 1, 6, 6, device="meta"),
    "images of another size": lambda: torch.rand(8, 3, 6, 6),
    "tensors of other lengths": lambda: (torch.rand(8, 1, 6, 6), torch.zeros(7).long()),
    "labels out of range": lambda: (torch.rand(8, 1, 6, 6), torch.arange(8)),
    "sparse pair": lambda: (torch.rand(8, 36).to_sparse(), torch.arange(8) % 3),
    "data set of one part": lambda: TensorDataset(torch.rand(8, 1, 6, 6)),
    "loader of one part": lambda: DataLoader(TensorDataset(torch.rand(8, 1, 6, 6)), batch_size=4),
    "module without parameters": nn.ReLU,
    "frozen module": lambda: nn.Linear(3, 3).requires_grad_(False),
    "half module": lambda: plain().half(),
    "meta module": lambda: plain().to("meta"),
    "module of no outputs": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 0)),
    "path": lambda: Path("/proc/nowhere"),
    "no device": lambda: "cuda:9",
    "meta device": lambda: torch.device("meta"),
    "curvature": lambda: bws.Curvature("full"),
    "schedule": lambda: bws.Schedule(epochs=1),
}

FIT = {"epochs": 1, "progress": False, "keep_posterior": False}
# by callable: arguments with which it works, and how to call it; "settings" are what it takes by **
CALLS = {
    "fit": (bws.fit, lambda: {"net": net(), "train": images(), "seed": 0, "checkpoint": None} | FIT),
    "fit by the task loss": (bws.fit, lambda: {"net": linear(), "train": images(), "objective": "task"} | FIT),
    "forecast": (bws.forecast, lambda: {"net": linear(), "data": images()}),
    "log_evidence": (bws.log_evidence, lambda: {"net": linear(), "data": images()}),
    "evidence_gradient": (bws.evidence_gradient, lambda: {"net": net(), "data": images(), "curvature": "diag"}),
    "compare": (
        bws.compare,
        lambda: {
            "make_net": linear,
            "train": images(),
            "test": images(),
            "seeds": 1,
            "weight_decays": (0.0,),
            "epochs": 1,
            "progress": False,
        },
    ),
    "select": (bws.select, lambda: {"networks": {"a": linear()}, "data": images()} | FIT),
    "select_layers": (
        bws.select_layers,
        lambda: {"make": lambda groups: linear(), "choices": ("none",), "layers": 1, "data": images()} | FIT,
    ),
    "sharing_strength": (bws.sharing_strength, lambda: {"fit": fitted(), "chains": 1, "draws": 4, "warmup": 1}),
    "equivariance_error": (bws.equivariance_error, lambda: {"module": plain()[0], "x": images()[0], "resamples": 5}),
    "equivariance_errors": (bws.equivariance_errors, lambda: {"net": plain(), "x": images()[0], "resamples": 5}),
    "candidates": (bws.candidates, lambda: {"data": images(), "kernel_size": 2}),
    "annealed_evidence": (
        bws.annealed_evidence,
        lambda: {
            "net": nn.Sequential(nn.Flatten(), nn.Linear(36, 2)),
            "data": (images()[0], torch.arange(8) % 2),
            "populations": 2,
            "chains": 2,
            "overlap": 0.1,
            "moves": 1,
            "leapfrogs": 1,
        },
    ),
    "calibrate": (
        bws.calibrate,
        lambda: {
            "net": linear(),
            "data": images(),
            "likelihood": "classification",
            "gold": -1.0,
            "curvatures": {"diag": "diag"},
        },
    ),
    "orbit_decomposition": (bws.orbit_decomposition, lambda: {"weight": torch.rand(4, 2, 3, 3)}),
    "orbit_decompositions": (bws.analysis.orbit_decompositions, lambda: {"net": plain(), "x": images()[0]}),
    "share": (bws.share, lambda: {"model": plain(), "group_size": 4}),
    "harden": (bws.harden, lambda: {"source": net(), "example": images()[0]}),
    "identify_group": (bws.identify_group, lambda: {"stack": torch.eye(4).expand(2, 4, 4)}),
    "identify_groups": (bws.identify_groups, lambda: {"model": net()}),
    "write_report": (bws.write_report, lambda: {"runs": unsampled(), "path": "report.html", "figures": None}),
    "Curvature": (bws.Curvature, dict),
    "Schedule": (bws.Schedule, dict),
    "Sharing": (bws.Sharing, dict),
    "Gaussian": (bws.Gaussian, dict),
    "Categorical": (bws.Categorical, dict),
    **{kind.__name__: (kind, dict) for kind in KINDS.values()},
    "FitResult.load": (bws.FitResult.load, lambda: {"path": "nowhere"}),
    "FitResult.save": (lambda path: fitted().save(path), lambda: {"path": "saved"}),
    "FitResult.predict": (
        lambda x, kind, batch_size: fitted().predict(x, kind, batch_size),
        lambda: {"x": images()[0], "kind": "map", "batch_size": 4},
    ),
    "FitResult.predict_moments": (
        lambda x, noise, batch_size: replace(fitted(), likelihood=bws.Gaussian()).predict_moments(x, noise, batch_size),
        lambda: {"x": images()[0], "noise": True, "batch_size": 4},
    ),
    "FitResult.with_scale": (lambda train: fitted().with_scale(train), lambda: {"train": images()}),
    "FitResult.nll": (
        lambda x, y, kind, batch_size: fitted().nll(x, y, kind, batch_size),
        lambda: {"x": images()[0], "y": images()[1], "kind": "posterior", "batch_size": 4},
    ),
}
# what `fit` and all that hands on to it take as settings
SETTINGS = sorted({*bws.Schedule.__dataclass_fields__, "device", "fixed_point_steps", "damping", "structure_rate"})
TAKE_SETTINGS = ("fit", "compare", "select", "select_layers")


def arguments_of(name):
    call, valid = CALLS[name]
    kinds = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
    own = [p.name for p in inspect.signature(call).parameters.values() if p.kind not in kinds]
    more = SETTINGS if name in TAKE_SETTINGS else []
    if name == "fit by the task loss":
        more = [field for field in KINDS["task"].__dataclass_fields__ if field != "name"]
    return list(dict.fromkeys([*own, *more, *valid()]))


OWN = {("select_layers", "make", "class")}  # functions of the caller's, whose errors are the caller's, too: int(groups)


def all_calls():
    calls = [(name, argument, bad) for name in CALLS for argument in arguments_of(name) for bad in PALETTE]
    return [call for call in calls if call not in OWN]


@contextmanager
def no_longer_than(seconds):
    def stop(*_):
        raise TimeoutError(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def raised_where(error):
    """File and source line of the innermost frame."""
    *_, innermost = traceback.extract_tb(error.__traceback__)
    return innermost.filename, innermost.line or ""


def complaint(call, arguments):
    """What is wrong with how a call ends; None where it is refused as it should be, or accepted."""
    try:
        with warnings.catch_warnings(), no_longer_than(SECONDS):
            warnings.simplefilter("ignore")
            call(**arguments)
    except (ValueError, FloatingPointError) as error:
        where, line = raised_where(error)
        if not where.startswith(HERE) or not line.startswith(("raise", "raise kind")):
            return f"{type(error).__name__} from {Path(where).name}: {line}: {str(error)[:100]}"
        text = str(error)
        if "\n" in text or not 10 < len(text) < 700:
            return f"not one line to read: {text[:200]!r}"
        return None
    except Exception as error:
        where, line = raised_where(error)
        if isinstance(error, TypeError) and where == __file__:  # Python's own: an argument that is not in the signature
            return None
        return f"{type(error).__name__} from {Path(where).name}: {line[:80]}: {str(error)[:100]}"
    return None


def run_all(calls):
    found = {}
    for name, argument, bad in calls:
        call, valid = CALLS[name]
        if wrong := complaint(call, valid() | {argument: PALETTE[bad]()}):
            found[f"{name}({argument}={bad})"] = wrong
    return found


def told(found):
    return f"{len(found)} cases\n" + "\n".join(f"{case}: {wrong}" for case, wrong in found.items())


def test_the_arguments_that_are_changed_work_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = {name: found for name, (call, valid) in CALLS.items() if (found := complaint(call, valid()))}
    assert not wrong, told(wrong)


def test_every_public_callable_is_attacked():
    public = {name for name in bws.__all__ if callable(getattr(bws, name)) and not inspect.ismodule(getattr(bws, name))}
    assert public <= {name.partition(".")[0] for name in CALLS}


def test_bad_arguments_drawn_from_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run_all(random.Random(0).sample(all_calls(), DRAWN))
    assert not found, told(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_all_bad_arguments(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run_all(call for call in all_calls() if call[0] == name)
    assert not found, told(found)


# the command line: every option of every verb, with what a hand or a script may put there
SMALL = ["--train-size", "20", "--test-size", "10"]
BAD = {
    "minus one": "-1",
    "zero": "0",
    "half": "0.5",
    "one and a half": "1.5",
    "NaN": "nan",
    "infinity": "inf",
    "huge": "1" + 30 * "0",
    "longer than a number": "9" * 6000,
    "hexadecimal": "0x10",
    "exponent": "1e3",
    "plus": "+3",
    "underscores": "1_0",
    "superscript": "²",
    "Arabic digit": "٣",
    "empty": "",
    "space": " ",
    "text": "x",
    "commas": ",,",
    "names": "none,none",
    "not ASCII": "größe",
    "bidirectional": "a\u202eb",
    "lines": "a\nb",
    "zero byte": "a\0b",
    "escape": "\x1b[31m",
    "markup": "[red]x[/red]",
    "long": "x" * 300,
    "very long": "x" * 6000,
    "option": "--",
    "dashes": "-x",
    "percent": "%s%d",
    "braces": "{0}",
    "dollar": "$HOME",
    "home": "~nobody/x",
    "up": "../../../../proc/nowhere",
    "device": "/dev/null/x",
    "no folder": "/nonexistent/x",
    "missing file": "none.npz",
    "missing network": "none.pt2",
    "a module": "os:getcwd",
    "cuda": "cuda:9",
    "meta": "meta",
    "mps": "mps",
    "task": "rotated:nan",
    "turned by nothing": "rotated:",
    "translated too far": "translated:1e9",
    "scaled": "scale:0",
}
# by verb: a command that works, and the arguments that are no options
VERBS = {
    "compare": [*SMALL, "--task", "turned", "--seeds", "1", "--jobs", "1", "--objectives", "evidence"],
    "fit": SMALL,
    "candidates": SMALL,
    "select": [*SMALL, "--groups", "none", "--jobs", "1"],
    "strength": [*SMALL, "--transforms", "flip"],
    "study": ["--jobs", "1"],
    "data": SMALL,
    "report": [],
}
POSITIONAL = {"strength": "bayesws.models:CNN", "study": "study.json", "report": "nowhere"}


def options_of(verb):
    """Every option of a verb, and "" for what is no option."""
    (commands,) = (a for a in cli.command_line()._actions if isinstance(a, argparse._SubParsersAction))
    actions = commands.choices[verb]._actions
    found = [a.option_strings[-1] for a in actions if a.option_strings and a.nargs != 0]
    return found + [""] * (verb in POSITIONAL)


def all_commands():
    return [(verb, option, bad) for verb in VERBS for option in options_of(verb) for bad in BAD]


class Accepted(BaseException):
    """What comes where the work would begin: the arguments were taken."""


def stopped(*_, **__):
    raise Accepted


@pytest.fixture
def idle(monkeypatch, tmp_path):
    """A folder to be in, and verbs that stop where their work would begin."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.json").write_text(
        '{"data": {"name": "digits"}, "tasks": ["turned"], "train_sizes": [20], "seeds": 1, "epochs": 1, '
        '"methods": {"a": {"model": "WSCNN"}}}'
    )
    for place in (
        "bayesws.commands.fit.fit",
        "bayesws.trials.engine.run",
        "bayesws.commands.strength.equivariance_errors",
    ):
        monkeypatch.setattr(place, stopped)
    return tmp_path


def command(verb, option, bad):
    first = [] if verb not in POSITIONAL else [BAD[bad] if option == "" else POSITIONAL[verb]]
    given = [] if option == "" else [f"{option}={BAD[bad]}"]
    return [verb, *VERBS[verb], *given, "--", *first] if first else [verb, *VERBS[verb], *given]


def amiss(arguments, folder, capsys):
    """What is wrong with how a command ends; None where it is refused as it should be, or accepted."""
    before = sorted(folder.rglob("*"))
    try:
        with no_longer_than(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = cli.main(arguments)
    except Accepted:
        capsys.readouterr()
        return None
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:
        capsys.readouterr()
        where, line = raised_where(error)
        return f"{type(error).__name__} from {Path(where).name}: {line[:80]}: {str(error)[:100]}"
    said = capsys.readouterr()
    if code == 0:  # data, candidates and report do their work here
        for path in folder.rglob("*"):
            if path.is_file() and path.name != "study.json":
                path.unlink()
        return None
    left = [path.name for path in sorted(folder.rglob("*")) if path not in before]
    if code != 2 or said.out or said.err.count("\n") != 1 or len(said.err) > 900 or left:
        return f"exit code {code}, {len(said.out)} letters out, left {left}, said {said.err[:300]!r}"
    return None


def run_commands(commands, folder, capsys):
    found = {case: amiss(command(*case), folder, capsys) for case in commands}
    return {f"{verb} {option} {bad}": wrong for (verb, option, bad), wrong in found.items() if wrong}


def test_bad_options_drawn_from_all(idle, capsys):
    found = run_commands(random.Random(0).sample(all_commands(), DRAWN_COMMANDS), idle, capsys)
    assert not found, told(found)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_all_bad_options(verb, idle, capsys):
    found = run_commands([case for case in all_commands() if case[0] == verb], idle, capsys)
    assert not found, told(found)

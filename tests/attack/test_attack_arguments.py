"""Bad arguments, at the Python door and at the command line: every public callable, every option, a palette of values.

Each must be refused by a raise statement of this library, in one line, or be accepted; none may end in a traceback from
the depths, or hang. The fast part is a seeded draw, the whole is slow.
"""

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
from bayesws.training.objectives.names import KINDS

pytestmark = pytest.mark.usefixtures("without_type_checks")
SECONDS = 30  # of one call: what takes longer counts as a hang
DRAWN = 250  # calls of the fast part
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
    "orbit_decompositions": (bws.orbit_decompositions, lambda: {"net": plain(), "x": images()[0]}),
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


def all_calls():
    return [(name, argument, bad) for name in CALLS for argument in arguments_of(name) for bad in PALETTE]


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

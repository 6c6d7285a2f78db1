"""What several tests ask for; what holds for every test and doctest stands in the conftest.py at the root."""

from contextlib import contextmanager
from functools import partial

import jaxtyping
import pytest
import torch

TRAINING = ("analysis", "attack", "commands", "io", "report", "training", "trials")


@contextmanager
def unchecked(off=True):
    """Within the block no shapes are checked, where `off`."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", before or off)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def without_type_checks():
    """What a user gets who checks no types at run time: the library's own errors instead of jaxtyping's."""
    with unchecked():
        yield


@pytest.fixture(scope="module", autouse=True)
def shapes_checked(request):
    """Checking every shape takes a quarter of a training: it is done where layers, networks and
    evidence are what is tested."""
    with unchecked(request.path.parent.name in TRAINING):
        yield


@pytest.fixture
def tight_sinkhorn(monkeypatch):
    """Stacks converged to rounding error: a finite difference divides the usual residual, 1e-9, by its step."""
    from bayesws.sharing import doubly_stochastic

    tight = partial(doubly_stochastic.sinkhorn, tolerance=1e-13)
    monkeypatch.setattr(doubly_stochastic, "sinkhorn", tight)


@pytest.fixture
def double():
    """Tensors are in float64 where nothing else is asked for."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


LONGEST_FIRST = (
    "test_readme.py",
    "test_attack_stops.py",
    "test_attack_modules.py",
    "test_attack_arguments.py",
    "test_attack_files.py",
    "test_trials_study.py",
    "test_trials_compare.py",
    "test_trials_select.py",
    "test_io_full_disk.py",
)


def pytest_collection_modifyitems(items):
    """The files that take longest come first, or one process would end long after the others."""
    items.sort(key=lambda item: item.path.name not in LONGEST_FIRST)

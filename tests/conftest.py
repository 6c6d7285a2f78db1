"""One thread, one seed, and runtime checks of the shapes that the mathematics declares."""

from functools import partial

import jaxtyping
import pytest
import torch

# Only these packages: beartype refuses hints that are plain Protocols (evidence.curvature.Curvature) unless they are
# decorated with @runtime_checkable, so the whole of bayesws cannot be hooked. Import after the hook, hence its place.
CHECKED = (
    "bayesws.sharing",
    "bayesws.layers",
    "bayesws.models",
    "bayesws.evidence.batches",
    "bayesws.evidence.likelihood",
    "bayesws.evidence.capture",
)
jaxtyping.install_import_hook(list(CHECKED), "beartype.beartype")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def without_type_checks():
    """What a user gets who checks no types at run time: the library's own errors instead of jaxtyping's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def tight_sinkhorn(monkeypatch):
    """Stacks converged to rounding error: a finite difference divides the usual residual, 1e-9, by its step."""
    from bayesws.sharing import doubly_stochastic

    tight = partial(doubly_stochastic.sinkhorn, tolerance=1e-13)
    monkeypatch.setattr(doubly_stochastic, "sinkhorn", tight)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


LONGEST_FIRST = ("test_readme.py", "test_study.py", "test_compare.py", "test_select.py", "test_full_disk.py")


def pytest_collection_modifyitems(items):
    """The files that take longest come first, or one process would end long after the others."""
    items.sort(key=lambda item: item.path.name not in LONGEST_FIRST)

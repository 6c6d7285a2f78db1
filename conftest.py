"""For tests and doctests alike: one thread, one seed, and runtime checks of shapes as the mathematics declares them."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, too; before torch is imported

import jaxtyping
import pytest
import torch

# Only these packages: beartype refuses hints that are plain Protocols (evidence.curvature.Curvature) unless they are
# decorated with @runtime_checkable, so the whole of bayesws cannot be hooked. The hook is here, at the root, because
# pytest reads this file before it imports any module of bayesws, to collect tests or doctests.
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
    """Every test and every doctest draws from the same seed."""
    torch.manual_seed(0)

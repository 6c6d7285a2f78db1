"""The diagonal of H in the memory of a few rows: exact whatever the layer, and as cheap as Kronecker factors."""

import networks
import pytest
import torch
from torch import nn

from bayesws import Categorical, Curvature
from bayesws.evidence.batches import Batches
from bayesws.evidence.gathering import gather
from bayesws.evidence.objective import finish, laplace_pass

N = 24
WIDE = {  # kernels of 2^18 numbers: one position; several; several in groups; two calls of one layer
    "linear": (lambda: nn.Sequential(nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 3)), (512,)),
    "sequence": (lambda: nn.Sequential(nn.Linear(512, 512), nn.Flatten(), nn.Linear(1024, 3)), (2, 512)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(64, 512, 3), nn.Flatten(), nn.Linear(2048, 3)), (64, 4, 4)),
    "groups": (lambda: nn.Sequential(nn.Conv1d(512, 512, 1, groups=2), nn.Flatten(), nn.Linear(1024, 3)), (512, 2)),
}


def largest_allocation(work):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    return max(event.self_cpu_memory_usage for event in seen.events())


@pytest.mark.parametrize("case", WIDE)
def test_no_row_of_a_datum_is_kept_beside_another(case):
    """Rows of a batch are N times the parameters; a few kernels, or a batch's signals, are all that is ever made."""
    make, shape = WIDE[case]
    net, x, y = make(), torch.randn(N, *shape), networks.targets("classification", N, 3)
    numbers = sum(p.numel() for p in net.parameters())
    with torch.no_grad():
        found = largest_allocation(lambda: laplace_pass(net, Batches((x, y)), Categorical(), "diag"))
    assert found <= 4 * max(2 * numbers, 2**20)


ONE_POSITION = {  # where squares go through the sum over data as they are
    "linear": lambda: nn.Linear(6, 3),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 3, 1), nn.Flatten()),
    "groups": lambda: nn.Sequential(nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 9, 1, groups=3), nn.Flatten(), nn.Tanh()),
    "two calls": lambda: nn.Sequential(twice := nn.Linear(6, 6), nn.Tanh(), twice),
}


@pytest.mark.parametrize("case", ONE_POSITION)
def test_one_position_is_the_diagonal_of_the_whole_matrix(case):
    net = ONE_POSITION[case]().double()
    x = torch.randn(5, 6, dtype=torch.float64)
    y = networks.targets("classification", 5, net(x).shape[1])
    with torch.no_grad():
        diag = laplace_pass(net, Batches((x, y)), Categorical(), "diag").hessian
        full = finish(gather(net, Batches((x, y)), Categorical(), Curvature("full"))).hessian
    found = torch.cat([diag.eigenvalues[name] for name in full.sizes])
    torch.testing.assert_close(found, full.matrix.diagonal(), rtol=1e-12, atol=1e-15)

"""Curvature of models that know nothing of this library: every kind of torch layer that is treated, against oracles."""

import oracles
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bayesws import Categorical, Curvature, log_evidence
from bayesws.evidence.batches import Batches
from bayesws.evidence.objective import laplace_pass
from bayesws.layers.contract import starting_log_precisions

D = {"dtype": torch.float64}
N, CLASSES = 5, 3


def head(features):
    return nn.Sequential(nn.Flatten(), nn.Linear(features, CLASSES, **D))


class Residual(nn.Module):
    """One convolution, called twice on maps of different sizes, with a skip connection and an in-place activation."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1, **D)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(2, CLASSES, **D)

    def forward(self, x):
        x = x + self.relu(self.conv(x))
        x = F.avg_pool2d(x, 2)
        return self.head(self.relu(self.conv(x)).mean((-2, -1)))


class Tokens(nn.Module):
    """Linear maps and normalisation over a sequence, as in a transformer's block."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4, **D), nn.Linear(4, 3, **D), nn.Linear(3, 4, **D)
        self.rms, self.head = nn.RMSNorm(4, eps=1e-6, **D), nn.Linear(4, CLASSES, **D)

    def forward(self, x):
        x = x + self.down(torch.tanh(self.up(self.norm(x))))
        return self.head(self.rms(x).mean(1))


def with_statistics(norm):
    """Running statistics that are not those of a start."""
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return norm


# name: network, shape of one datum
NETS = {
    "Linear": (lambda: nn.Sequential(nn.Linear(4, 3, **D), nn.Tanh(), nn.Linear(3, CLASSES, **D)), (4,)),
    "Linear without bias": (lambda: nn.Sequential(nn.Linear(4, CLASSES, bias=False, **D)), (4,)),
    "Conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3, stride=2, padding=1, dilation=2, **D), nn.Tanh(), head(9)),
        (2, 8),
    ),
    "Conv1d circular": (
        lambda: nn.Sequential(nn.Conv1d(2, 2, 3, padding="same", padding_mode="circular", **D), nn.Tanh(), head(12)),
        (2, 6),
    ),
    "Conv2d grouped": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, (2, 3), groups=2, padding=(0, 1), **D), nn.Tanh(), head(36)),
        (4, 3, 3),
    ),
    "Conv2d depthwise": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 2, groups=3, **D), nn.Tanh(), nn.Conv2d(3, 2, 1, **D), head(8)),
        (3, 3, 3),
    ),
    "Conv3d": (lambda: nn.Sequential(nn.Conv3d(1, 2, 2, stride=(1, 2, 1), **D), nn.Tanh(), head(16)), (1, 3, 4, 3)),
    "BatchNorm": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2, **D), with_statistics(nn.BatchNorm2d(2, **D)), nn.ReLU(inplace=True), head(8)
        ),
        (1, 3, 3),
    ),
    "BatchNorm1d": (lambda: nn.Sequential(with_statistics(nn.BatchNorm1d(4, **D)), nn.Linear(4, CLASSES, **D)), (4,)),
    "GroupNorm": (lambda: nn.Sequential(nn.GroupNorm(2, 4, **D), nn.Tanh(), head(16)), (4, 2, 2)),
    "InstanceNorm": (lambda: nn.Sequential(nn.InstanceNorm1d(2, affine=True, **D), nn.Tanh(), head(8)), (2, 4)),
    "LayerNorm of maps": (lambda: nn.Sequential(nn.LayerNorm((2, 3), **D), nn.Tanh(), head(12)), (2, 2, 3)),
    "called twice": (Residual, (2, 4, 4)),
    "tokens": (Tokens, (3, 4)),
}
every_net = pytest.mark.parametrize("name", NETS)
pytestmark = pytest.mark.filterwarnings("ignore:layer .* normalises")


def problem(name):
    make, shape = NETS[name]
    net = make().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
    return net, torch.randn(N, *shape, **D), torch.arange(N) % CLASSES


def prior_of(net):
    """Log precisions, no two alike."""
    return {name: torch.tensor(0.3 * i - 0.5, **D) for i, name in enumerate(starting_log_precisions(net))}


@every_net
@pytest.mark.parametrize("kind", ["full", "layer", "pathway", "diag"])
def test_blocks_of_the_dense_matrix(name, kind):
    net, x, y = problem(name)
    prior = prior_of(net)
    names = [n for n, _ in net.named_parameters()]
    h, spans = oracles.dense_ggn(net, x, oracles.softmax_hessian, names), oracles.spans(net, names)
    by_row = torch.cat([prior[n].exp().expand(s.stop - s.start) for n, s in spans.items()])
    of = {"full": lambda n: "", "layer": lambda n: n.rpartition(".")[0], "pathway": lambda n: n}.get(kind)
    blocks = {}
    for n, span in spans.items():
        rows = torch.arange(span.start, span.stop)
        for block in [(n, i) for i in range(len(rows))] if of is None else [of(n)]:
            blocks.setdefault(block, []).append(rows if of else rows[block[1]][None])
    expected = 0.0
    for parts in blocks.values():
        rows = torch.cat(parts)
        expected += oracles.occam_factor(h[rows[:, None], rows], by_row[rows])
    found = log_evidence(net, (x, y), curvature=kind, prior=prior)
    assert found.occam.item() == pytest.approx(expected, rel=1e-10)


@every_net
@pytest.mark.parametrize("kfac", ["expand", "reduce"])
def test_kronecker_factors(name, kfac):
    """Every layer by loops over slices; the factor of a normalisation keeps its exact block."""
    net, x, y = problem(name)
    prior = prior_of(net)
    names = [n for n, _ in net.named_parameters()]
    h, spans = oracles.dense_ggn(net, x, oracles.softmax_hessian, names), oracles.spans(net, names)
    found = log_evidence(net, (x, y), curvature=Curvature("kron", kfac), prior=prior)
    blocks = oracles.kron_blocks(net, x, oracles.softmax_hessian, kfac == "reduce")
    for n, span in spans.items():
        block = blocks[n] if n in blocks else h[span, span]
        expected = oracles.occam_factor(block, prior[n].exp().expand(len(block)))
        assert found.by_pathway[n].occam.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["GroupNorm", "LayerNorm of maps", "BatchNorm1d"])
def test_the_bias_of_a_normalisation_reduced_is_exact(name):
    """A bias has A = 1: summed over positions first, B is the block itself."""
    net, x, y = problem(name)
    prior = prior_of(net)
    exact = log_evidence(net, (x, y), curvature="pathway", prior=prior).by_pathway
    found = log_evidence(net, (x, y), curvature=Curvature("kron", "reduce"), prior=prior).by_pathway
    for n in found:
        if n.endswith("bias"):
            assert found[n].occam.item() == pytest.approx(exact[n].occam.item(), rel=1e-10)


@pytest.mark.parametrize("kind", ["full", "kron", "diag"])
def test_a_layer_that_is_not_called_has_no_curvature(kind):
    net, x, y = problem("Linear")
    alone = float(log_evidence(net, (x, y), curvature=kind))
    net.spare = nn.Linear(2, 2, bias=False, **D)
    net.forward = lambda x: net[2](net[1](net[0](x)))
    found = log_evidence(net, (x, y), curvature=kind)
    scatter = 0.5 * net.spare.weight.square().sum().item()
    assert found.by_pathway["spare.weight"].effective.item() == pytest.approx(0, abs=1e-12)
    assert float(found) == pytest.approx(alone - scatter, rel=1e-10)


@pytest.mark.parametrize("kind", ["full", "kron", "diag"])
def test_a_layer_whose_output_goes_nowhere_has_no_curvature(kind):
    net, x, y = problem("Linear")
    alone = log_evidence(net, (x, y), curvature=kind)
    net.spare = nn.Linear(4, 2, **D)
    net.forward = lambda x: (net.spare(x), net[2](net[1](net[0](x))))[1]
    found = log_evidence(net, (x, y), curvature=kind)
    assert found.occam.item() == pytest.approx(alone.occam.item(), rel=1e-10)
    for name in ("spare.weight", "spare.bias"):
        assert found.by_pathway[name].effective.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bias_that_a_normalisation_takes_out_has_no_curvature(dtype):
    """Its gradient is a sum that cancels: nothing but rounding, which must not be taken for a use that was not seen."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))
    x, y = torch.randn(N, 2, 6, 6, dtype=dtype), torch.arange(N) % CLASSES
    found = log_evidence(net.to(dtype), (x, y), curvature="pathway").by_pathway["0.bias"]
    assert found.occam.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_a_factor_of_nothing_but_rounding_has_no_curvature(dtype, seed):
    """What is equal within a datum normalises to zero, or to rounding that autograd and we need not have alike."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.LayerNorm(3), nn.Flatten(), nn.Linear(12, 3)).to(dtype)
    x = torch.randn(N, 4, 1, dtype=dtype).expand(-1, -1, 3)
    found = log_evidence(net, (x, torch.arange(N) % CLASSES), curvature="pathway").by_pathway["0.weight"]
    assert found.occam.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["full", "diag", "kron"])
def test_frozen_parameters_are_not_part_of_the_prior(kind):
    net, x, y = problem("Conv2d grouped")
    net[0].weight.requires_grad_(False)
    found = log_evidence(net, (x, y), curvature=kind)
    assert set(found.by_pathway) == {"0.bias", "2.1.weight", "2.1.bias"}


def test_wide_factors_of_a_normalisation_are_taken_by_their_diagonal(monkeypatch):
    net, x, y = problem("LayerNorm of maps")
    monkeypatch.setattr("bayesws.evidence.accumulators.LARGEST_SCALE_BLOCK", 5)
    found = log_evidence(net, (x, y), curvature="kron").by_pathway["0.weight"].occam.item()
    assert found == pytest.approx(log_evidence(net, (x, y), curvature="diag").by_pathway["0.weight"].occam.item())


@every_net
def test_batches_do_not_matter(name):
    net, x, y = problem(name)
    for kind in ("full", "kron", "diag"):
        whole, parts = (float(log_evidence(net, (x, y), curvature=kind, batch_size=b)) for b in (N, 2))
        assert parts == pytest.approx(whole, rel=1e-11)


def test_no_graph_is_kept_under_no_grad():
    net, x, y = problem("Linear")
    with torch.no_grad():
        done = laplace_pass(net, Batches((x, y)), Categorical(), "kron")
    assert not done.data_fit.requires_grad and not any(v.requires_grad for v in done.hessian.eigenvalues.values())

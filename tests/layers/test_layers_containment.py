"""A convolution beside a dense map of all positions: where it lies within that, and one sum for both."""

import pytest
import torch
from torch import nn

import bayesws as bws
from bayesws.evidence.batches import Batches
from bayesws.evidence.nesting import nested, rebalance
from bayesws.evidence.objective import laplace_pass
from bayesws.layers import Branches, Linear2d
from bayesws.layers.containment import convolution_within
from bayesws.layers.contract import named_pathways, starting_log_precisions

SIZE = (4, 5)
CONVOLUTIONS = {  # with the sizes of their outputs
    "valid": (dict(kernel_size=3), (2, 3)),
    "stride": (dict(kernel_size=2, stride=2), (2, 2)),
    "zeros": (dict(kernel_size=3, padding=1), (4, 5)),
    "zeros, stride": (dict(kernel_size=3, padding=1, stride=2), (2, 3)),
    "circular": (dict(kernel_size=3, padding=1, padding_mode="circular"), (4, 5)),
    "same": (dict(kernel_size=(2, 3), padding="same"), (4, 5)),
    "reflected": (dict(kernel_size=3, padding=2, padding_mode="reflect"), (6, 7)),
    "dilated": (dict(kernel_size=2, dilation=3), (1, 2)),
}
KAPPA_I = ("valid", "stride", "circular", "dilated")


@pytest.fixture(autouse=True)
def drawn(double):
    torch.manual_seed(0)


def both(case, bias=True):
    settings, out_size = CONVOLUTIONS[case]
    return nn.Conv2d(2, 3, **settings, bias=bias), Linear2d(2, 3, SIZE, out_size, bias=bias)


def matrix_of(conv):
    """The convolution without its bias, by its answers to unit images, in the order of a Linear2d's weight."""
    units = torch.eye(2 * SIZE[0] * SIZE[1]).reshape(-1, 2, *SIZE)
    with torch.no_grad():
        return (conv(units) - conv(torch.zeros(1, 2, *SIZE))).flatten(1).mT


# A convolution lies within it


def lifts(place, conv):
    """R as a matrix, unit kernel by unit kernel."""
    units = torch.eye(conv.weight.numel())
    return torch.stack([place.lift(unit.reshape(conv.weight.shape)).flatten() for unit in units], -1)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_kernel_is_lifted_to_the_convolutions_matrix(case):
    conv, dense = both(case)
    place = convolution_within(conv, dense, "fc")["weight"]
    torch.testing.assert_close(place.lift(conv.weight.detach()), matrix_of(conv), rtol=1e-12, atol=1e-14)
    r = lifts(place, conv)
    weight = torch.randn(dense.weight.shape)
    torch.testing.assert_close(place.lower(weight).flatten(), r.mT @ weight.flatten(), rtol=1e-12, atol=1e-12)
    gram = place.kappa * torch.eye(conv.weight[0, 0].numel()) if place.gram is None else place.gram()
    torch.testing.assert_close(r.mT @ r, torch.block_diag(*[gram] * 6), rtol=1e-12, atol=1e-12)
    assert place.kappa == pytest.approx(float(torch.linalg.eigvalsh(r.mT @ r)[-1]), rel=1e-12)
    assert (place.gram is None) == (case in KAPPA_I)
    rows = dense.weight.shape[0]  # at equal precisions and white inputs, the variance of an output is ‖its row‖²
    assert place.wider == pytest.approx((dense.weight.numel() / rows) / float(r.square().sum() / rows), rel=1e-12)


def test_a_bias_is_lifted_to_all_positions():
    conv, dense = both("zeros")
    place = convolution_within(conv, dense, "fc")["bias"]
    assert torch.equal(place.lift(conv.bias).reshape(3, *SIZE), conv.bias[:, None, None].expand(3, *SIZE))
    assert torch.equal(place.lower(dense.bias), dense.bias.reshape(3, -1).sum(1)) and place.kappa == 20.0


@pytest.mark.parametrize(
    "conv, dense",
    [
        (nn.Conv2d(2, 4, 3, padding=1, groups=2), Linear2d(2, 4, 4)),
        (nn.Conv2d(2, 4, 3), Linear2d(2, 4, 4)),  # another size
        (nn.Conv2d(2, 4, 3, padding=1), Linear2d(2, 3, 4)),
        (nn.Conv2d(2, 4, 5), Linear2d(2, 4, 4, 1)),
        (nn.Conv2d(2, 4, 3, padding=2, dilation=2, padding_mode="circular"), Linear2d(2, 4, 4)),  # two taps see one
        (nn.Conv2d(2, 4, 7, padding=3), Linear2d(2, 4, 3)),  # taps that see zeros alone
    ],
)
def test_others_do_not_lie_within_it(conv, dense):
    assert convolution_within(conv, dense, "fc") == {}


def branches(case, reduce="mean"):
    conv, dense = both(case)
    out = dense.bias.numel()
    return nn.Sequential(Branches(conv=conv, fc=dense, reduce=reduce), nn.Tanh(), nn.Flatten(), nn.Linear(out, 3))


def data(n=9):
    return torch.randn(n, 2, *SIZE), torch.arange(n) % 3


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_beside_it_a_convolution_is_accounted_for_jointly(case):
    net = branches(case)
    found = nested(dict(named_pathways(net)))
    assert {inner: outer for inner, (outer, _) in found.items()} == {
        "0.conv.weight": "0.fc.weight",
        "0.conv.bias": "0.fc.bias",
    }
    prior = {name: torch.tensor(0.3 * i - 4) for i, (name, _) in enumerate(named_pathways(net))}
    hessian = laplace_pass(net, Batches(data()), bws.Categorical(), bws.Curvature("kron")).hessian
    apart = sum(0.5 * torch.log1p(h / prior[name].exp()).sum() for name, h in hessian.eigenvalues.items())
    assert float(hessian.occam(prior)) < float(apart) - 0.01


@pytest.mark.parametrize("closed", ["conv", "fc"])
def test_with_one_branch_closed_its_evidence_is_that_of_the_other_alone(closed):
    """Closed by its precision, its weights at zero: the same function, the same Occam factor."""
    net, (x, y) = branches("zeros", "sum"), data()
    kept = {"conv": "fc", "fc": "conv"}[closed]
    prior = {name: torch.tensor(60.0 if f".{closed}." in name else 0.4) for name, _ in named_pathways(net)}
    with torch.no_grad():
        for parameter in getattr(net[0], closed).parameters():
            parameter.zero_()
    alone = nn.Sequential(getattr(net[0], kept), *net[1:])
    other = {name: torch.tensor(0.4) for name, _ in named_pathways(alone)}
    found = bws.log_evidence(net, (x, y), curvature="kron", prior=prior)
    expected = bws.log_evidence(alone, (x, y), curvature="kron", prior=other)
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("case", ["valid", "zeros"])
def test_rebalancing_keeps_the_function_and_has_the_least_scatter(case):
    net = branches(case)
    pathways, x = dict(named_pathways(net)), data()[0]
    prior = {name: torch.tensor(0.7 if "conv" in name else 1.9) for name in starting_log_precisions(net)}
    conv, dense = net[0].conv, net[0].fc
    place = convolution_within(conv, dense, "fc")["weight"]
    whole = place.lift(conv.weight.detach()) + dense.weight.detach()
    r = lifts(place, conv)
    before = net(x)
    rebalance(pathways, prior)
    torch.testing.assert_close(net(x), before, rtol=1e-10, atol=1e-12)
    variance = torch.eye(len(r)) * torch.exp(torch.tensor(-1.9)) + r @ r.mT * torch.exp(torch.tensor(-0.7))
    least = whole.flatten() @ torch.linalg.solve(variance, whole.flatten())
    parts = (("0.conv.weight", conv.weight), ("0.fc.weight", dense.weight))
    found = sum(prior[name].exp() * weight.square().sum() for name, weight in parts)
    assert float(found) == pytest.approx(float(least), rel=1e-9)


@pytest.mark.parametrize("planted", ["conv", "fc"])
def test_the_evidence_tells_a_convolution_from_a_dense_map(planted):
    """Of 800 data it makes a convolution of either: they leave the dense map's 450 weights to the prior."""
    torch.manual_seed(3)
    x = torch.randn(3000, 1, 5, 5)
    first = {"conv": nn.Conv2d(1, 2, 3), "fc": Linear2d(1, 2, 5, 3)}[planted]
    truth = nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(18, 3))
    with torch.no_grad():
        for parameter in truth.parameters():
            parameter.mul_(4)
        y = truth(x).argmax(1)
    layer = Branches(conv=nn.Conv2d(1, 2, 3), fc=Linear2d(1, 2, 5, 3))
    net = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)).float()
    fit = bws.fit(net, (x.float(), y), curvature="kron", epochs=60, seed=0, progress=False)
    assert (fit.sharing[0].strength > 0.9) == (planted == "conv")  # 1.00 and 0.79

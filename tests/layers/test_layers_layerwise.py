"""Layers of the layer-wise family: what each must keep, and which lies within which."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import oracles
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import lstsq
from scipy.optimize import minimize
from torch import nn

import bayesws as bws
from bayesws.evidence.nesting import nested, rebalance
from bayesws.layers import (
    Align2d,
    Anchors2d,
    Branches,
    FactoredLinear2d,
    GroupConv2d,
    GroupedLinear,
    Linear2d,
    PoolGroup,
    SparseConv2d,
    SparseLinear2d,
    StackTurns,
    Subsample2d,
)
from bayesws.layers.containment import places_of
from bayesws.layers.contract import named_pathways


@dataclass(frozen=True)
class Layer:
    make: Callable
    inputs: tuple[int, ...]
    twin: Callable
    parameters: dict[str, tuple[int, ...]]
    text: str
    has_bias: bool = True


def by_parts(layer, x):
    parts = [F.conv2d(part, layer.weight, layer.bias, layer.stride, layer.padding) for part in x.chunk(3, 1)]
    return torch.cat(parts, 1)


def all_positions(layer, x):
    weight = layer.weight.unflatten(0, (3, 2, 2)).unflatten(-1, (2, 4, 5))
    return torch.einsum("opqihw,bihw->bopq", weight, x) + layer.bias.reshape(3, 2, 2)


def factored(layer, x):
    u, v = layer.inner.weight.unflatten(0, (2, 3)), layer.outer.weight.unflatten(0, (3, 4))
    y = torch.einsum("opc,coq,bcq->bop", v, u, x.flatten(2)) + layer.offset.bias[:, None]
    return y.unflatten(-1, (2, 2))


def sparse(layer, x):
    """U and V written out at all positions."""
    p, q = layer.inner.anchors_in.interpolation(), layer.outer.anchors_out.interpolation()
    u = torch.einsum("qz,coz->coq", p, layer.inner.weight.unflatten(0, (2, 3)))
    v = torch.einsum("pz,ozc->opc", q, layer.outer.weight.unflatten(0, (3, 2)))
    y = torch.einsum("opc,coq,bcq->bop", v, u, x.flatten(2)) + layer.offset.bias[:, None]
    return y.unflatten(-1, (2, 2))


LAYERS = {
    "Linear2d": Layer(
        lambda **k: Linear2d(2, 3, (4, 5), 2, **k),
        (2, 4, 5),
        all_positions,
        {"weight": (12, 40), "bias": (12,)},
        "Linear2d(2, 3, size=(4, 5), out_size=(2, 2), bias=True)",
    ),
    "GroupConv2d": Layer(
        lambda **k: GroupConv2d(2, 2, (2, 3), stride=2, padding=1, parts=3, **k),
        (6, 4, 5),
        by_parts,
        {"weight": (2, 2, 2, 3), "bias": (2,)},
        "GroupConv2d(2, 2, kernel_size=(2, 3), stride=(2, 2), padding=(1, 1), parts=3)",
    ),
    "GroupedLinear": Layer(
        lambda **k: GroupedLinear(3, 4, 2, **k),
        (3, 4),
        lambda layer, x: torch.stack([x[:, k] @ layer.weight[2 * k : 2 * k + 2].mT for k in range(3)], 1),
        {"weight": (6, 4)},
        "GroupedLinear(3, 4, 2)",
        False,
    ),
    "FactoredLinear2d": Layer(
        lambda **k: FactoredLinear2d(2, 3, (4, 5), 2, **k),
        (2, 4, 5),
        factored,
        {"inner.weight": (6, 20), "outer.weight": (12, 2), "offset.bias": (3,)},
        "FactoredLinear2d(\n  2, 3, size=(4, 5), out_size=(2, 2)\n  (inner): GroupedLinear(2, 20, 3)\n"
        "  (outer): GroupedLinear(3, 2, 4)\n  (offset): Offset2d(3)\n)",
    ),
}
LAYERS |= {
    "SparseConv2d": Layer(
        lambda **k: SparseConv2d(2, 3, 3, 5, stride=2, padding=1, **k),
        (2, 4, 5),
        lambda layer, x: F.conv2d(x, layer.kernel(), layer.bias, 2, 1),
        {"weight": (3, 2, 5), "bias": (3,), "anchors.log_lengthscale": (), "anchors.places": (5, 2)},
        "SparseConv2d(\n  2, 3, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1)\n"
        "  (anchors): Anchors2d((3, 3), 5)\n)",
    ),
    "SparseLinear2d": Layer(
        lambda **k: SparseLinear2d(2, 3, (4, 5), 2, **k),
        (2, 4, 5),
        sparse,
        {"inner.weight": (6, 10), "outer.weight": (6, 2), "offset.bias": (3,)}
        | {f"inner.anchors_in.{n}": s for n, s in (("log_lengthscale", ()), ("places", (10, 2)))}
        | {f"outer.anchors_out.{n}": s for n, s in (("log_lengthscale", ()), ("places", (2, 2)))},
        "SparseLinear2d(\n  2, 3, size=(4, 5), out_size=(2, 2)\n  (inner): GroupedLinear(\n    2, 20, 3\n"
        "    (anchors_in): Anchors2d((4, 5), 10)\n  )\n  (outer): GroupedLinear(\n    3, 2, 4\n"
        "    (anchors_out): Anchors2d((2, 2), 2)\n  )\n  (offset): Offset2d(3)\n)",
    ),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(autouse=True)
def drawn(double):
    torch.manual_seed(0)


@every_layer
def test_equals_its_dense_twin(name):
    layer, x = LAYERS[name].make(), torch.randn(5, *LAYERS[name].inputs)
    torch.testing.assert_close(layer(x), LAYERS[name].twin(layer, x), rtol=1e-12, atol=1e-13)  # sums in another order


@every_layer
def test_gradients_against_finite_differences(name):
    layer, x = LAYERS[name].make(), torch.randn(1, *LAYERS[name].inputs)
    names = [n for n, _ in layer.named_parameters()]

    def outputs(*values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(outputs, tuple(layer.parameters()))


@every_layer
def test_parameters_state_and_repr(name):
    layer, other, x = LAYERS[name].make(), LAYERS[name].make(), torch.randn(2, *LAYERS[name].inputs)
    assert {n: tuple(p.shape) for n, p in layer.named_parameters()} == LAYERS[name].parameters
    assert not torch.equal(layer(x), other(x)) and repr(layer) == LAYERS[name].text
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))
    if LAYERS[name].has_bias:
        assert not [n for n, _ in LAYERS[name].make(bias=False).named_parameters() if "bias" in n]


@pytest.mark.parametrize("name", [n for n in LAYERS if "weight" in LAYERS[n].parameters])
def test_weights_are_drawn_anew_alike(name):
    layer = LAYERS[name].make()
    before = layer.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before)
    assert float(layer.weight.std()) == pytest.approx(float(before.std()), rel=0.5)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_device_and_type(name, dtype, device):
    layer = LAYERS[name].make(dtype=dtype).to(device)
    y = layer(torch.randn(2, *LAYERS[name].inputs, dtype=dtype, device=device))
    assert y.dtype == dtype and y.device.type == device


@every_layer
def test_hardened_it_is_torchs_own(name):
    layer, x = LAYERS[name].make(), torch.randn(2, *LAYERS[name].inputs)
    hard = bws.harden(nn.Sequential(layer, nn.ReLU()), x)
    assert all(type(m).__module__.startswith("torch") for m in hard.modules())
    torch.testing.assert_close(hard(x), layer(x).relu(), rtol=1e-12, atol=1e-13)


@every_layer
@pytest.mark.parametrize("frozen", ["", "weight", "bias"])
@pytest.mark.parametrize("curvature", ["full", "diag", "layer"])
def test_its_evidence_is_that_of_the_dense_hessian(name, frozen, curvature):
    layer = LAYERS[name].make()
    x, y = torch.randn(7, *LAYERS[name].inputs), torch.arange(7) % 3
    net = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(layer(x)[0].numel(), 3))
    for n, parameter in layer.named_parameters():
        parameter.requires_grad_("anchors" not in n and (not frozen or frozen not in n))
    names = [n for n in oracles.weight_names(net) if net.get_parameter(n).requires_grad]
    hessian = oracles.dense_ggn(net, x, oracles.softmax_hessian, names)
    found = bws.log_evidence(net, (x, y), curvature=curvature)
    if curvature != "full":
        sizes = [net.get_parameter(n).numel() for n in names]
        layers = [n.rpartition(".")[0] for n in names]
        places = torch.repeat_interleave(torch.tensor([layers.index(layer) for layer in layers]), torch.tensor(sizes))
        hessian = hessian * (torch.eye(len(hessian)) if curvature == "diag" else places[:, None] == places)
    expected = 0.5 * torch.linalg.slogdet(torch.eye(len(hessian)) + hessian).logabsdet
    assert float(found.occam) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: Linear2d(0, 1, 3), "in_channels=0"),
        (lambda: Linear2d(1, 1, (3, 0)), "size width=0"),
        (lambda: Linear2d(1, 1, 3, (1, 2, 3)), r"out_size=\(1, 2, 3\): expected one number, or height and width"),
        (lambda: Linear2d(1, 1, 2.5), "size height=2.5: expected at least 1, a whole number"),
        (lambda: Linear2d(1, 1, 3)(torch.zeros(1, 1, 3, 4)), r"expected \(batch, 1, 3, 3\)"),
        (lambda: GroupConv2d(1, 1, 3, parts=0), "parts=0"),
        (lambda: GroupConv2d(2, 1, 3)(torch.zeros(1, 6, 4, 4)), r"expected \(batch, 4 · 2, height, width\)"),
        (lambda: FactoredLinear2d(1, 1, 3)(torch.zeros(1, 1, 3, 4)), r"expected \(batch, 1, 3, 3\)"),
        (lambda: GroupedLinear(2, 3, 1)(torch.zeros(1, 3, 2)), r"expected \(batch, 2, 3\)"),
        (lambda: SparseConv2d(1, 1, 3, 10), r"anchors=10: expected at most 9, the positions of a grid of \(3, 3\)"),
        (lambda: SparseConv2d(1, 1, 3, 5, lengthscale=0.0), "lengthscale=0.0: expected a positive number"),
        (lambda: SparseLinear2d(1, 1, 3, anchors=0.0), r"anchors=0.0: expected a share of the positions, in \(0, 1\]"),
        (lambda: StackTurns()(torch.zeros(1, 1, 3, 4)), "expected square ones"),
        (lambda: PoolGroup(4)(torch.zeros(1, 6, 2, 2)), "6 channels: expected a multiple of group_size=4"),
        (lambda: PoolGroup(reduce="sum"), "reduce='sum': expected 'max' or 'mean'"),
        (lambda: Subsample2d(2, "image"), "choose='image': expected one of example, batch"),
        (lambda: Subsample2d(2)(torch.zeros(1, 1, 4, 5)), "expected sides that are multiples of stride=2"),
        (lambda: Align2d(2)(torch.zeros(1, 1, 4, 5)), "expected sides that are multiples of stride=2"),
        (lambda: Align2d(0), "stride=0"),
    ],
)
def test_what_does_not_fit_is_told(make, told, without_type_checks):
    with pytest.raises(ValueError, match=told):
        make()


# What is interpolated


@pytest.mark.parametrize("count", [1, 4, 7, 9])
def test_anchors_say_what_is_nearest_to_given_values(count):
    """Against scipy's least squares; interpolation is a Gaussian process's mean, at its anchors nearly the values."""
    anchors, values = Anchors2d((3, 3), count), torch.randn(2, 5, 9)
    p = anchors.interpolation().detach()
    expected = lstsq(p.numpy(), values.flatten(0, 1).numpy().T)[0].T
    torch.testing.assert_close(
        anchors.values_for(values).flatten(0, 1), torch.as_tensor(expected), rtol=1e-8, atol=1e-9
    )
    places = [int(i) for i in anchors.places.detach() @ torch.tensor([3.0, 1.0])]
    assert len(set(places)) == count
    torch.testing.assert_close(p[places], torch.eye(count), rtol=0, atol=1e-3)  # the noise's variance is 1e-4
    layer = SparseConv2d(2, 5, 3, count)
    layer.set_kernel(values.reshape(5, 2, 3, 3))
    apart = (layer.kernel().detach().flatten(2) - values.reshape(5, 2, 9)).square().sum()
    least = (torch.as_tensor(expected) @ p.mT - values.flatten(0, 1)).square().sum()
    assert float(apart) == pytest.approx(float(least), rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("way, curvature", [("once", "kron"), ("twice", "kron"), ("once", "full")])
def test_gradients_in_the_lengthscale_against_differences(kind, curvature, way):
    make = {
        "conv": lambda: SparseConv2d(1, 2, 3, 5, padding=1, learn_places=True),
        "linear": lambda: SparseLinear2d(1, 2, 4, learn_places=True),
    }[kind]
    net = nn.Sequential(make(), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3))
    data = torch.randn(9, 1, 4, 4), torch.arange(9) % 3
    _, found = bws.evidence_gradient(net, data, curvature=curvature, way=way)
    names = [n for n, _ in net.named_parameters() if "anchors" in n]
    assert set(found) == set(names) and len(names) == {"conv": 2, "linear": 4}[kind]
    for name in names:
        parameter = net.get_parameter(name)
        flat, step = parameter.detach().view(-1), 1e-4
        for i in {0, len(flat) - 1}:
            around = []
            for sign in (1, -1):
                flat[i] += sign * step
                around.append(float(bws.log_evidence(net, data, curvature=curvature)))
                flat[i] -= sign * step
            slope = (around[0] - around[1]) / (2 * step)
            assert float(found[name].view(-1)[i]) == pytest.approx(slope, rel=1e-6, abs=1e-6)


def test_the_evidence_recovers_a_lengthscale():
    """Kernels drawn with ℓ = 2: within 10 %, where evidence is largest in ℓ and δ, weights at their MAP for each."""
    truth = SparseConv2d(1, 40, 5, 12, lengthscale=2.0, bias=False)
    nn.init.normal_(truth.weight)
    x = torch.randn(100, 1, 5, 5)
    y = truth(x).detach().flatten(1)
    y = y + torch.randn_like(y)
    layer = SparseConv2d(1, 40, 5, 12, bias=False)
    net = nn.Sequential(layer, nn.Flatten())

    @torch.no_grad()
    def lost(z):
        layer.anchors.log_lengthscale.fill_(z[0])
        design = x.flatten(1) @ layer.anchors.interpolation()
        ridge = design.mT @ design + math.exp(z[1]) * torch.eye(12)
        layer.weight.copy_(torch.linalg.solve(ridge, design.mT @ y).mT.unsqueeze(1))
        return -float(bws.log_evidence(net, (x, y), bws.Gaussian(1.0), "kron", prior={"0.weight": z[1]}))

    found = minimize(lost, (0.0, 1.0), method="Nelder-Mead", options={"xatol": 0.03, "fatol": 0.1}).x
    assert math.exp(found[0]) == pytest.approx(2.0, rel=0.1)
    assert found[1] == pytest.approx(0.0, abs=0.15)  # drawn with δ = 1: 480 weights leave 0.065


# What is equivariant


def test_turns_move_the_parts_and_their_maximum_is_invariant():
    net = nn.Sequential(StackTurns(), GroupConv2d(1, 3, 3, padding=1), nn.ReLU())
    x = torch.randn(2, 1, 6, 6)
    parts, turned = (net(image).unflatten(1, (4, 3)) for image in (x, x.rot90(1, (-2, -1))))
    torch.testing.assert_close(turned, parts.roll(-1, 1), rtol=0, atol=1e-14)
    for reduce in ("max", "mean"):
        pool = PoolGroup(4, reduce)
        torch.testing.assert_close(pool(turned.flatten(1, 2)), pool(parts.flatten(1, 2)), rtol=1e-14, atol=1e-15)
    assert repr(PoolGroup(4)) == "PoolGroup(4, reduce='max')"


@pytest.mark.parametrize("choose", ["example", "batch"])
def test_shifts_pass_through_the_subsampling(choose):
    """Of the kept positions: a shift of the image by two moves them by one, a shift by one moves none or one."""
    layer, x = Subsample2d(2, choose), torch.randn(5, 3, 6, 8)
    y = layer(x)
    assert y.shape == (5, 3, 3, 4)
    for rows in range(3):
        for columns in range(4):
            shifted = layer(x.roll((rows, columns), (-2, -1)))
            moves = [y.roll((r, c), (-2, -1)) for r in range(3) for c in range(4)]
            for image, datum in zip(shifted, range(5), strict=True):
                assert any(torch.equal(image, moved[datum]) for moved in moves)
    grids = [x[..., r::2, c::2] for r in range(2) for c in range(2)]
    best = [max(grids, key=lambda g, n=n: float((g if choose == "batch" else g[n]).max())) for n in range(5)]
    assert all(torch.equal(y[n], best[n][n]) for n in range(5))


def test_images_are_moved_onto_the_grid_whatever_their_shift():
    """A shift of the image leaves a multiple of the stride; the largest feature is on the grid."""
    layer, x = Align2d(2), torch.randn(5, 3, 6, 8)
    y = layer(x)
    for image in y:
        place = int(image.amax(0).argmax())
        assert place // 8 % 2 == 0 and place % 8 % 2 == 0
    for shift in ((1, 0), (0, 1), (3, 5)):
        for datum, moved in enumerate(layer(x.roll(shift, (-2, -1)))):
            assert any(torch.equal(moved, y[datum].roll((r, c), (-2, -1))) for r in (0, 2, 4) for c in (0, 2, 4, 6))


def test_one_grid_a_batch_has_no_evidence():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), Subsample2d(2, "batch"), nn.Flatten(), nn.Linear(8, 3))
    data = torch.randn(9, 1, 4, 4), torch.arange(9) % 3
    with pytest.raises(ValueError, match="batch"):
        bws.log_evidence(net, data)
    net[1] = Subsample2d(2)
    assert torch.isfinite(bws.log_evidence(net, data).total)


# What lies within what


def chain(bias=True):
    """Two parts of one channel in 3 × 3 images: parts within positions within all."""
    geometry = {"padding": 1, "padding_mode": "circular", "bias": bias}
    return {
        "gconv": GroupConv2d(1, 1, 3, parts=2, **geometry),
        "conv": nn.Conv2d(2, 2, 3, **geometry),
        "fc": Linear2d(2, 2, 3, bias=bias),
    }


def matrix_of(module, size=3):
    """A linear module without its bias, by its answers to unit images."""
    units = torch.eye(2 * size * size).reshape(-1, 2, size, size)
    with torch.no_grad():
        return (module(units) - module(torch.zeros(1, 2, size, size))).flatten(1).mT


@pytest.mark.parametrize("order", [("gconv", "conv", "fc"), ("fc", "gconv", "conv")])
def test_parts_lie_within_a_convolution_and_that_within_a_dense_map(order):
    modules = chain()
    places = places_of({name: modules[name] for name in order})
    assert {inner: (place.outer, place.kappa) for inner, place in places.items()} == {
        "gconv.weight": ("conv.weight", 2.0),
        "gconv.bias": ("conv.bias", 2.0),
        "conv.weight": ("fc.weight", 9.0),
        "conv.bias": ("fc.bias", 9.0),
    }
    lifted = places["gconv.weight"].lift(modules["gconv"].weight.detach())
    twin = chain()["conv"]
    with torch.no_grad():
        twin.weight.copy_(lifted)
        twin.bias.copy_(places["gconv.bias"].lift(modules["gconv"].bias))
        x = torch.randn(2, 2, 3, 3)
        torch.testing.assert_close(twin(x), modules["gconv"](x), rtol=1e-12, atol=1e-14)
    for place, inner, outer in ((p, i, p.outer) for i, p in places.items()):
        theta, phi = (modules[n.split(".")[0]].get_parameter(n.split(".")[1]).detach() for n in (inner, outer))
        theta, phi = torch.randn_like(theta), torch.randn_like(phi)
        assert float((place.lift(theta) * phi).sum()) == pytest.approx(float((theta * place.lower(phi)).sum()))
        torch.testing.assert_close(place.lower(place.lift(theta)), place.kappa * theta, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "others",
    [
        {"padding": 0},  # another geometry
        {"padding": 1, "padding_mode": "circular", "groups": 2},
    ],
)
def test_parts_do_not_lie_within_every_convolution(others):
    assert places_of({"gconv": chain()["gconv"], "conv": nn.Conv2d(2, 2, 3, **others)}) == {}


@pytest.mark.parametrize("left_out", ["", "fc", "gconv"])
def test_a_chain_is_one_sum(left_out):
    """Rebalanced it computes the same, with the least scatter: Kᵀ Σ⁻¹ K, Σ of all pathways together."""
    modules = {name: module for name, module in chain(bias=False).items() if name != left_out}
    net = nn.Sequential(Branches(**modules), nn.Flatten(), nn.Linear(18, 2))
    logs = {"0.gconv.weight": 0.3, "0.conv.weight": 1.1, "0.fc.weight": 2.0, "2.weight": 0.0, "2.bias": 0.0}
    pathways = dict(named_pathways(net))
    prior = {name: torch.tensor(logs[name]) for name in pathways}
    assert len(nested(pathways)) == len(modules) - 1
    x = torch.randn(3, 2, 3, 3)
    before, kernel = net(x), sum(matrix_of(m) for m in modules.values()).flatten()
    rebalance(pathways, prior)
    torch.testing.assert_close(net(x), before, rtol=1e-10, atol=1e-12)
    reached = []  # what a unit of each weight adds to the matrix of all, over its prior's square root
    for name, module in modules.items():
        kept = module.weight.detach().clone()
        for i in range(kept.numel()):
            with torch.no_grad():
                module.weight.zero_().view(-1)[i] = 1.0
                reached.append(matrix_of(module).flatten() / prior[f"0.{name}.weight"].exp().sqrt())
        with torch.no_grad():
            module.weight.copy_(kept)
    embedding = torch.stack(reached, -1)
    variance = embedding @ embedding.mT
    least = kernel @ torch.linalg.lstsq(variance, kernel, driver="gelsd").solution
    found = sum(prior[f"0.{name}.weight"].exp() * m.weight.detach().square().sum() for name, m in modules.items())
    assert float(found) == pytest.approx(float(least), rel=1e-8)

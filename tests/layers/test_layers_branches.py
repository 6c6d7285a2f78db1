"""Branches: modules side by side are one layer, counted jointly, whose strength is the first one's share."""

import copy
import pickle

import oracles
import pytest
import torch
from refusals import assert_refused
from torch import nn
from torch.func import jacrev

import bayesws as bws
from bayesws.layers import Branches, WSConv2d, WSLiftConv2d, layers_of

SIDE = 4


def conv_and_fc(reduce="mean", channels=2, dtype=torch.float64):
    size = channels * SIDE * SIDE
    fc = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, size), nn.Unflatten(1, (channels, SIDE, SIDE)))
    layer = Branches(conv=nn.Conv2d(1, channels, 3, padding=1), fc=fc, reduce=reduce).to(dtype)
    return layer


def net(reduce="mean", outputs=3, dtype=torch.float64):
    torch.manual_seed(0)
    head = nn.Linear(2 * SIDE * SIDE, outputs)
    return nn.Sequential(conv_and_fc(reduce), nn.Tanh(), nn.Flatten(), head).to(dtype)


def images(n=6, dtype=torch.float64):
    return torch.randn(n, 1, SIDE, SIDE, dtype=dtype)


def dense_twin(layer, x):
    """The convolution written out as a matrix, by its answers to unit images; the branches' matrices averaged or added.

    Both branches are affine: y = K x + b.
    """
    units = torch.eye(SIDE * SIDE, dtype=x.dtype).reshape(-1, 1, SIDE, SIDE)
    nothing = torch.zeros_like(units[:1])
    matrix, bias = layer.fc[1].weight.clone(), layer.fc[1].bias.clone()
    matrix += (layer.conv(units) - layer.conv(nothing)).flatten(1).T
    bias += layer.conv(nothing).flatten()
    scale = 0.5 if layer.reduce == "mean" else 1.0
    return (scale * (x.flatten(1) @ matrix.T + bias)).unflatten(1, (-1, SIDE, SIDE))


# What every layer must keep


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@torch.no_grad()
def test_equals_its_dense_twin(reduce):
    layer, x = conv_and_fc(reduce), images()
    torch.testing.assert_close(layer(x), dense_twin(layer, x), rtol=1e-12, atol=1e-13)  # sums in another order


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_gradients_against_finite_differences(reduce):
    layer, x = conv_and_fc(reduce, channels=1), images(1)
    names = [name for name, _ in layer.named_parameters()]

    def outputs(*values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(outputs, tuple(layer.parameters()))


def test_state_dict_round_trip():
    layer, other = conv_and_fc(), conv_and_fc()
    assert not torch.equal(layer(images()), other(images()))
    other.load_state_dict(layer.state_dict())
    x = images()
    assert torch.equal(layer(x), other(x))


def test_repr_tells_what_it_is():
    text = repr(conv_and_fc("sum"))
    for fragment in ("Branches", "reduce='sum'", "(conv): Conv2d", "(fc): Sequential"):
        assert fragment in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_device_and_type(dtype, device):
    y = conv_and_fc(dtype=dtype).to(device)(images(dtype=dtype).to(device))
    assert y.dtype == dtype and y.device.type == device


# One layer


def test_it_is_one_layer_whose_pathways_are_those_of_its_branches():
    found = layers_of(net())
    assert list(found) == ["0", "3"]
    layer = found["0"]
    assert list(layer.pathways) == ["conv.weight", "conv.bias", "fc.1.weight", "fc.1.bias"]
    assert list(layer.parts) == ["0.conv", "0.fc.1"] and layer.full_name("conv.bias") == "0.conv.bias"
    assert layer.sharing_pathways() == ("conv.weight", "fc.1.weight") and found["3"].sharing_pathways() == ()
    alone = layers_of(conv_and_fc())
    assert list(alone) == [""] and list(alone[""].pathways) == list(layer.pathways)


def test_branches_within_branches_are_the_outer_ones_parts():
    inner = Branches(a=nn.Linear(3, 2), b=nn.Linear(3, 2))
    (layer,) = layers_of(Branches(first=inner, second=nn.Linear(3, 2))).values()
    assert list(layer.parts) == ["first.a", "first.b", "second"] and layer.strength is None


@pytest.mark.parametrize("outputs, likelihood", [(3, "classification"), (2, "regression")])
@pytest.mark.parametrize("curvature", ["layer", "full", "exact_up_to"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_its_joint_block_counts_the_covariance_between_the_branches(reduce, curvature, outputs, likelihood):
    network, x = net(reduce, outputs), images()
    y = torch.arange(len(x)) % 3 if likelihood == "classification" else torch.randn(len(x), 2, dtype=torch.float64)
    names = oracles.weight_names(network)
    logs = {name: 0.3 * i - 0.5 for i, name in enumerate(names)}
    hessian = oracles.softmax_hessian if likelihood == "classification" else oracles.gaussian_hessian(1.0)
    h = oracles.dense_ggn(network, x, hessian, names)
    rows = oracles.spans(network, names)
    sizes = {name: rows[name].stop - rows[name].start for name in names}
    precisions = torch.cat([torch.tensor(logs[n], dtype=torch.float64).exp().expand(sizes[n]) for n in names])
    blocks = [names] if curvature == "full" else [[n for n in names if n.startswith(k)] for k in ("0.", "3.")]
    asked = bws.Curvature("kron", exact_up_to=10**6) if curvature == "exact_up_to" else curvature
    found = bws.log_evidence(network, (x, y), likelihood, asked, prior=logs)
    expected = 0.0
    for block in blocks:
        index = torch.cat([torch.arange(rows[n].start, rows[n].stop) for n in block])
        part, deltas = h[index][:, index], precisions[index]
        expected += oracles.occam_factor(part, deltas)
        gamma = oracles.effective_parameters(part, deltas).split([sizes[n] for n in block])
        for name, share in zip(block, gamma, strict=True):
            assert found.by_pathway[name].effective.item() == pytest.approx(share.sum().item(), rel=1e-10)
            assert found.by_pathway[name].occam is None
    assert found.occam.item() == pytest.approx(expected, rel=1e-10)
    separate = bws.log_evidence(network, (x, y), likelihood, "pathway", prior=logs)
    assert found.occam.item() < separate.occam.item() - 0.1  # there is a covariance to count


def test_a_layer_that_is_too_large_as_a_whole_has_no_exact_block():
    """The size that `exact_up_to` looks at is that of all branches together."""
    network, x = net(), images()
    y = torch.arange(len(x)) % 3
    largest = max(p.numel() for p in network[0].parameters())
    parts = [sum(p.numel for p in layer.pathways.values()) for layer in layers_of(network).values()]
    assert parts[1] < parts[0] - 1 and largest < parts[0]
    found = bws.log_evidence(network, (x, y), curvature=bws.Curvature("kron", exact_up_to=parts[0] - 1))
    assert found.by_pathway["0.conv.weight"].occam is not None and found.by_pathway["3.weight"].occam is None
    whole = bws.log_evidence(network, (x, y), curvature=bws.Curvature("kron", exact_up_to=parts[0]))
    assert whole.by_pathway["0.conv.weight"].occam is None


# Its strength


def test_the_strength_is_the_priors_correlation_of_entries_that_the_first_branch_ties():
    """Brute force: the kernel's prior covariance is J Λ⁻¹ Jᵀ, since the whole matrix is linear in the weights."""
    layer = conv_and_fc(channels=1)
    logs = {"conv.weight": 0.7, "fc.1.weight": -0.4}
    units = torch.eye(SIDE * SIDE, dtype=torch.float64).reshape(-1, 1, SIDE, SIDE)

    def matrix(values):
        zeros = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}
        return torch.func.functional_call(layer, zeros | values, (units,)).flatten(1).T

    values = {name: layer.get_parameter(name).detach() for name in logs}
    jacobians = jacrev(matrix)(values)
    parts = {
        n: j.reshape(SIDE**4, -1) @ j.reshape(SIDE**4, -1).T * torch.tensor(-logs[n], dtype=torch.float64).exp()
        for n, j in jacobians.items()
    }
    covariance = sum(parts.values())
    centre, below = 5 * SIDE * SIDE + 5, 9 * SIDE * SIDE + 9  # the convolution's centre at two positions of the image
    correlation = covariance[centre, below] / covariance[centre, centre]
    assert covariance[below, below] == covariance[centre, centre]
    found = layer.strength_at({name: torch.tensor(value, dtype=torch.float64) for name, value in logs.items()})
    assert found.item() == pytest.approx(correlation.item(), rel=1e-12)


def test_the_strength_of_a_sharing_branch_counts_both_of_its_pathways():
    layer = Branches(a=WSLiftConv2d(1, 2, 3, padding=1, stack="fixed"), b=nn.Conv2d(1, 2, 3), c=nn.Conv2d(1, 2, 1))
    logs = {"a.shared": 0.1, "a.free": 0.9, "b.weight": -0.2, "c.weight": 1.3}
    variances = {name: torch.tensor(-value, dtype=torch.float64).exp() for name, value in logs.items()}
    first = variances["a.shared"] + variances["a.free"]
    expected = first / (first + variances["b.weight"] + variances["c.weight"])
    given = {name: torch.tensor([value, value], dtype=torch.float64) for name, value in logs.items()}
    torch.testing.assert_close(layer.strength_at(given), expected.expand(2), rtol=1e-12, atol=0)


NO_STRENGTH = {
    "one branch": lambda: Branches(conv=nn.Conv2d(1, 1, 3)),
    "two layers deep": lambda: Branches(a=nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), b=nn.Linear(3, 3)),
    "nothing to train": lambda: Branches(a=nn.Linear(3, 3), b=nn.Identity()),
    "frozen": lambda: Branches(a=nn.Linear(3, 3), b=nn.Linear(3, 3).requires_grad_(False)),
}


@pytest.mark.parametrize("make", NO_STRENGTH.values(), ids=NO_STRENGTH)
def test_there_is_no_strength_where_no_prior_correlation_is_meant(make):
    (layer,) = layers_of(make()).values()
    assert layer.strength is None and layer.sharing_pathways() == ()


# Plain torch modules


def with_sharing(reduce="sum"):
    torch.manual_seed(0)
    inner = Branches(
        lift=WSLiftConv2d(1, 2, 3, padding=1, stack="dense"),
        plain=nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Unflatten(1, (2, 4))),
        reduce=reduce,
    )
    outer = Branches(
        ws=WSConv2d(2, 1, 3, padding=1, stack="fixed"),
        fc=nn.Sequential(
            nn.Flatten(), nn.Linear(8 * SIDE * SIDE, 4 * SIDE * SIDE), nn.Unflatten(1, (1, 4, SIDE, SIDE))
        ),
    )
    return nn.Sequential(inner, nn.Tanh(), outer, nn.Flatten(), nn.Linear(4 * SIDE * SIDE, 3)).double()


NETS = {"plain, mean": net, "plain, sum": lambda: net("sum"), "sharing": with_sharing}


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_hardened_they_are_torchs_own(make, tmp_path):
    network, x = make().eval(), images(5)
    hard = bws.harden(network)  # no example: every class but Branches is torch's own
    assert all(type(m).__module__.startswith("torch.") for m in hard.modules())
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(hard, (x[:2],), dynamic_shapes=({0: batch},)), tmp_path / "net.pt2")
    exported = torch.export.load(tmp_path / "net.pt2").module()
    with torch.no_grad():
        for other in (hard, pickle.loads(pickle.dumps(hard)), exported, bws.harden(network, x[:2])):
            torch.testing.assert_close(other(x), network(x), rtol=1e-12, atol=1e-13)
    assert not any("bayesws" in type(m).__module__ for m in hard.modules())
    assert any(isinstance(m, Branches) for m in network.modules())  # the network is left as it is


# Bad input

BAD = {
    "nothing": (lambda: Branches(), "no branches"),
    "reduction": (lambda: Branches(a=nn.Linear(1, 1), reduce="max"), "reduce='max': expected one of mean, sum"),
    "no module": (lambda: Branches(a=3), "branch 'a' of type int: expected an nn.Module"),
    "name": (lambda: Branches(**{"a b": nn.Linear(1, 1)}), "a branch named 'a b'"),
    "dots": (lambda: Branches(**{"a.b": nn.Linear(1, 1)}), "a branch named 'a.b'"),
    "taken": (lambda: Branches(forward=nn.Linear(1, 1)), "a branch named 'forward'"),
    "shapes": (
        lambda: Branches(conv=nn.Conv2d(1, 2, 3), fc=nn.Flatten())(torch.zeros(2, 1, 4, 4)),
        r"conv \(2, 2, 2, 2\), fc \(2, 16\): expected one",
    ),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_input_is_refused(call, message):
    assert_refused(call, message)


def test_one_module_under_two_names_is_refused():
    branch = nn.Linear(2, 2)
    assert_refused(lambda: Branches(a=branch, b=branch), "branch 'b' is a branch under another name")


def test_a_copy_is_independent():
    layer = conv_and_fc()
    twin, x = copy.deepcopy(layer), images()
    before = layer(x)
    with torch.no_grad():
        twin.conv.weight.zero_()
    assert torch.equal(layer(x), before)

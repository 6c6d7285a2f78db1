"""computed_once: the same numbers and gradients, one projection, nothing kept beyond the block."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.func import functional_call

from bayesws.layers import WSConv2d, WSLiftConv2d, WSLinear, computed_once
from bayesws.layers.cache import cut_from_parameters
from bayesws.sharing import doubly_stochastic

LAYERS = {
    "dense": lambda: WSConv2d(2, 3, 2, group_size=3, stack="dense", dtype=torch.float64),
    "dense, shared alone": lambda: WSConv2d(2, 3, 2, stack="dense", pathways=("shared",), dtype=torch.float64),
    "product": lambda: WSLiftConv2d(2, 3, 2, group_size=3, stack="product", dtype=torch.float64),
    "power": lambda: WSLinear(4, 3, stack="power", dtype=torch.float64),
    "fixed": lambda: WSLinear(4, 3, stack="fixed", group="cyclic-shifts", dtype=torch.float64),
    "one element": lambda: WSLinear(4, 3, group_size=1, stack="dense", dtype=torch.float64),
}
INPUTS = {WSConv2d: (2, 2, -1, 4, 4), WSLiftConv2d: (2, 2, 4, 4), WSLinear: (5, 4)}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def inputs(layer):
    shape = [layer.group_size if n == -1 else n for n in INPUTS[type(layer)]]
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture
def projections(monkeypatch):
    """A list that grows by one with every Sinkhorn projection."""
    calls, real = [], doubly_stochastic.sinkhorn
    monkeypatch.setattr(doubly_stochastic, "sinkhorn", lambda *args: calls.append(1) or real(*args))
    return calls


def loss_of(layer, x):
    """Everything that training and evidence ask a layer for."""
    total = layer(x).square().sum() + layer.representations().square().sum() + layer.sharing_strength()
    kernel = layer.kernel()
    for pathway in layer.pathways():
        incoming = torch.ones(kernel[:, :, 0, 0].numel(), dtype=x.dtype)
        if pathway.acts == "kernel":
            incoming = kernel.flatten(2).flatten(0, 1)
        total = total + pathway.pull_back(incoming).square().sum()
    return total


@every_layer
def test_same_value_and_gradients(make):
    layer = make()
    x, parameters = inputs(layer), list(layer.parameters())
    expected = loss_of(layer, x)
    gradients = torch.autograd.grad(expected, parameters, allow_unused=True)
    with computed_once(layer):
        found = loss_of(layer, x)
        again = torch.autograd.grad(found, parameters, allow_unused=True)
    assert torch.equal(found, expected)
    for a, b in zip(gradients, again, strict=True):
        # the same terms, added up in another order
        assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, rtol=1e-10, atol=1e-12))


@pytest.mark.parametrize("kind", ["dense", "dense, shared alone", "power"])
def test_one_projection(kind, projections):
    layer = LAYERS[kind]()
    x = inputs(layer)
    assert not projections, "building a layer needs no projection"
    loss_of(layer, x)
    without = len(projections)
    projections.clear()
    with computed_once(layer):
        loss_of(layer, x).backward()
        assert layer.kernel() is layer.kernel() and layer.convergence() is layer.convergence()
    assert len(projections) == 1 < without


def test_every_layer_of_a_network(projections):
    convolutions = [WSLiftConv2d(1, 2, 2, stack="dense"), WSConv2d(2, 2, 2, stack="dense")]
    net = nn.Sequential(*convolutions, nn.Flatten(), nn.ReLU())
    x = torch.randn(3, 1, 5, 5)
    with computed_once(net):
        assert torch.equal(net(x), net(x))
    assert len(projections) == 2
    net(x)
    assert len(projections) == 4


def test_a_block_without_sharing_layers():
    layer, x = nn.Linear(2, 2), torch.randn(3, 2)
    expected = layer(x)
    with computed_once(layer):
        assert torch.equal(layer(x), expected)


def added(first, second):
    """Sums of gradients, None counting as zero."""
    return [b if a is None else a if b is None else a + b for a, b in zip(first, second, strict=True)]


@every_layer
@pytest.mark.parametrize("within", [False, True])
def test_gradients_in_two_steps_are_those_in_one(make, within):
    """Down to the cut, and from there on; within `computed_once` too, whose values are whole again afterwards."""
    layer = make()
    x, parameters = inputs(layer), list(layer.parameters())
    expected = torch.autograd.grad(loss_of(layer, x), parameters, allow_unused=True)
    with computed_once(layer) if within else nullcontext():
        with cut_from_parameters(layer) as cut:
            loss = loss_of(layer, x)
            found = torch.autograd.grad(loss, [*parameters, *cut.leaves], allow_unused=True)
            pairs = [(v, g) for v, g in zip(cut.values, found[len(parameters) :], strict=True) if g is not None]
        found = found[: len(parameters)]
        if pairs:
            values, below = zip(*pairs, strict=True)
            onward = torch.autograd.grad(values, parameters, below, allow_unused=True, retain_graph=True)
            found = added(found, onward)
        whole = torch.autograd.grad(loss_of(layer, x), parameters, allow_unused=True)
    for a, b, c in zip(found, whole, expected, strict=True):
        assert (a is None) == (b is None) == (c is None)
        if c is not None:
            torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-12)  # the same sums in another order
            torch.testing.assert_close(b, c, rtol=1e-10, atol=1e-12)


def test_forgets_on_leaving(projections):
    layer = LAYERS["dense"]()
    with computed_once(layer):
        before = layer.kernel()
    with torch.no_grad():
        layer.shared.zero_()
    assert not torch.equal(layer.kernel(), before)
    with pytest.raises(KeyError), computed_once(layer):
        layer.kernel()
        raise KeyError
    assert layer.kernel() is not layer.kernel()


def test_nested_blocks(projections):
    layer, other = LAYERS["dense"](), LAYERS["dense"]()
    with computed_once(layer):
        kernel = layer.kernel()
        with computed_once(nn.ModuleList([layer, other])):
            assert layer.kernel() is kernel and other.kernel() is other.kernel()
        assert layer.kernel() is kernel and other.kernel() is not other.kernel()
    assert layer.kernel() is not kernel


@pytest.mark.parametrize("name", ["shared", "free", "stack.logits.0", "log_precisions.free"])
def test_a_parameter_that_changes_within_is_refused(name):
    layer = LAYERS["dense"]()
    with computed_once(layer):
        layer.kernel()
        with torch.no_grad():
            layer.get_parameter(name).add_(1)
        with pytest.raises(
            RuntimeError, match=r"WSConv2d changed within computed_once, after its \w+.*leave the block"
        ):
            layer.kernel()
    layer.kernel()


def test_a_parameter_may_change_before_anything_is_computed():
    layer = LAYERS["dense"]()
    with computed_once(layer):
        nn.init.zeros_(layer.shared)
        nn.init.zeros_(layer.free)
        assert not layer.kernel().any()


def test_what_was_computed_without_gradients_is_not_reused_with_them():
    layer = LAYERS["dense"]()
    with computed_once(layer):
        with torch.no_grad():
            assert not layer.kernel().requires_grad
        assert layer.kernel().requires_grad and layer.kernel() is layer.kernel()
        layer.kernel().sum().backward()


def test_what_was_computed_with_gradients_is_handed_out_without_them(projections):
    layer = LAYERS["dense"]()
    with computed_once(layer):
        kernel = layer.kernel()
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert torch.equal(layer.kernel(), kernel) and not layer.kernel().requires_grad
                assert not layer.representations().requires_grad
        assert layer.kernel() is kernel
    assert len(projections) == 1


def test_what_was_frozen_when_computed_is_computed_again():
    layer = LAYERS["dense"]()
    (logits,) = layer.structure()
    with computed_once(layer):
        logits.requires_grad_(False)
        assert not layer.representations().requires_grad
        logits.requires_grad_()
        assert layer.representations().requires_grad


def test_parameters_of_functional_call_are_taken(projections):
    layer = LAYERS["dense"]()
    x = inputs(layer)
    others = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    expected = functional_call(layer, others, (x,))
    with computed_once(layer):
        # before and after the layer's own values are there
        assert torch.equal(functional_call(layer, others, (x,)), expected)
        own = layer(x)
        assert torch.equal(functional_call(layer, others, (x,)), expected)
        assert torch.equal(layer(x), own) and not torch.equal(own, expected)
    assert torch.equal(layer(x), own)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_copy_made_within_takes_nothing_along(duplicate):
    layer = LAYERS["dense"]()
    with computed_once(layer):
        kernel = layer.kernel()
        twin = duplicate(layer)
        assert torch.equal(twin.kernel(), kernel) and twin.kernel() is not twin.kernel()


@pytest.mark.parametrize("pathways", [("shared",), ("shared", "free")])
def test_training_reads_nothing_back_outside_the_cpu(pathways):
    """On the meta device there are no values to read: an `.item()` or an `if` on a tensor would fail."""
    layer = WSConv2d(2, 3, 3, stack="dense", pathways=pathways, device="meta")
    with computed_once(layer):
        layer(torch.empty(2, 2, 4, 5, 5, device="meta")).sum().backward()
    assert all(p.grad is not None for name, p in layer.named_parameters() if "log_precisions" not in name)

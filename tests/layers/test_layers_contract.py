"""What every sharing layer must keep, whatever its stack and its pathways. A new layer is one more row of LAYERS."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev

from bayesws.layers import WSConv2d, WSConv3d, WSLiftConv2d, WSLiftConv3d, WSLinear
from bayesws.layers.contract import called_with
from bayesws.layers.weight_sharing import RESIDUAL_JITTER
from bayesws.sharing import Group

SWAP = Group("swap", torch.tensor([[0, 1, 2, 3], [2, 3, 0, 1]]))
CUBE = torch.arange(8).reshape(2, 2, 2)
HALF_TURN = Group("half turn of a cube", torch.stack([CUBE.flatten(), CUBE.flip(-1, -2).flatten()]))


def bias_of_all(layer):
    """(out·G,): the bias of every output channel on every group element."""
    if layer.bias is None or len(layer.bias) == layer.out_channels * layer.group_size:
        return layer.bias
    return torch.stack([layer.bias] * layer.group_size, 1).flatten()


def linear_twin(layer, x):
    w, (out, group) = layer.kernel(), (layer.out_features, layer.group_size)
    return F.linear(x, w.reshape(out * group, -1), bias_of_all(layer)).unflatten(-1, (out, group))


def conv_twin(layer, x):
    """torch's own convolution, its padding included, with the kernel written into it."""
    dims = len(layer.kernel_size)
    images = x.flatten(1, 2) if x.ndim == dims + 3 else x
    out, group = layer.out_channels, layer.group_size
    twin = (nn.Conv2d if dims == 2 else nn.Conv3d)(
        images.shape[1],
        out * group,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
        dtype=x.dtype,
    )
    with torch.no_grad():
        twin.weight.copy_(layer.kernel().reshape(twin.weight.shape))
        if layer.bias is not None:
            twin.bias.copy_(bias_of_all(layer))
    return twin(images).unflatten(1, (out, group))


@dataclass(frozen=True)
class Layer:
    make: Callable
    inputs: tuple[int, ...]
    group: str | Group  # of two elements
    twin: Callable


LAYERS = {
    "WSLinear": Layer(lambda **k: WSLinear(4, 3, **k), (5, 4), SWAP, linear_twin),
    "WSLiftConv2d": Layer(lambda **k: WSLiftConv2d(2, 3, 2, **k), (2, 2, 4, 3), "half-turns", conv_twin),
    "WSConv2d": Layer(lambda **k: WSConv2d(2, 2, 2, **k), (2, 2, 2, 4, 3), "half-turns", conv_twin),
    "WSLiftConv3d": Layer(lambda **k: WSLiftConv3d(2, 2, 2, **k), (2, 2, 3, 2, 3), HALF_TURN, conv_twin),
    "WSConv3d": Layer(lambda **k: WSConv3d(1, 2, 2, **k), (2, 1, 2, 2, 3, 3), HALF_TURN, conv_twin),
}
BOTH, SHARED, FREE = ("shared", "free"), ("shared",), ("free",)
SHARING = [
    *product(["fixed"], [BOTH, SHARED, FREE]),
    *product(["dense", "product", "power"], [BOTH, SHARED]),  # without sharing there is no stack to learn
]
CASES = [(layer, stack, pathways) for layer in LAYERS for stack, pathways in SHARING]
every_layer = pytest.mark.parametrize(
    "name, stack, pathways", CASES, ids=[f"{n}-{s}-{'+'.join(p)}" for n, s, p in CASES]
)


def build(name, stack, pathways, dtype=torch.float64, **more):
    """A layer of two elements, every parameter away from its start, its precisions different from each other."""
    group = LAYERS[name].group if stack == "fixed" else None
    arguments = {"group_size": 2, "stack": stack, "group": group, "pathways": pathways, "dtype": dtype} | more
    layer = LAYERS[name].make(**arguments)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return layer


def inputs(name, dtype=torch.float64):
    return torch.randn(*LAYERS[name].inputs, dtype=dtype)


@every_layer
@pytest.mark.parametrize("bias", [True, False, "free"])
def test_equals_its_dense_twin(name, stack, pathways, bias):
    layer, x = build(name, stack, pathways, bias=bias), inputs(name)
    # the same sums in another order
    torch.testing.assert_close(layer(x), LAYERS[name].twin(layer, x), rtol=1e-12, atol=1e-13)


@every_layer
def test_kernel_is_shared_plus_free(name, stack, pathways):
    layer = build(name, stack, pathways)
    kernel, r = layer.kernel(), layer.representations()
    assert kernel.shape == (layer.out_channels, 2, layer.in_channels, r.shape[-1])
    with torch.no_grad():
        if "free" in pathways or stack != "fixed":
            layer.free.zero_()
        if "shared" not in pathways:
            assert not layer.kernel().any()
            return
        for o in range(layer.out_channels):
            for g in range(2):
                for i in range(layer.in_channels):
                    expected = r[g] @ layer.shared[o, i]
                    torch.testing.assert_close(layer.kernel()[o, g, i], expected, rtol=1e-12, atol=1e-14)


@every_layer
def test_first_element_is_the_identity_and_stack_doubly_stochastic(name, stack, pathways):
    layer = build(name, stack, pathways)
    r, found = layer.representations(), layer.convergence()
    assert torch.equal(r[0], torch.eye(r.shape[-1], dtype=r.dtype)) and found.converged
    ones = torch.ones(r.shape[:2], dtype=r.dtype)
    for dim in (-1, -2):  # residual of at most 1e-9 in each of two factors of a product
        torch.testing.assert_close(r.sum(dim), ones, rtol=0, atol=3e-9)


@every_layer
def test_gradients_against_finite_differences(name, stack, pathways, tight_sinkhorn):
    layer, x = build(name, stack, pathways), inputs(name)[:1]
    names = [n for n, _ in layer.named_parameters()]

    def outputs(*values):
        return functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    # precisions that only scale a prior do not enter the output: zero on both sides
    assert torch.autograd.gradcheck(outputs, tuple(layer.parameters()))


@every_layer
@pytest.mark.parametrize("bias", [True, "free"])
def test_every_parameter_is_declared(name, stack, pathways, bias):
    layer = build(name, stack, pathways, bias=bias)
    declared = layer.pathways()
    weights = [p.parameter for p in declared]
    precisions = [p.log_precision for p in declared]
    found = {id(p) for p in [*weights, *precisions, *layer.structure()]}
    assert found == {id(p) for p in layer.parameters()}
    assert bool(layer.structure()) == (stack != "fixed")
    expected = [p for p in ("shared", "free") if p in pathways]
    if stack != "fixed" and "free" not in pathways:
        expected.append("residual")
    assert [p.name for p in declared] == [*expected, "bias"]


@every_layer
@pytest.mark.parametrize("bias", [True, "free"])
def test_state_dict_round_trip(name, stack, pathways, bias):
    layer, other = (build(name, stack, pathways, bias=bias) for _ in range(2))
    x = inputs(name)
    assert not torch.equal(layer(x), other(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))
    assert torch.equal(layer.sharing_strength(), other.sharing_strength())


@every_layer
@pytest.mark.parametrize("bias", [True, False, "free"])
def test_repr_tells_what_it_is(name, stack, pathways, bias):
    text = repr(build(name, stack, pathways, bias=bias))
    for fragment in (name, "group_size=2", stack, str(pathways), f"bias={bias!r}"):
        assert fragment in text


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_device_and_type_arguments(name, stack, pathways, dtype, device):
    layer = build(name, stack, pathways, dtype=dtype, device=device)
    for tensor in [*layer.parameters(), *layer.buffers(), layer.representations(), layer.kernel()]:
        assert tensor.dtype == dtype and tensor.device.type == device
    y = layer(inputs(name, dtype).to(device))
    assert y.dtype == dtype and y.device.type == device
    assert layer.sharing_strength().dtype == dtype


@every_layer
def test_moving_a_layer_moves_its_stack(name, stack, pathways, device):
    layer = build(name, stack, pathways, dtype=torch.float32).to(device=device, dtype=torch.float64)
    y = layer(inputs(name).to(device))
    assert y.dtype == torch.float64 and y.device.type == device


@every_layer
def test_deep_copy_is_independent(name, stack, pathways):
    import copy

    layer, x = build(name, stack, pathways), inputs(name)
    twin, before = copy.deepcopy(layer), layer(x)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(layer(x), before)


class KernelOf(nn.Module):
    """functional_call goes through forward."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer.kernel()


def prior_covariance(layer):
    """Cov of vec(W) under the prior, (out, G, in, d) twice: J Λ⁻¹ Jᵀ, exact since W is linear in the weights."""
    weights = {
        n: (getattr(layer, n).detach(), layer.log_precisions[p].exp().detach())
        for n, p in (("shared", "shared"), ("free", "free" if "free" in layer.pathway_names else "shared"))
        if getattr(layer, n) is not None
    }
    values = {f"layer.{n}": w for n, (w, _) in weights.items()}
    jacobians = jacrev(lambda v: functional_call(KernelOf(layer), v, ()))(values)
    shape = layer.kernel().shape
    covariance = 0
    for n, (_, precision) in weights.items():
        j = jacobians[f"layer.{n}"].reshape(shape.numel(), -1)
        covariance = covariance + j @ j.T / precision
    return covariance.detach().reshape(*shape, *shape)


@every_layer
def test_prior_of_the_copies(name, stack, pathways):
    """Var(W_g) = (1/α + 1/β) I whatever the stack, Cov(W_g, W_h) = R_g R_hᵀ / α, nothing between channels."""
    layer = build(name, stack, pathways)
    covariance, r = prior_covariance(layer), layer.representations().detach()
    log_precisions = {n: p.detach() for n, p in layer.log_precisions.items()}
    shared = (-log_precisions["shared"]).exp() if "shared" in pathways else torch.zeros(())
    free = (-log_precisions["free"]).exp() if "free" in pathways else torch.zeros(())
    if stack != "fixed" and "free" not in pathways:
        free = RESIDUAL_JITTER * shared  # what keeps the residual's root differentiable, 1e-4 of the variance
    variance = (shared + free) * torch.eye(r.shape[-1], dtype=r.dtype)
    out, channels = layer.out_channels, layer.in_channels
    for (o, i), (p, j) in product(product(range(out), range(channels)), repeat=2):
        for g, h in product(range(2), repeat=2):
            found = covariance[o, g, i, :, p, h, j, :]
            expected = torch.zeros_like(found)
            if (o, i) == (p, j):
                expected = variance if g == h else shared * r[g] @ r[h].T
            # R Rᵀ is divided by its norm, 1 up to the projection's residual of 1e-9, times 1/α of order one to ten
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


@every_layer
def test_sharing_strength_is_the_correlation_of_the_prior(name, stack, pathways):
    """ρ = mean over pairs g ≠ h of ‖R_g R_hᵀ‖²_F / d, times β / (α + β)."""
    layer = build(name, stack, pathways)
    r, precisions = layer.representations(), {n: p.exp() for n, p in layer.log_precisions.items()}
    expected = torch.zeros((), dtype=torch.float64)
    if "shared" in pathways:
        expected = (r[0] @ r[1].T).square().sum() / r.shape[-1]
        if "free" in pathways:
            expected = expected * precisions["free"] / (precisions["free"] + precisions["shared"])
    found = layer.sharing_strength()
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)  # a permutation's overlap is 1, to the residual
    assert 0 <= found <= 1


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_kernel_can_be_set(name, stack, pathways, dtype):
    layer = build(name, stack, pathways, dtype)
    kernel = torch.randn_like(layer.kernel())
    if "free" not in pathways:
        with pytest.raises(ValueError, match=r"pathways=\('shared',\): any kernel at all needs the free pathway"):
            layer.set_kernel(kernel)
        return
    layer.set_kernel(kernel)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5  # sums of at most 16 products of order one
    torch.testing.assert_close(layer.kernel(), kernel, rtol=0, atol=tolerance)
    with pytest.raises(ValueError, match=r"kernel of shape .*: expected \(\d, 2, "):
        layer.set_kernel(kernel[:1])


@pytest.mark.parametrize("stack", ["fixed", "dense", "product", "power"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_shared_part_of_a_kernel_is_the_least_squares_one(name, stack):
    layer = build(name, stack, BOTH)
    kernel, r = torch.randn_like(layer.kernel()), layer.representations().detach()
    layer.set_kernel(kernel)
    for o, i in product(range(layer.out_channels), range(layer.in_channels)):
        wanted = torch.linalg.lstsq(r.flatten(0, 1), kernel[o, :, i].reshape(-1, 1)).solution[:, 0]
        torch.testing.assert_close(layer.shared[o, i].detach(), wanted, rtol=1e-9, atol=1e-10)


def test_a_kernel_that_is_shared_leaves_nothing_to_the_free_pathway():
    layer = build("WSConv2d", "fixed", BOTH)
    w = torch.randn_like(layer.shared)
    layer.set_kernel(torch.einsum("gnm,oim->ogin", layer.representations(), w))
    torch.testing.assert_close(layer.shared.detach(), w, rtol=1e-12, atol=1e-14)
    assert layer.free.abs().max() < 1e-12


def test_tensors_in_the_place_of_parameters_reach_every_use_and_leave_nothing():
    """torch.func.functional_call leaves them in a module that stands twice in a network."""
    twice, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.bias = twice.bias
    net, x, before = nn.Sequential(twice, nn.Tanh(), twice, other), torch.randn(3, 2), twice.weight
    found = called_with(net, {"0.weight": torch.eye(2), "0.bias": torch.ones(2)}, x)
    expected = nn.functional.linear(torch.tanh(x + 1) + 1, other.weight, torch.ones(2))
    torch.testing.assert_close(found, expected)
    assert net[0].weight is net[2].weight is before and other.bias is twice.bias is net[0].bias

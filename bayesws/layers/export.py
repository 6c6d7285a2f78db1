"""From sharing layers back to plain torch modules, for use without this library."""

import copy
import operator
from collections.abc import Callable
from functools import reduce as fold
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, fx, nn

from bayesws.io.arguments import numbers
from bayesws.layers.branches import Branches
from bayesws.layers.cache import Deriving
from bayesws.layers.convert import replaced
from bayesws.layers.factored import GroupedLinear
from bayesws.layers.fold_group import FoldGroup, plain_weight
from bayesws.layers.group_conv import GroupConv2d
from bayesws.layers.group_head import GroupHead
from bayesws.layers.linear import WSLinear
from bayesws.layers.linear2d import Linear2d
from bayesws.layers.sparse import SparseConv2d
from bayesws.layers.tracing import is_plain, traced
from bayesws.layers.weight_sharing import WeightSharing

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
AGREEMENT = 1e-4  # relative: float32 in another order is far below, a batch size that was written down far above


def harden(source: Any, example: Shaped[Tensor, "batch ..."] | None = None) -> nn.Module:
    """A copy of a network in which every sharing layer is one plain layer with the effective kernel written into it.

    W_g = R_g w + L_g v_g is computed once and for all, so stacks, precisions and pathways vanish, dead ones and others:
    a fully shared layer becomes a group convolution with its turned copies side by side, a fully free one a plain
    convolution, each a single nn.Conv2d (nn.Linear) on flat channels, between nn.Flatten and nn.Unflatten where it was
    used with group axes. `Branches` become a small torch.fx.GraphModule that calls them. Outputs are the same up to
    rounding. The result is in eval mode, and trains as any plain network: its copies are no longer tied.

    Where all other modules are torch's own, the network keeps its classes and needs no example. Where some are not, as
    `models.WSCNN`, the run of an example is written down: a torch.fx.GraphModule that needs neither this library nor
    any class but torch's, for any batch size and for images of the example's size. Both can be pickled, and exported
    by torch.export. A network of your own classes may be had either way; without an example it keeps them.

    Args:
        source: a network, or a `FitResult` (its network).
        example: x (batch, ...), an input as the network takes it, on its device.

    Raises:
        ValueError: what is neither a network nor a fit, a network that needs an example, or that cannot be written
            down: see `traced`; a sharing layer of unknown kind.

    >>> from bayesws.layers.convert import share
    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    >>> harden(share(net))
    Sequential(
      (0): Conv2d(1, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): ReLU()
      (2): Flatten(start_dim=1, end_dim=-1)
      (3): Linear(in_features=288, out_features=10, bias=True)
    )
    """
    model = source if isinstance(source, nn.Module) else getattr(source, "model", None)
    if not isinstance(model, nn.Module):
        raise ValueError(f"a {type(source).__name__} to harden: expected a network or a FitResult")
    original, net = copy.deepcopy(model).eval(), copy.deepcopy(model)
    twins: dict[nn.Module, nn.Module] = {}
    for module in net.modules():
        if make := next((make for kind, make in TWINS if isinstance(module, kind)), None):
            twins[module] = make(module)
    net = replaced(net, twins)
    for module in reversed(list(net.modules())):  # what is within comes first
        if type(module) is Branches:
            net = replaced(net, {module: _graph_of(module)})
    net = net.eval()
    if strange := next((m for m in net.modules() if isinstance(m, Deriving)), None):
        raise ValueError(f"a {type(strange).__name__} to harden: expected WSLinear or a convolution of bayesws.layers")
    if is_plain(net):
        return net
    if example is None:
        if ours := next((m for m in net.modules() if _is_ours(m)), None):
            raise ValueError(
                f"a {type(ours).__name__} to harden: expected example=, an input such as data[:2], to write its "
                "forward down in torch's own terms"
            )
        return net
    return _written_down(net, original, example)


def _is_ours(module: nn.Module) -> bool:
    return any(cls.__module__.partition(".")[0] == "bayesws" for cls in type(module).__mro__)


def _twin(layer: WeightSharing) -> nn.Module:
    """The plain layer, between what folds the group axes into the channels and what unfolds them."""
    plain = _flat_twin(layer)
    if isinstance(layer, WSLinear):
        return nn.Sequential(plain, nn.Unflatten(-1, (layer.out_features, layer.group_size)))
    unfold = nn.Unflatten(1, (layer.out_channels, layer.group_size))
    return nn.Sequential(*[nn.Flatten(1, 2)] * layer.on_features, plain, unfold)


@torch.no_grad()
def _flat_twin(layer: WeightSharing) -> nn.Module:
    """nn.Linear or nn.Conv1d/2d/3d with the effective kernel and bias, on flat channels."""
    weight, bias = plain_weight(layer), layer.flat_bias()
    arguments: dict[str, Any] = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    kernel_size: Any = getattr(layer, "kernel_size", ())
    if isinstance(layer, WSLinear):
        plain: Any = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], **arguments)
    elif len(kernel_size) in CONVOLUTIONS:
        for name in ("stride", "padding", "dilation", "padding_mode"):
            arguments[name] = getattr(layer, name)
        cls = CONVOLUTIONS[len(kernel_size)]
        plain = nn.utils.skip_init(cls, weight.shape[1], weight.shape[0], kernel_size, **arguments)
    else:
        raise ValueError(f"a {type(layer).__name__} to harden: expected WSLinear or a convolution of bayesws.layers")
    plain.weight.copy_(weight)
    if bias is not None:
        plain.bias.copy_(bias)
    return plain


@torch.no_grad()
def _flat_head(head: GroupHead) -> nn.Module:
    """The group axis folded into the channels, and nn.Linear on them."""
    return nn.Sequential(nn.Flatten(), _linear(head.kernel().flatten(1), head.bias))


@torch.no_grad()
def _dense(layer: Linear2d) -> nn.Module:
    """nn.Linear on the flat image, and the image again."""
    plain = _linear(layer.weight, layer.bias)
    return nn.Sequential(nn.Flatten(), plain, nn.Unflatten(1, (layer.out_channels, *layer.out_size)))


@torch.no_grad()
def _by_parts(layer: GroupConv2d) -> nn.Module:
    """nn.Conv2d with a group for every part, all with the same kernel."""
    bias = None if layer.bias is None else layer.bias.repeat(layer.parts)
    return _convolution(layer, layer.weight.repeat(layer.parts, 1, 1, 1), bias, layer.parts)


@torch.no_grad()
def _dense_kernel(layer: SparseConv2d) -> nn.Module:
    """nn.Conv2d with the interpolated kernel."""
    return _convolution(layer, layer.kernel(), layer.bias)


@torch.no_grad()
def _without_anchors(layer: GroupedLinear) -> nn.Module:
    """The same map with the interpolated kernel."""
    new: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    plain = GroupedLinear(layer.groups, layer.in_features, layer.out_features, **new)
    plain.weight.copy_(layer.kernel().flatten(0, 1))
    return plain


def _convolution(layer: Any, weight: Tensor, bias: Tensor | None, groups: int = 1) -> nn.Conv2d:
    """nn.Conv2d of a layer's geometry with these numbers."""
    arguments: dict[str, Any] = {n: getattr(layer, n) for n in ("stride", "padding", "dilation", "padding_mode")}
    arguments |= {"groups": groups, "bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    channels = weight.shape[1] * groups, weight.shape[0]
    plain: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, *channels, layer.kernel_size, **arguments)
    plain.weight.copy_(weight)
    if bias is not None and plain.bias is not None:
        plain.bias.copy_(bias)
    return plain


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """nn.Linear with these numbers."""
    arguments: dict[str, Any] = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    plain: nn.Linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], **arguments)
    plain.weight.copy_(weight)
    if bias is not None:
        plain.bias.copy_(bias)
    return plain


# the first kind that a module is of says what makes its twin
TWINS: tuple[tuple[type[nn.Module], Callable[[Any], nn.Module]], ...] = (
    (FoldGroup, lambda module: _flat_twin(module.layer)),
    (WeightSharing, _twin),
    (GroupHead, _flat_head),
    (Linear2d, _dense),
    (GroupConv2d, _by_parts),
    (SparseConv2d, _dense_kernel),
    (GroupedLinear, _without_anchors),
)


def _graph_of(branches: Branches) -> fx.GraphModule:
    """x to the branches, to their sum or mean, as a graph of torch's own; the branches are the same modules."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    outputs = [graph.call_module(name, (x,)) for name, _ in branches.named_children()]
    total = fold(lambda sum_so_far, output: graph.call_function(operator.add, (sum_so_far, output)), outputs)
    if branches.reduce == "mean":
        total = graph.call_function(operator.truediv, (total, branches.mean_of))
    graph.output(total)
    return fx.GraphModule(branches, graph, type(branches).__name__)


@torch.no_grad()
def _written_down(net: nn.Module, original: nn.Module, example: Tensor) -> nn.Module:
    """The net's graph, if it computes what the original does, on the example and on one datum more."""
    if not isinstance(example, Tensor | np.ndarray):
        raise ValueError(f"an example of type {type(example).__name__}: expected a tensor, such as data[:2]")
    example = numbers("example", example)
    if not len(example):
        raise ValueError("an example with no data: expected at least one input, such as data[:2]")
    batches = example, torch.cat([example, example[:1]])
    try:
        wanted = [original(x) for x in batches]  # first of all: it says in its own words if an example does not fit
    except (RuntimeError, TypeError) as error:
        told = f"an example of shape {tuple(example.shape)} and type {example.dtype} on {example.device}"
        raise ValueError(f"{told}: expected what the network takes: {str(error).splitlines()[0]}") from error
    graph = traced(net, example)
    for x, expected in zip(batches, wanted, strict=True):
        try:
            agrees = torch.allclose(graph(x), expected, AGREEMENT, AGREEMENT * float(expected.abs().max()))
        except RuntimeError:  # shapes that do not fit
            agrees = False
        if not agrees:
            raise ValueError(
                f"a {type(net).__name__} to harden: written down at a batch of {len(example)}, it computes something "
                f"else at {len(x)}; take the batch size from x.shape[0], and branch on no values"
            )
    return graph

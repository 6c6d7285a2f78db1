"""From plain torch modules to sharing layers: the same function at the start, and room to share from there."""

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import nn

from bayesws.io.arguments import shown, whole
from bayesws.layers.conv import WSConv2d, WSConv3d, WSLiftConv2d, WSLiftConv3d
from bayesws.layers.fold_group import FoldGroup
from bayesws.layers.linear import WSLinear
from bayesws.layers.sharing_settings import Sharing, SharingKeywords
from bayesws.layers.weight_sharing import WeightSharing

LARGEST_STACK = 2**18  # entries of one d × d representation: d up to 512
CONVOLUTIONS: dict[type, tuple[Any, Any]] = {  # lifting, and between
    nn.Conv2d: (WSLiftConv2d, WSConv2d),
    nn.Conv3d: (WSLiftConv3d, WSConv3d),
}
GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
Plain = nn.Linear | nn.modules.conv._ConvNd


@dataclass(frozen=True)
class Conversion:
    """What `share` makes of one linear or convolutional layer.

    Attributes:
        name: the layer's path in the network; "" for the network itself.
        kind: its class, such as "Conv2d".
        becomes: the sharing layer's class, such as "WSConv2d"; None where it stays as it is.
        reason: why it stays; "" where it does not.
    """

    name: str
    kind: str
    becomes: str | None
    reason: str = ""


def share(
    model: nn.Module,
    sharing: Sharing | None = None,
    *,
    keep: tuple[str, ...] = (),
    largest_stack: int = LARGEST_STACK,
    **keywords: Unpack[SharingKeywords],
) -> nn.Module:
    """A copy of any torch network whose layers may share weights; at the start it computes the same function.

    Every nn.Conv2d and nn.Linear whose number of outputs is a multiple of G becomes a sharing layer on flat channels
    (see `FoldGroup`): its output o·G + g is copy g of channel o. A convolution reads its input's channels in the same
    way, as in / G channels on G group elements, where an earlier layer (in the order of the modules) was shared and
    makes so many channels; else, as for images, it lifts. Canonical weights w are the least-squares ones, the free
    pathway holds the exact rest, biases stay one per output, precisions start at 1 as those of any new layer.

    What cannot be shared stays as it is, like a head of 10 classes with G = 4: `sharing_plan`, with the same arguments,
    lists every layer, what becomes of it and why. A module that is used at several places stays one module; dtype,
    device, mode and requires_grad are kept. Soft stacks start at random (torch.manual_seed).

    Args:
        model: the network; it is left as it is.
        sharing: how the G copies of every layer share; pathways must hold "free", ("free",) alone shares nothing.
        keep: names of layers to leave as they are.
        largest_stack: layers whose representations would have more than so many entries d × d stay as they are.
        keywords: the attributes of a `Sharing` in its place.

    Raises:
        ValueError: nothing that can be shared (with the first layer's reason), pathways without "free", names in `keep`
            that are no layer of the network; whatever `Sharing` refuses.

    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    >>> share(net)[0].layer.kernel().shape  # (out, G, in, positions)
    torch.Size([2, 4, 1, 9])
    >>> sharing_plan(net)[1].reason
    '10 outputs are no multiple of group_size=4'
    """
    sharing = Sharing.of(sharing, Sharing(), **keywords)
    outcomes = _outcomes(model, sharing, keep, largest_stack)
    if not any(outcome.trial for outcome in outcomes):
        why = "it has no nn.Linear and no convolution"
        if outcomes:
            why = f"layer {outcomes[0].name!r}: {outcomes[0].reason}"
        raise ValueError(f"nothing in this {type(model).__name__} can be shared: {why}")
    model = copy.deepcopy(model)
    twins: dict[nn.Module, nn.Module] = {}
    for outcome in outcomes:
        if outcome.trial is not None:
            layer: Any = model.get_submodule(outcome.name)
            new = _sharing_layer(layer, outcome.trial.on_features, layer.weight.device, sharing)
            _take_over(new, layer)
            twins[layer] = FoldGroup(new).train(layer.training)
    return replaced(model, twins)


def sharing_plan(
    model: nn.Module,
    sharing: Sharing | None = None,
    *,
    keep: tuple[str, ...] = (),
    largest_stack: int = LARGEST_STACK,
    **keywords: Unpack[SharingKeywords],
) -> tuple[Conversion, ...]:
    """What `share` makes of every linear and convolutional layer of a network, and why some stay as they are.

    Args: those of `share`.

    Raises:
        ValueError: pathways without "free", names in `keep` that are no layer of the network; whatever `Sharing`
            refuses.
    """
    sharing = Sharing.of(sharing, Sharing(), **keywords)
    return tuple(
        Conversion(o.name, o.kind, None if o.trial is None else type(o.trial).__name__, o.reason)
        for o in _outcomes(model, sharing, keep, largest_stack)
    )


def replaced(model: nn.Module, twins: dict[nn.Module, nn.Module]) -> nn.Module:
    """The network with modules put in the place of others, wherever these are used; changed in place."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in twins:
                parent._modules[name] = twins[child]
    return twins.get(model, model)


@dataclass(frozen=True)
class _Outcome:
    """A layer, and the sharing layer that it becomes, without its numbers (on the meta device)."""

    name: str
    kind: str
    trial: WeightSharing | None
    reason: str


def _outcomes(model: nn.Module, sharing: Sharing, keep: tuple[str, ...], largest_stack: int) -> list[_Outcome]:
    if not isinstance(model, nn.Module):
        raise ValueError(f"a {type(model).__name__} to share: expected an nn.Module")
    if "free" not in sharing.pathways:
        raise ValueError(
            f"pathways={sharing.pathways!r}: expected 'free' among them; without it the function would change"
        )
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)}
    if not isinstance(keep, tuple | list) or not all(isinstance(name, str) for name in keep):
        raise ValueError(f"keep={shown(keep)}: expected names of layers, in a tuple")
    whole("largest_stack", largest_stack)
    if unknown := [name for name in keep if name not in layers]:
        raise ValueError(f"keep={shown(unknown[0])}: expected linear or convolutional layers among {', '.join(layers)}")
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    made: set[int] = set()  # numbers of channels that shared convolutions make
    found = []
    for name, layer in layers.items():
        reason = "its name is in keep" if name in keep else _obstacle(layer, owners, sharing.group_size)
        trial = None
        if not reason:
            trial, reason = _trial(layer, made, sharing, largest_stack)
        if trial is not None and not isinstance(layer, nn.Linear):
            made.add(layer.out_channels)
        found.append(_Outcome(name, type(layer).__name__, trial, reason))
    return found


def _obstacle(layer: Plain, owners: Counter[int], group_size: int) -> str:
    """Why a layer cannot be shared, whatever the stack; "" if it can."""
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if type(layer) is not nn.Linear and type(layer) not in CONVOLUTIONS:
        known = ", ".join(cls.__name__ for cls in CONVOLUTIONS)
        return f"a {type(layer).__name__}: expected one of Linear, {known}, and no subclass"
    if not isinstance(layer.weight, nn.Parameter):
        return "its weight is computed from other parameters"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return "it has hooks"
    if any(owners[id(p)] > 1 for p in layer.parameters()):
        return "its parameters are used by another layer, too"
    if layer.weight.dtype not in (torch.float32, torch.float64):
        return f"its weights are {layer.weight.dtype}: expected float32 or float64"
    if getattr(layer, "groups", 1) != 1:
        return f"a convolution with groups={layer.groups}: expected groups=1"
    if outputs % group_size:
        return f"{outputs} outputs are no multiple of group_size={group_size}"
    return ""


def _trial(layer: Plain, made: set[int], sharing: Sharing, largest_stack: int) -> tuple[WeightSharing | None, str]:
    """The sharing layer without its numbers, or why there is none."""
    on_features = not isinstance(layer, nn.Linear) and layer.in_channels in made
    try:
        trial = _sharing_layer(layer, on_features, "meta", sharing)
    except ValueError as error:
        return None, str(error)
    d = trial.free.shape[-1]
    if sharing.group_size > 1 and d * d > largest_stack:
        return None, f"representations of {d} × {d} are larger than largest_stack={largest_stack} entries"
    return trial, ""


def _sharing_layer(layer: Plain, on_features: bool, device: torch.device | str, sharing: Sharing) -> WeightSharing:
    """A new sharing layer with a plain one's sizes."""
    sharing, group_size = sharing.as_network, sharing.group_size
    new: dict[str, Any] = {"sharing": sharing, "device": device, "dtype": layer.weight.dtype}
    new["bias"] = False if layer.bias is None else "both" if sharing.contains else "free"
    if isinstance(layer, nn.Linear):
        return WSLinear(layer.in_features, layer.out_features // group_size, **new)
    lifting, between = CONVOLUTIONS[type(layer)]
    geometry = {name: getattr(layer, name) for name in GEOMETRY}
    cls, inputs = (between, layer.in_channels // group_size) if on_features else (lifting, layer.in_channels)
    return cls(inputs, layer.out_channels // group_size, **geometry, **new)


@torch.no_grad()
def _take_over(new: WeightSharing, layer: Plain) -> None:
    """Give a sharing layer the kernel and the bias of a plain one, and train as much of it."""
    new.set_kernel(layer.weight.reshape(new.free.shape))
    new.requires_grad_(layer.weight.requires_grad)
    if layer.bias is not None:
        new.set_bias(layer.bias)
        for name, parameter in (("bias", new.bias), ("offset", new.offset)):
            if parameter is not None:
                parameter.requires_grad_(layer.bias.requires_grad)
                new.log_precisions[name].requires_grad_(layer.bias.requires_grad)

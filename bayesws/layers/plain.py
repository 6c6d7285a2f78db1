"""What torch's own layers declare: linear maps, convolutions in one to three dimensions, affine normalisation."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from bayesws.layers.contract import Declaration, Factors, Pathway, declare
from bayesws.layers.patches import geometry_of, image_patches

Reshape = Callable[[Tensor], Tensor]


@declare.register
def _(module: nn.Linear) -> Declaration:
    return Declaration(
        kernel_and_bias(module.weight, module.bias), patches=_last_axis_first, responses=_last_axis_first
    )


@declare.register(nn.Conv1d)
@declare.register(nn.Conv2d)
@declare.register(nn.Conv3d)
def _(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Declaration:
    geometry = geometry_of(module)
    return Declaration(
        _trained([_grouped_weight(module.weight, module.groups), _bias(module.bias)]),
        patches=lambda x: image_patches(x, *geometry),
        responses=lambda y: y.flatten(2),
    )


@declare.register(nn.BatchNorm1d)
@declare.register(nn.BatchNorm2d)
@declare.register(nn.BatchNorm3d)
def _(module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> Declaration | None:
    def normalised(x: Tensor) -> Tensor:
        return F.batch_norm(x, module.running_mean, module.running_var, None, None, False, 0.0, module.eps)

    if module.affine and module.running_mean is None and any(p.requires_grad for p in module.parameters()):
        raise ValueError(
            f"{type(module).__name__} without running statistics: expected each datum's output to depend on that datum "
            "alone; use track_running_stats=True or freeze it (requires_grad_(False))"
        )
    return _affine(module, lambda x: _channels(normalised(x)), _channels)


@declare.register
def _(module: nn.GroupNorm) -> Declaration | None:
    return _affine(module, lambda x: _channels(F.group_norm(x, module.num_groups, eps=module.eps)), _channels)


@declare.register(nn.InstanceNorm1d)
@declare.register(nn.InstanceNorm2d)
@declare.register(nn.InstanceNorm3d)
def _(module: nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d) -> Declaration | None:
    def normalised(x: Tensor) -> Tensor:
        mean, variance = module.running_mean, module.running_var
        return F.instance_norm(x, mean, variance, None, None, mean is None, 0.0, module.eps)

    return _affine(module, lambda x: _channels(normalised(x)), _channels)


@declare.register
def _(module: nn.LayerNorm) -> Declaration | None:
    def elements(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, module.weight.numel()).mT

    return _affine(module, lambda x: elements(F.layer_norm(x, module.normalized_shape, eps=module.eps)), elements)


@declare.register
def _(module: nn.RMSNorm) -> Declaration | None:
    def elements(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, module.weight.numel()).mT

    return _affine(module, lambda x: elements(F.rms_norm(x, module.normalized_shape, eps=module.eps)), elements)


def kernel_and_bias(weight: object, bias: object) -> tuple[Pathway, ...]:
    """Of a layer whose parameters are its kernel, (fan_out, ...), and a number for every row of it, or None."""
    return _trained([_weight(weight), _bias(bias)])


def _affine(module: nn.Module, patches: Reshape, responses: Reshape) -> Declaration | None:
    """y = s ∘ x̂ + b, elementwise in the normalised input x̂; nothing where the module has no affine parameters."""
    pathways = _trained([_scale(getattr(module, "weight", None)), _bias(getattr(module, "bias", None))])
    return Declaration(pathways, patches, responses) if pathways else None


def _trained(pathways: list[Pathway | None]) -> tuple[Pathway, ...]:
    return tuple(p for p in pathways if p is not None and p.parameter.requires_grad)


def _as_parameter(value: object) -> nn.Parameter | None:
    """A module's weight or bias; None where it has none, or where it is computed (torch's parametrizations)."""
    return value if isinstance(value, nn.Parameter) else None


def _weight(weight: object) -> Pathway | None:
    """The pathway of a layer whose parameter is its effective kernel itself."""
    parameter = _as_parameter(weight)
    return None if parameter is None else _kernel(parameter)


def _kernel(weight: nn.Parameter) -> Pathway:
    return Pathway("weight", weight, None, lambda k: k.flatten(-2), lambda a, b: [(a, b)], picks_entries=True)


def _grouped_weight(weight: object, groups: int) -> Pathway | None:
    """A convolution's weight; with groups the kernel of the whole layer is block diagonal in its channels."""
    parameter = _as_parameter(weight)
    return None if parameter is None else block_diagonal(parameter, groups)


def block_diagonal(weight: nn.Parameter, blocks: int) -> Pathway:
    """The pathway of a layer whose parameter is its kernel's blocks, one after the other, (blocks · rows, ...)."""
    if blocks == 1:
        return _kernel(weight)

    def factors(a: Tensor, b: Tensor) -> Factors:
        return list(zip(a, b, strict=True))

    return Pathway("weight", weight, None, lambda k: k.flatten(-3), factors, picks_entries=True, blocks=blocks)


def _bias(bias: object) -> Pathway | None:
    """The pathway of a plain bias: one number per output channel."""
    parameter = _as_parameter(bias)
    if parameter is None:
        return None
    return Pathway("bias", parameter, None, lambda g: g, lambda a, b: [(a, b)], acts="bias")


def _scale(weight: object) -> Pathway | None:
    """The pathway of a factor on every element of a normalised input."""
    parameter = _as_parameter(weight)
    if parameter is None:
        return None
    return Pathway("weight", parameter, None, lambda g: g, lambda a, b: [(a, b)], acts="scale")


def _last_axis_first(x: Tensor) -> Tensor:
    """(batch, ..., features) to (batch, features, positions)."""
    return x.reshape(x.shape[0], -1, x.shape[-1]).mT


def _channels(x: Tensor) -> Tensor:
    """(batch, channels, ...) to (batch, channels, positions)."""
    return x.flatten(2) if x.ndim > 2 else x.unsqueeze(-1)

"""FactoredLinear2d: a map of all positions through one number a pair of channels, a dense map's cheap relative."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.layers.anchors import Anchors2d, structure_of
from bayesws.layers.contract import Declaration, Factors, declare
from bayesws.layers.linear2d import ImageMap
from bayesws.layers.plain import block_diagonal, kernel_and_bias
from bayesws.layers.sizes import check_sizes


class GroupedLinear(nn.Module):
    """y[k] = W[k] x[k] for every group k: a linear map of its own for each, nothing between them.

    Where features are positions of a grid, W[k] = P' u[k] Pᵀ may be interpolated from anchors among them.

    Args:
        groups: how many there are.
        in_features, out_features: of one group.
        anchors_in, anchors_out: of P and P'; None interpolates nothing.
        device, dtype: as for `torch.nn.Linear`.

    Shapes: x (batch, groups, in_features) to y (batch, groups, out_features). Parameter: `weight` (groups ·
    out_features, in_features), with anchors their numbers in the place of features.

    Raises:
        ValueError: sizes below one, an input of another shape.
    """

    def __init__(
        self,
        groups: int,
        in_features: int,
        out_features: int,
        *,
        anchors_in: Anchors2d | None = None,
        anchors_out: Anchors2d | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(groups=groups, in_features=in_features, out_features=out_features)
        super().__init__()
        self.groups, self.in_features, self.out_features = groups, in_features, out_features
        self.anchors_in, self.anchors_out = anchors_in, anchors_out
        rows = out_features if anchors_out is None else anchors_out.count
        columns = in_features if anchors_in is None else anchors_in.count
        self.weight = nn.Parameter(torch.empty(groups * rows, columns, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights as nn.Linear does, U(±1/√fan_in)."""
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Float[Tensor, "batch groups in"]) -> Float[Tensor, "batch groups out"]:
        """Apply the layer."""
        if x.ndim != 3 or tuple(x.shape[1:]) != (self.groups, self.in_features):
            raise ValueError(
                f"input of shape {tuple(x.shape)}: expected (batch, {self.groups}, {self.in_features}) for this "
                "GroupedLinear"
            )
        if self.anchors_in is not None:
            x = x @ self.anchors_in.interpolation()
        y = torch.einsum("koi,bki->bko", self.weight.unflatten(0, (self.groups, -1)), x)
        return y if self.anchors_out is None else y @ self.anchors_out.interpolation().mT

    def kernel(self) -> Float[Tensor, "groups out in"]:
        """W, at all positions."""
        found = self.weight.unflatten(0, (self.groups, -1))
        if self.anchors_in is not None:
            found = found @ self.anchors_in.interpolation().mT
        return found if self.anchors_out is None else self.anchors_out.interpolation() @ found

    def at_anchors(self, kernel: Tensor) -> Tensor:
        """P'ᵀ K P of the blocks of a kernel's gradient, (..., out_features, in_features)."""
        if self.anchors_in is not None:
            kernel = kernel @ self.anchors_in.interpolation()
        return kernel if self.anchors_out is None else self.anchors_out.interpolation().mT @ kernel

    def factors(self, a: Tensor, b: Tensor) -> Factors:
        """Pᵀ A P and P'ᵀ B P' of every group."""
        a, b = _at(self.anchors_in, a), _at(self.anchors_out, b)
        return [(a, b)] if self.groups == 1 else list(zip(a, b, strict=True))

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.groups}, {self.in_features}, {self.out_features}"


def _at(anchors: Anchors2d | None, moments: Tensor) -> Tensor:
    """Pᵀ M P."""
    if anchors is None:
        return moments
    p = anchors.interpolation()
    return p.mT @ moments @ p


@declare.register
def _(module: GroupedLinear) -> Declaration:
    pathway = block_diagonal(module.weight, module.groups)
    anchors = [a for a in (module.anchors_in, module.anchors_out) if a is not None]
    if anchors:
        pathway = replace(
            pathway,
            pull_back=lambda k: module.at_anchors(k).flatten(-2 if module.groups == 1 else -3),
            factors=module.factors,
            picks_entries=False,
        )
    return Declaration(
        (pathway,) if module.weight.requires_grad else (),
        patches=lambda x: x.flatten(1).unsqueeze(-1),
        responses=lambda y: y.flatten(1).unsqueeze(-1),
        structure=structure_of(anchors),
    )


class Offset2d(nn.Module):
    """y = x + b, b a number for every channel: the bias of maps that have none of their own.

    Args:
        channels: of the images.
        device, dtype: as for `torch.nn.Linear`.

    Shapes: x and y (batch, channels, H, W). Parameter: `bias` (channels,), at the start 0.
    """

    def __init__(
        self, channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        check_sizes(channels=channels)
        super().__init__()
        self.channels = channels
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """No bias."""
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Add it."""
        return x + self.bias[:, None, None]

    def extra_repr(self) -> str:
        """Channels."""
        return f"{self.channels}"


@declare.register
def _(module: Offset2d) -> Declaration:
    return Declaration(
        kernel_and_bias(None, module.bias), patches=lambda x: x.flatten(2), responses=lambda y: y.flatten(2)
    )


class FactoredLinear2d(ImageMap):
    """y[o, p] = Σ_c V[p, o, c] Σ_q U[o, c, q] x[c, q] + b[o]: a map of all positions with U and V in the place of W.

    Two linear maps in a chain, each with a precision of its own: for every pair of channels one number that all
    positions q give, and from it all positions p. The matrix of `Linear2d` with rank one a pair of channels, with
    out · in · (q + p) weights in the place of out · in · q · p.

    Args:
        in_channels, out_channels, size, out_size, device, dtype: as for `Linear2d`.
        bias: whether to add b, a number for every channel.
        anchors_in, anchors_out: of U and of V; `SparseLinear2d` has them.

    Shapes: x (batch, in_channels, height, width) to y (batch, out_channels, out height, out width). Parameters:
    `inner.weight` U (in · out, positions), `outer.weight` V (out · out positions, in), `offset.bias` (out,).

    Raises:
        ValueError: sizes below one, an input of another shape.

    Reference: arXiv 2310.06131 (F-FC).

    >>> FactoredLinear2d(3, 10, 32, 16)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int | Sequence[int],
        out_size: int | Sequence[int] | None = None,
        bias: bool = True,
        *,
        anchors_in: Anchors2d | None = None,
        anchors_out: Anchors2d | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, size, out_size)
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        self.inner = GroupedLinear(in_channels, math.prod(self.size), out_channels, anchors_in=anchors_in, **new)
        positions = math.prod(self.out_size)
        self.outer = GroupedLinear(out_channels, in_channels, positions, anchors_out=anchors_out, **new)
        self.offset = Offset2d(out_channels, **new) if bias else nn.Identity()

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height_out width_out"]:
        """Apply the layer."""
        self.check(x)
        pairs = self.inner(x.flatten(2)).transpose(1, 2)  # (batch, out, in)
        return self.offset(self.outer(pairs).unflatten(-1, self.out_size))

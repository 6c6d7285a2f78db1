"""FactoredLinear2d: a map of all positions through one number a pair of channels, a dense map's cheap relative."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.layers.contract import Declaration, declare
from bayesws.layers.linear2d import pair_of
from bayesws.layers.plain import block_diagonal, kernel_and_bias
from bayesws.layers.sizes import check_sizes


class GroupedLinear(nn.Module):
    """y[k] = W[k] x[k] for every group k: a linear map of its own for each, nothing between them.

    Args:
        groups: how many there are.
        in_features, out_features: of one group.
        device, dtype: as for `torch.nn.Linear`.

    Shapes: x (batch, groups, in_features) to y (batch, groups, out_features). Parameter: `weight` (groups ·
    out_features, in_features).

    Raises:
        ValueError: sizes below one, an input of another shape.
    """

    def __init__(
        self,
        groups: int,
        in_features: int,
        out_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(groups=groups, in_features=in_features, out_features=out_features)
        super().__init__()
        self.groups, self.in_features, self.out_features = groups, in_features, out_features
        self.weight = nn.Parameter(torch.empty(groups * out_features, in_features, device=device, dtype=dtype))
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
        return torch.einsum("koi,bki->bko", self.weight.unflatten(0, (self.groups, -1)), x)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.groups}, {self.in_features}, {self.out_features}"


@declare.register
def _(module: GroupedLinear) -> Declaration:
    pathway = block_diagonal(module.weight, module.groups)
    return Declaration(
        (pathway,) if module.weight.requires_grad else (),
        patches=lambda x: x.flatten(1).unsqueeze(-1),
        responses=lambda y: y.flatten(1).unsqueeze(-1),
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


class FactoredLinear2d(nn.Module):
    """y[o, p] = Σ_c V[p, o, c] Σ_q U[o, c, q] x[c, q] + b[o]: a map of all positions with U and V in the place of W.

    Two linear maps in a chain, each with a precision of its own: for every pair of channels one number that all
    positions q give, and from it all positions p. The matrix of `Linear2d` with rank one a pair of channels, with
    out · in · (q + p) weights in the place of out · in · q · p.

    Args:
        in_channels, out_channels, size, out_size, device, dtype: as for `Linear2d`.
        bias: whether to add b, a number for every channel.

    Shapes: x (batch, in_channels, height, width) to y (batch, out_channels, out height, out width). Parameters:
    `inner.weight` U (in · out, positions), `outer.weight` V (out · out positions, in), `offset.bias` (out,).

    Raises:
        ValueError: sizes below one, an input of another shape.

    Reference: arXiv 2310.06131, section 4 (F-FC).

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(in_channels=in_channels, out_channels=out_channels)
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.size = pair_of("size", size)
        self.out_size = self.size if out_size is None else pair_of("out_size", out_size)
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        self.inner = GroupedLinear(in_channels, math.prod(self.size), out_channels, **new)
        self.outer = GroupedLinear(out_channels, in_channels, math.prod(self.out_size), **new)
        self.offset = Offset2d(out_channels, **new) if bias else nn.Identity()

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height_out width_out"]:
        """Apply the layer."""
        if x.ndim != 4 or tuple(x.shape[1:]) != (self.in_channels, *self.size):
            raise ValueError(
                f"input of shape {tuple(x.shape)}: expected (batch, {self.in_channels}, {self.size[0]}, "
                f"{self.size[1]}) for this FactoredLinear2d; give the size of its input as size="
            )
        pairs = self.inner(x.flatten(2)).transpose(1, 2)  # (batch, out, in)
        return self.offset(self.outer(pairs).unflatten(-1, self.out_size))

    def extra_repr(self) -> str:
        """Channels and sizes."""
        sizes = f"size={self.size}" + (f", out_size={self.out_size}" if self.out_size != self.size else "")
        return f"{self.in_channels}, {self.out_channels}, {sizes}"

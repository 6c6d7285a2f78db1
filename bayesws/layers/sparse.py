"""Kernels and maps of all positions that are interpolated from anchors: smooth, and with few weights."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.io.arguments import share
from bayesws.layers.anchors import Anchors2d, structure_of
from bayesws.layers.cache import Deriving
from bayesws.layers.contract import Declaration, Factors, Pathway, declare
from bayesws.layers.factored import FactoredLinear2d
from bayesws.layers.linear2d import pair_of
from bayesws.layers.patches import convolved2d, geometry_of, geometry_told, image_patches
from bayesws.layers.plain import kernel_and_bias
from bayesws.layers.sizes import check_sizes


class SparseConv2d(Deriving):
    """A convolution whose kernel is interpolated from anchors: k[o, i, t] = Σ_z P[t, z] u[o, i, z].

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias, padding_mode, device, dtype: as for
            `torch.nn.Conv2d`, with one group.
        anchors: how many; see `Anchors2d`.
        lengthscale, learn_places: of the anchors.

    Shapes: as for nn.Conv2d. Parameters: `weight` u (out_channels, in_channels, anchors), `bias` (out_channels,), and
    those of `anchors`, which are hyperparameters.

    Raises:
        ValueError: as for `Anchors2d`; sizes below one.

    Reference: arXiv 2310.06131 (S-CONV).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        anchors: int,
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        *,
        lengthscale: float = 1.0,
        learn_places: bool = False,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(in_channels=in_channels, out_channels=out_channels)
        super().__init__()
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        mode: Any = {"padding_mode": padding_mode}
        like = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, **mode)  # torch's checks
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = like.kernel_size, like.stride, like.padding
        self.dilation, self.padding_mode = like.dilation, padding_mode
        self.anchors = Anchors2d(like.kernel_size, anchors, lengthscale, learn_places=learn_places, **new)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, anchors, **new))
        self.bias = nn.Parameter(torch.empty(out_channels, **new)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a kernel and bias as nn.Conv2d does, U(±1/√fan_in), the anchors as near to that kernel as they can."""
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        kernel = self.weight.new_empty(self.out_channels, self.in_channels, *self.kernel_size)
        self.set_kernel(nn.init.uniform_(kernel, -bound, bound))
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    @torch.no_grad()
    def set_kernel(self, kernel: Float[Tensor, "out in rows columns"]) -> None:
        """Take the weights whose kernel is nearest to a dense one, by least squares."""
        self.weight.copy_(self.anchors.values_for(kernel.flatten(2)))

    def kernel(self) -> Float[Tensor, "out in rows columns"]:
        """k."""
        return (self.weight @ self.anchors.interpolation().mT).unflatten(-1, self.kernel_size)

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height_out width_out"]:
        """Apply the layer."""
        return convolved2d(x, self.kernel(), self.bias, geometry_of(self))

    def patches(self, x: Tensor) -> Tensor:
        """(batch, fan_in, positions): what the kernel is multiplied with."""
        return image_patches(x, *geometry_of(self))

    def at_anchors(self, by_tap: Tensor) -> Tensor:
        """The last axis, (in · taps), to (in · anchors) by Pᵀ."""
        taps = by_tap.unflatten(-1, (self.in_channels, -1))
        return (taps @ self.anchors.interpolation()).flatten(-2)

    def factors(self, a: Tensor, b: Tensor) -> Factors:
        """Pᵀ A P by channels, and B."""
        return [(self.at_anchors(self.at_anchors(a).mT), b)]

    def extra_repr(self) -> str:
        """Channels and geometry."""
        return f"{self.in_channels}, {self.out_channels}, {geometry_told(self)}" + ", bias=False" * (self.bias is None)


@declare.register
def _(module: SparseConv2d) -> Declaration:
    weight = Pathway(
        "weight", module.weight, None, lambda k: module.at_anchors(k).flatten(-2), lambda a, b: module.factors(a, b)
    )
    pathways = [*[weight] * module.weight.requires_grad, *kernel_and_bias(None, module.bias)]
    structure = structure_of([module.anchors])
    return Declaration(tuple(pathways), module.patches, lambda y: y.flatten(2), structure)


class SparseLinear2d(FactoredLinear2d):
    """A `FactoredLinear2d` whose U and V are interpolated from anchors among the positions.

        U[o, c, q] = Σ_z P[q, z] u[o, c, z]        V[p, o, c] = Σ_z P'[p, z] v[o, c, z]

    Args:
        in_channels, out_channels, size, out_size, bias, device, dtype: as for `FactoredLinear2d`.
        anchors: share of the positions of either grid that are anchors, at least one.
        lengthscale, learn_places: of the anchors; see `Anchors2d`.

    Shapes: as for `FactoredLinear2d`. Parameters: `inner.weight` u (in · out, anchors), `outer.weight` v (out ·
    anchors, in), `offset.bias` (out,), and those of the anchors of either, which are hyperparameters.

    Raises:
        ValueError: as for `FactoredLinear2d` and `Anchors2d`.

    Reference: arXiv 2310.06131 (S-FC).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int | Sequence[int],
        out_size: int | Sequence[int] | None = None,
        bias: bool = True,
        *,
        anchors: float = 0.5,
        lengthscale: float = 1.0,
        learn_places: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        share("anchors", anchors, "a share of the positions, in (0, 1]", one=True)
        settings: dict[str, Any] = {"lengthscale": lengthscale, "learn_places": learn_places}
        settings |= {"device": device, "dtype": dtype}
        grids = pair_of("size", size), pair_of("out_size", size if out_size is None else out_size)
        made = [Anchors2d(grid, max(1, round(anchors * math.prod(grid))), **settings) for grid in grids]
        super().__init__(
            *(in_channels, out_channels, size, out_size, bias),
            anchors_in=made[0],
            anchors_out=made[1],
            device=device,
            dtype=dtype,
        )

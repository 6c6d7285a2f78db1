"""GroupConv2d: one convolution for each part of the channels, as for images stacked in their four quarter turns."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.layers.contract import Declaration, declare
from bayesws.layers.patches import convolved2d, geometry_of, geometry_told, image_patches
from bayesws.layers.plain import kernel_and_bias
from bayesws.layers.sizes import check_sizes


class GroupConv2d(nn.Module):
    """y_s = k * x_s + b for every part s of the channels: the same kernel for all parts, nothing between them.

    Where the parts are an image's turns (`StackTurns`), a turn of the image moves the parts of the output by one: the
    group convolution of arXiv 2310.06131, which does not mix the group's elements. One that does is `WSConv2d` with a
    fixed stack. Beside an nn.Conv2d of all channels in `Branches` it lies within its directions (see `containment`).

    Args:
        in_channels, out_channels: of one part.
        kernel_size, stride, padding, dilation, padding_mode, device, dtype: as for `torch.nn.Conv2d`.
        parts: how many there are.
        bias: whether to add b (out_channels,).

    Shapes: x (batch, parts · in_channels, H, W), part after part, to y (batch, parts · out_channels, H', W').
    Parameters: `weight` (out_channels, in_channels, *kernel_size), `bias` (out_channels,).

    Raises:
        ValueError: sizes below one, an input with other channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        *,
        parts: int = 4,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(in_channels=in_channels, out_channels=out_channels, parts=parts)
        super().__init__()
        new: dict[str, Any] = {"device": device, "dtype": dtype, "padding_mode": padding_mode, "bias": bias}
        like = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, **new)  # torch's checks
        self.in_channels, self.out_channels, self.parts = in_channels, out_channels, parts
        self.kernel_size, self.stride, self.padding = like.kernel_size, like.stride, like.padding
        self.dilation, self.padding_mode = like.dilation, padding_mode
        self.weight, self.bias = like.weight, like.bias

    def reset_parameters(self) -> None:
        """Draw weights and bias as nn.Conv2d does, U(±1/√fan_in)."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height_out width_out"]:
        """Apply the layer."""
        if x.ndim != 4 or x.shape[1] != self.parts * self.in_channels:
            raise ValueError(
                f"input of shape {tuple(x.shape)}: expected (batch, {self.parts} · {self.in_channels}, height, width) "
                "for this GroupConv2d"
            )
        y = convolved2d(self._parts(x), self.weight, self.bias, geometry_of(self))
        return y.unflatten(0, (-1, self.parts)).flatten(1, 2)

    def _parts(self, x: Tensor) -> Tensor:
        """(batch, parts · channels, ...) to (batch · parts, channels, ...)."""
        return x.unflatten(1, (self.parts, -1)).flatten(0, 1)

    def _by_datum(self, vectors: Tensor) -> Tensor:
        """(batch · parts, size, positions) to (batch, size, parts · positions)."""
        return vectors.unflatten(0, (-1, self.parts)).transpose(1, 2).flatten(2)

    def patches(self, x: Tensor) -> Tensor:
        """(batch, fan_in, parts · positions): what the kernel is multiplied with."""
        return self._by_datum(image_patches(self._parts(x), *geometry_of(self)))

    def responses(self, y: Tensor) -> Tensor:
        """(batch, out_channels, parts · positions): the products."""
        return self._by_datum(self._parts(y).flatten(2))

    def extra_repr(self) -> str:
        """Channels, parts and geometry."""
        text = f"{self.in_channels}, {self.out_channels}, {geometry_told(self)}, parts={self.parts}"
        return text + ", bias=False" * (self.bias is None)


@declare.register
def _(module: GroupConv2d) -> Declaration:
    return Declaration(kernel_and_bias(module.weight, module.bias), module.patches, module.responses)

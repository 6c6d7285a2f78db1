"""Linear2d: a linear map of all positions of an image, which has every convolution between these sizes in it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.layers.contract import Declaration, declare
from bayesws.layers.plain import kernel_and_bias
from bayesws.layers.sizes import check_sizes


class ImageMap(nn.Module):
    """What maps from all positions of an image to all positions of another have in common: their sizes.

    Args:
        in_channels, out_channels: of the images.
        size: height and width of the input, or one number for both.
        out_size: of the output; None is that of the input.

    Raises:
        ValueError: sizes below one.
    """

    def __init__(
        self, in_channels: int, out_channels: int, size: int | Sequence[int], out_size: int | Sequence[int] | None
    ) -> None:
        check_sizes(in_channels=in_channels, out_channels=out_channels)
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.size = pair_of("size", size)
        self.out_size = self.size if out_size is None else pair_of("out_size", out_size)

    def check(self, x: Tensor) -> None:
        """Raise ValueError for an input of another shape."""
        if x.ndim != 4 or tuple(x.shape[1:]) != (self.in_channels, *self.size):
            raise ValueError(
                f"input of shape {tuple(x.shape)}: expected (batch, {self.in_channels}, {self.size[0]}, "
                f"{self.size[1]}) for this {type(self).__name__}; give the size of its input as size="
            )

    def extra_repr(self) -> str:
        """Channels and sizes."""
        sizes = f"size={self.size}" + (f", out_size={self.out_size}" if self.out_size != self.size else "")
        return f"{self.in_channels}, {self.out_channels}, {sizes}"


class Linear2d(ImageMap):
    """y[o, p] = Σ_{i, q} W[o, p, i, q] x[i, q] + b[o, p]: from all positions q to all positions p, nothing shared.

    Beside an nn.Conv2d in `Branches` it is the free pathway of a layer that may or may not be a convolution: the
    convolution lies within its directions (see `containment`), and the two are accounted for jointly.

    Args:
        in_channels, out_channels: of the images.
        size: height and width of the input, or one number for both.
        out_size: of the output; None is that of the input.
        bias: whether to add b, a number for every channel and position.
        device, dtype: as for `torch.nn.Linear`.

    Shapes: x (batch, in_channels, height, width) to y (batch, out_channels, out height, out width). Parameters:
    `weight` (out_channels · out positions, in_channels · positions), `bias` (out_channels · out positions,).

    Raises:
        ValueError: sizes below one, an input of another shape.

    Reference: arXiv 2310.06131 (FC).

    >>> Linear2d(3, 10, 32)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10, 32, 32])
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
        super().__init__(in_channels, out_channels, size, out_size)
        shape = out_channels * math.prod(self.out_size), in_channels * math.prod(self.size)
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(shape, **new))
        self.bias = nn.Parameter(torch.empty(shape[0], **new)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias as nn.Linear does, U(±1/√fan_in)."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height_out width_out"]:
        """Apply the layer."""
        self.check(x)
        y = nn.functional.linear(x.flatten(1), self.weight, self.bias)
        return y.unflatten(1, (self.out_channels, *self.out_size))

    def extra_repr(self) -> str:
        """Channels, sizes, and whether there is a bias."""
        return f"{super().extra_repr()}, bias={self.bias is not None}"


def pair_of(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width, from one number for both or from two.

    Raises:
        ValueError: another number of them, a side below one.
    """
    sides = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"{name}={size!r}: expected one number, or height and width")
    check_sizes(**{f"{name} {side}": length for side, length in zip(("height", "width"), sides, strict=True)})
    return sides


@declare.register
def _(module: Linear2d) -> Declaration:
    return Declaration(
        kernel_and_bias(module.weight, module.bias),
        patches=lambda x: x.flatten(1).unsqueeze(-1),
        responses=lambda y: y.flatten(1).unsqueeze(-1),
    )

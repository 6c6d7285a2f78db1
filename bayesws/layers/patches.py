"""The patches that a convolution in one, two or three dimensions multiplies with its kernel."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

Sizes = tuple[int, ...]
Geometry = tuple[Sizes, Sizes, str | Sizes, Sizes, str]


def geometry_of(module: Any) -> Geometry:
    """Kernel size, stride, padding, dilation and padding mode of a convolution, as `image_patches` takes them."""
    return module.kernel_size, module.stride, module.padding, module.dilation, module.padding_mode


def geometry_told(module: Any) -> str:
    """For a repr: the kernel's size, and what else is not torch's default."""
    size, stride, padding, dilation, mode = geometry_of(module)
    others = {"stride": (stride, 1), "padding": (padding, 0), "dilation": (dilation, 1)}
    told = [f"{n}={value}" for n, (value, plain) in others.items() if value != (plain,) * len(size)]
    return ", ".join([f"kernel_size={size}", *told, *[f"padding_mode={mode!r}"] * (mode != "zeros")])


def convolved2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """F.conv2d, its padding as nn.Conv2d has it."""
    kernel_size, stride, padding, dilation, mode = geometry
    return F.conv2d(pad_image(x, kernel_size, padding, dilation, mode), weight, bias, stride, 0, dilation)


def image_patches(
    x: Tensor, kernel_size: Sizes, stride: Sizes, padding: str | Sizes, dilation: Sizes, padding_mode: str
) -> Tensor:
    """(batch, channels, *spatial) to (batch, channels · ∏ kernel_size, positions), as torch orders a kernel.

    Raises:
        ValueError: one datum without a batch.
    """
    if x.ndim != 2 + len(kernel_size):
        raise ValueError(
            f"a convolution of {len(kernel_size)} axes is given {tuple(x.shape)}: expected (batch, channels, ...); "
            "keep the batch as its first dimension"
        )
    x = pad_image(x, kernel_size, padding, dilation, padding_mode)
    dims = len(kernel_size)
    for axis, (size, step, apart) in enumerate(zip(kernel_size, stride, dilation, strict=True)):
        x = x.unfold(2 + axis, apart * (size - 1) + 1, step)[..., ::apart]
    # (batch, channels, *positions, *kernel) to (batch, channels, *kernel, *positions): views, and one copy in an order
    # that reads rows of the image at once (on a CPU 3 to 8 times faster than F.unfold)
    x = x.permute(0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    return x.flatten(2 + dims).flatten(1, 1 + dims)


def pad_image(x: Tensor, kernel_size: Sizes, padding: str | Sizes, dilation: Sizes, padding_mode: str) -> Tensor:
    """Pad (batch, channels, *spatial) as torch's convolutions do; `padding` may be "same" or "valid"."""
    if padding == "valid":
        return x
    sides: list[int] = []
    for axis in reversed(range(len(kernel_size))):  # F.pad starts at the last axis
        if padding == "same":
            total = dilation[axis] * (kernel_size[axis] - 1)
            sides += [total // 2, total - total // 2]
        else:
            sides += [int(padding[axis])] * 2
    if not any(sides):
        return x
    return F.pad(x, sides, mode="constant" if padding_mode == "zeros" else padding_mode)

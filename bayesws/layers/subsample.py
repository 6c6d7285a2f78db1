"""Every stride-th position, the grid chosen by the features, so that shifts of the image pass through."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.layers.sizes import check_sizes

CHOICES = ("example", "batch")


class Subsample2d(nn.Module):
    """Of the stride² grids of positions the one that holds the largest feature: equivariant subsampling.

    An image that is shifted chooses the shifted grid, so that its features are shifted, too; a fixed grid would see
    others.

    Args:
        stride: between positions that are kept.
        choose: "example", one grid an image. "batch", one a batch as published: an image's output then depends on the
            others of its batch, and has no evidence.

    Shapes: x (batch, channels, H, W) to (batch, channels, H / stride, W / stride).

    Raises:
        ValueError: a size below one, an unknown choice; images whose sides are no multiple of the stride.

    Reference: arXiv 2310.06131.

    >>> Subsample2d(2)(Tensor([[[[0.0, 1.0], [5.0, 2.0]]]]))
    tensor([[[[5.]]]])
    """

    def __init__(self, stride: int = 2, choose: str = "example") -> None:
        check_sizes(stride=stride)
        super().__init__()
        if choose not in CHOICES:
            raise ValueError(f"choose={choose!r}: expected one of {', '.join(CHOICES)}")
        self.stride, self.choose = stride, choose

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels rows columns"]:
        """Keep the positions of one grid."""
        step = self.stride
        check_multiples(x, step)
        grids = x.unflatten(-1, (-1, step)).unflatten(-3, (-1, step))  # (..., rows, step, columns, step)
        grids = grids.movedim(-3, -2).flatten(-2)  # (batch, channels, rows, columns, grids)
        largest = grids.flatten(1, 3).amax(1)  # (batch, grids)
        if self.choose == "batch":
            largest = largest.amax(0, keepdim=True).expand_as(largest)
        chosen = largest.argmax(-1)[:, None, None, None, None].expand(*grids.shape[:-1], 1)
        return grids.gather(-1, chosen).squeeze(-1)

    def extra_repr(self) -> str:
        """Stride and choice."""
        return f"stride={self.stride}, choose={self.choose!r}"


class Align2d(nn.Module):
    """Every image moved circularly until its largest feature lies on the grid of every stride-th position.

    Before maps that keep this grid, in the place of `Subsample2d` after them. A shifted image comes out as the same
    one, moved by a multiple of the stride, whatever the maps are: one choice for all of them, so that a strided
    convolution with circular padding lies within the directions of a `Linear2d` beside it.

    Args:
        stride: of the grid.

    Shapes: x and y (batch, channels, H, W).

    Raises:
        ValueError: a size below one; images whose sides are no multiple of the stride.

    >>> Align2d(2)(Tensor([[[[0.0, 1.0], [5.0, 2.0]]]]))
    tensor([[[[5., 2.],
              [0., 1.]]]])
    """

    def __init__(self, stride: int = 2) -> None:
        check_sizes(stride=stride)
        super().__init__()
        self.stride = stride

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Move every image."""
        check_multiples(x, self.stride)
        height, width = x.shape[-2:]
        largest = x.detach().amax(1).flatten(1).argmax(1)
        rows = _counted_from(largest // width % self.stride, height)
        columns = _counted_from(largest % width % self.stride, width)
        places = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
        flat = x.flatten(2)
        return flat.gather(-1, places[:, None].expand_as(flat)).unflatten(-1, (height, width))

    def extra_repr(self) -> str:
        """The stride."""
        return f"stride={self.stride}"


def check_multiples(x: Tensor, stride: int) -> None:
    """Raise ValueError for images whose sides are no multiple of the stride."""
    if x.shape[-2] % stride or x.shape[-1] % stride:
        raise ValueError(f"images of shape {tuple(x.shape)}: expected sides that are multiples of stride={stride}")


def _counted_from(first: Tensor, length: int) -> Tensor:
    """All places of a circle, from `first` (batch,) on: (batch, length)."""
    return (first[:, None] + torch.arange(length, device=first.device)) % length

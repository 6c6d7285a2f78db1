"""Subsample2d: every stride-th position, the grid chosen by the features, so that shifts of the image pass through."""

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
        if x.shape[-2] % step or x.shape[-1] % step:
            raise ValueError(f"images of shape {tuple(x.shape)}: expected sides that are multiples of stride={step}")
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

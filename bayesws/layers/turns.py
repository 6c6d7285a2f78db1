"""An image's quarter turns side by side, and what is the same for all of them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.layers.sizes import check_sizes

TURNS = 4


class StackTurns(nn.Module):
    """x to its four quarter turns, anticlockwise, part after part: a turn of x moves the parts by one.

    Shapes: x (batch, channels, side, side) to (batch, 4 · channels, side, side).

    Raises:
        ValueError: images that are not square.

    Reference: arXiv 2310.06131, the networks of several groups.

    >>> StackTurns()(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))[0, 1]
    tensor([[2., 4.],
            [1., 3.]])
    """

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch parts height width"]:
        """Turn the images."""
        if x.shape[-1] != x.shape[-2]:
            raise ValueError(f"images of shape {tuple(x.shape)}: expected square ones, to be turned")
        return torch.cat([x.rot90(turns, (-2, -1)) for turns in range(TURNS)], 1)


class PoolGroup(nn.Module):
    """The maximum, or the mean, over the parts of the channels: what makes an output the same for all parts.

    Args:
        group_size: how many parts there are.
        reduce: "max" or "mean".

    Shapes: x (batch, group_size · channels, ...), part after part, to (batch, channels, ...).

    Raises:
        ValueError: another reduction; channels that are no multiple of the group's size.
    """

    def __init__(self, group_size: int = TURNS, reduce: str = "max") -> None:
        check_sizes(group_size=group_size)
        super().__init__()
        if reduce not in ("max", "mean"):
            raise ValueError(f"reduce={reduce!r}: expected 'max' or 'mean'")
        self.group_size, self.reduce = group_size, reduce

    def forward(self, x: Float[Tensor, "batch parts ..."]) -> Float[Tensor, "batch channels ..."]:
        """Pool."""
        if x.shape[1] % self.group_size:
            raise ValueError(f"{x.shape[1]} channels: expected a multiple of group_size={self.group_size}")
        parts = x.unflatten(1, (self.group_size, -1))
        return parts.amax(1) if self.reduce == "max" else parts.mean(1)

    def extra_repr(self) -> str:
        """Size and reduction."""
        return f"{self.group_size}, reduce={self.reduce!r}"

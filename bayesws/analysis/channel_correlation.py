"""Which channels of a layer's input become which as the images are moved: read from the data."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bayesws.layers.features import layer_features


def input_correlations(
    net: nn.Module, layers: Sequence[str], x: Tensor, move: Callable[[Tensor], Tensor], order: int, batch_size: int
) -> dict[str, "ChannelCorrelation"]:
    """For every layer that is called, how alike its input channels for T x are to those for x, moved.

    Args:
        net: put in eval mode, and back.
        layers: names of modules.
        x: images (batch, channels, height, width).
        move: T, for images and maps.
        order: of T.
        batch_size: how many images at once.

    Raises:
        ValueError: images that the network does not take.
    """
    found: dict[str, ChannelCorrelation] = {}
    for images in x.split(batch_size):
        first = before = layer_features(net, layers, images, inputs=True)
        for power in range(1, order + 1):  # T x, T² x, ... as well: a rare feature then shows in every direction
            images = move(images)
            after = first if power == order else layer_features(net, layers, images, inputs=True)
            for name, maps in before.items():
                found.setdefault(name, ChannelCorrelation()).add(name, after[name], move(maps))
            before = after
    return found


class ChannelCorrelation:
    """Sums over images that make the correlations of channels with moved channels."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []

    def add(self, name: str, after: Tensor, moved: Tensor) -> None:
        """Take in maps of T x and maps of x, moved, (batch, channels, height, width).

        Raises:
            ValueError: maps that are not those of a batch, or change their shape.
        """
        if after.ndim != 4 or after.shape != moved.shape:
            raise ValueError(
                f"layer {name!r} takes {tuple(after.shape)} of moved images and {tuple(moved.shape)} of images, moved: "
                "expected one shape (batch, channels, height, width)"
            )
        a, b = (maps.double().flatten(2).transpose(1, 2).flatten(0, 1) for maps in (after, moved))
        ones = torch.ones(len(a), 1, dtype=a.dtype, device=a.device)
        new = [a.T @ b, a.T @ ones, b.T @ ones, a.square().T @ ones, b.square().T @ ones, ones.T @ ones]
        self.sums = [old + part for old, part in zip(self.sums, new, strict=True)] if self.sums else new

    def correlation(self) -> tuple[Tensor, np.ndarray]:
        """Which channels vary, and their correlations (varying, varying)."""
        cross, mean_a, mean_b, square_a, square_b, count = self.sums
        mean_a, mean_b = mean_a / count, mean_b / count
        variance_a, variance_b = square_a / count - mean_a.square(), square_b / count - mean_b.square()
        scale = (variance_a @ variance_b.T).clamp(min=0).sqrt()
        own = torch.minimum(variance_a, variance_b).flatten()
        alive = (own > 1e-10 * own.max()).nonzero().flatten()
        correlation = (cross / count - mean_a @ mean_b.T)[alive][:, alive] / scale[alive][:, alive]
        return alive.cpu(), correlation.cpu().numpy()

"""ResNet: a small residual network that knows no sharing but that over positions, and what WSResNet has of it."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.layers.group_head import GroupHead
from bayesws.layers.sizes import check_sizes
from bayesws.models.pooling import halved

Convolution = Callable[..., nn.Module]
Normalisation = Callable[[int], nn.Module]


class ResidualBlock(nn.Module):
    """y = relu(halved(norm(f(x) + S x))): f two convolutions, each with instance normalisation and ReLU.

    S is a linear map of the channels, the same everywhere; the identity where their number stays.

    Args:
        channels: of x, and of y.
        convolution, shortcut: make f's convolutions and S from their channels in and out. Where S is a `nn.Linear` it
            acts on axis 1.
        instance_norm, norm: make a normalisation from its channels.

    Shapes: x (batch, channels in, ..., H, W) to y (batch, channels out, ..., H // 2, W // 2).
    """

    def __init__(
        self,
        channels: tuple[int, int],
        convolution: Convolution,
        shortcut: Convolution,
        instance_norm: Normalisation,
        norm: Normalisation,
    ) -> None:
        super().__init__()
        first, last = channels
        self.first, self.second = convolution(first, last), convolution(last, last)
        self.instance_norm, self.norm = instance_norm(last), norm(last)
        self.shortcut = nn.Identity() if first == last else shortcut(first, last)
        self.by_channel = isinstance(self.shortcut, nn.Linear)  # now: another module may stand in its place later

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y = F.relu(self.instance_norm(self.first(x)))
        y = F.relu(self.instance_norm(self.second(y)))
        shortcut = self.shortcut(x.movedim(1, -1)).movedim(-1, 1) if self.by_channel else self.shortcut(x)
        return F.relu(halved(self.norm(y + shortcut)))


class ResidualNet(nn.Module):
    """A convolution, residual blocks, then the mean over all positions and a head of one hidden layer.

    Features are (batch, channels, ..., H, W): an axis between channels and image, such as a group's, is carried along.

    Args:
        stem: makes the first convolution, from the images: from its channels in and out, and torch's own arguments.
        convolution: makes the others.
        dims: of the features: 2, or 3 with a group's axis.
        settings: the arguments that the network can be rebuilt from.
        new: device and dtype.
        shortcut: makes a block's linear map of channels, from their numbers in and out; None is one `nn.Linear`, the
            same for all elements of a group.
        hidden_layer: makes the head's first layer, from channels in and features out; None is `nn.Linear`, on the mean
            over everything but channels. A `GroupHead` is on the mean over positions.

    Raises:
        ValueError: sizes below one, fewer than two classes, an unknown normalisation, no block; images that are too
            small for the blocks.
    """

    def __init__(
        self,
        stem: Convolution,
        convolution: Convolution,
        dims: int,
        settings: dict[str, Any],
        new: dict[str, Any],
        shortcut: Convolution | None = None,
        hidden_layer: Convolution | None = None,
    ) -> None:
        super().__init__()
        hidden, features, normalised = settings["hidden_channels"], settings["head_features"], settings["norm"]
        check_sizes(in_channels=settings["in_channels"], hidden_channels=hidden, kernel_size=settings["kernel_size"])
        check_sizes(head_features=features)
        if settings["num_classes"] < 2:
            raise ValueError(f"num_classes={settings['num_classes']}: expected at least 2")
        if normalised not in (None, "instance"):
            raise ValueError(f"norm={normalised!r}: expected 'instance' or None")
        if not settings["widths"] or min(settings["widths"]) < 1:
            raise ValueError(f"widths={settings['widths']}: expected a whole number of at least 1 for every block")
        if not 0 <= settings["dropout"] < 1:
            raise ValueError(f"dropout={settings['dropout']}: expected at least 0 and less than 1")
        self.settings = settings
        options: dict[str, Any] = {
            "kernel_size": settings["kernel_size"],
            "padding": "same",
            "padding_mode": settings["padding_mode"],
            "bias": normalised is None,  # a normalisation takes it out again
            **new,
        }
        between = partial(convolution, **options)

        def norm(kind: type[nn.Module], **options: Any) -> Normalisation:
            return partial(kind, **options) if normalised else lambda channels: nn.Identity()

        instance_norm = norm(nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d)
        batch_norm = norm(nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d, **new)
        shortcut = shortcut or partial(nn.Linear, bias=False, **new)
        hidden_layer = hidden_layer or partial(nn.Linear, **new)
        channels = [hidden, *(width * hidden for width in settings["widths"])]
        self.stem, self.norm = stem(settings["in_channels"], hidden, **options), batch_norm(hidden)
        self.blocks = nn.Sequential(
            *(ResidualBlock(pair, between, shortcut, instance_norm, batch_norm) for pair in pairwise(channels))
        )
        self.head = nn.Sequential(
            hidden_layer(channels[-1], features, bias=normalised is None),
            norm(nn.BatchNorm1d, **new)(features),
            nn.ReLU(),
            nn.Dropout(settings["dropout"]),
            nn.Linear(features, settings["num_classes"], **new),
        )
        self.head_sees_group = isinstance(self.head[0], GroupHead)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Class logits."""
        least = 2 ** len(self.blocks)
        if min(x.shape[-2:]) < least:
            raise ValueError(
                f"images of {x.shape[-2]}×{x.shape[-1]}: expected at least {least}×{least}, as every one of "
                f"{len(self.blocks)} blocks halves them; use larger images or fewer blocks"
            )
        features = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(features.mean((-2, -1) if self.head_sees_group else tuple(range(2, features.ndim))))


class ResNet(ResidualNet):
    """The plain twin of `WSResNet`: the same network of `torch.nn.Conv2d`.

    With 64 and with 128 channels it is the baseline for CIFAR-10 of arXiv 2412.04594: 1.66 and 6.5 million parameters.

    Args: those of `WSResNet`, without its sharing.

    Shapes: x (batch, in_channels, H, W) to logits (batch, num_classes).

    Raises:
        ValueError: as `WSResNet`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        hidden_channels: int = 64,
        kernel_size: int = 7,
        *,
        widths: tuple[int, ...] = (1, 2),
        head_features: int = 256,
        dropout: float = 0.3,
        norm: str | None = "instance",
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        settings = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "hidden_channels": hidden_channels,
            "kernel_size": kernel_size,
            "widths": widths,
            "head_features": head_features,
            "dropout": dropout,
            "norm": norm,
            "padding_mode": padding_mode,
        }
        super().__init__(nn.Conv2d, nn.Conv2d, 2, settings, {"device": device, "dtype": dtype})

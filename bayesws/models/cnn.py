"""CNN: the small convolutional network that knows no sharing but that over positions, and what WSCNN has of it."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.layers.group_head import GroupHead
from bayesws.layers.sizes import check_sizes
from bayesws.models.pooling import halved

# arXiv 2412.04594, the network for MNIST, without its width and its sharing
PUBLISHED: dict[str, Any] = {"kernel_size": 5, "layers": 5, "norm": "layer", "pooling": False}


NORMS = (None, "layer", "batch")


def normalisations(kind: str | None, channels: list[int], batch_norm: type[nn.Module], **new: Any) -> nn.ModuleList:
    """One for every convolution, by its channels.

    Args:
        kind: of `NORMS`; "layer" has no parameters.
        channels: of the features that each gets.
        batch_norm: torch's for such features; it has a scale and an offset a channel.
        new: device and dtype.
    """

    def make(width: int) -> nn.Module:
        if kind == "layer":
            return nn.GroupNorm(1, width, affine=False)  # one group of all channels, whatever the size of the maps
        return nn.Identity() if kind is None else batch_norm(width, **new)

    return nn.ModuleList(make(width) for width in channels)


class ConvolutionalNet(nn.Module):
    """Convolutions, each with normalisation and ReLU, then the mean over all positions and a linear head.

    Features are (batch, channels, ..., H, W): an axis between channels and image, such as a group's, is carried along.

    Args:
        settings: the arguments that the network can be rebuilt from.

    Raises:
        ValueError: fewer than one layer or two classes, an unknown normalisation.
    """

    norms: nn.ModuleList
    head: nn.Linear | GroupHead

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        if settings["layers"] < 1:
            raise ValueError(f"layers={settings['layers']}: expected at least 1")
        if settings["num_classes"] < 2:
            raise ValueError(f"num_classes={settings['num_classes']}: expected at least 2")
        if settings["norm"] not in NORMS:
            raise ValueError(f"norm={settings['norm']!r}: expected 'layer', 'batch' or None")
        self.settings = settings

    def convolutions(self) -> list[nn.Module]:
        """In the order in which they are applied."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Class logits."""
        features = x
        for index, (convolution, norm) in enumerate(zip(self.convolutions(), self.norms, strict=True)):
            before = self._between(index - 1, features) if index else features
            features = F.relu(norm(convolution(before)))
        return self.head(self._before_head(features))

    def _before_head(self, features: Tensor) -> Tensor:
        """Features as the head takes them: their mean over everything but channels."""
        return features.mean(tuple(range(2, features.ndim)))

    def _between(self, index: int, features: Tensor) -> Tensor:
        """What layer `index` + 1 sees of the features of the one before: halved, if still as wide as the kernel."""
        wide_enough = min(features.shape[-2:]) // 2 >= self.settings["kernel_size"]
        return halved(features) if self.settings["pooling"] and wide_enough else features


class CNN(ConvolutionalNet):
    """The plain twin of `WSCNN`: the same network of `torch.nn.Conv2d`.

    Args:
        in_channels: of the images.
        num_classes: outputs of the head.
        hidden_channels: channels of every layer.
        kernel_size: k.
        layers: number of convolutions.
        norm: before every ReLU, "layer" for parameter-free layer normalisation over channels and positions, "batch" for
            batch normalisation, or None.
        pooling: whether maximum pooling halves the image before every convolution but the first, as for `WSCNN`.
        padding, padding_mode, device, dtype: as for `torch.nn.Conv2d`.

    Shapes: x (batch, in_channels, H, W) to logits (batch, num_classes).

    Raises:
        ValueError: sizes below one, an unknown normalisation.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        hidden_channels: int = 64,
        kernel_size: int = 3,
        layers: int = 2,
        *,
        norm: str | None = None,
        pooling: bool = True,
        padding: int = 0,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(in_channels=in_channels, hidden_channels=hidden_channels, kernel_size=kernel_size)
        geometry: dict[str, Any] = {"kernel_size": kernel_size, "padding": padding, "padding_mode": padding_mode}
        sizes = {"in_channels": in_channels, "num_classes": num_classes, "hidden_channels": hidden_channels}
        super().__init__({**sizes, **geometry, "layers": layers, "norm": norm, "pooling": pooling})
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, hidden_channels, **geometry, **new)
            for channels in [in_channels] + [hidden_channels] * (layers - 1)
        )
        self.norms = normalisations(norm, [hidden_channels] * layers, nn.BatchNorm2d, **new)
        self.head = nn.Linear(hidden_channels, num_classes, **new)

    @classmethod
    def published(cls, **changes: Any) -> "CNN":
        """The network for MNIST of arXiv 2412.04594: five unpadded 5 × 5 layers of 64 channels, 412 170 parameters.

        Args:
            changes: arguments of `CNN` that are to differ.
        """
        return cls(**PUBLISHED | changes)

    def convolutions(self) -> list[nn.Module]:
        """In the order in which they are applied."""
        return list(self.convs)

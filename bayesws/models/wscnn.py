"""WSCNN: a small convolutional network of weight-sharing layers, invariant where it shares fully."""

from typing import Any

import torch
from torch import nn

from bayesws.layers.conv import WSConv2d, WSLiftConv2d
from bayesws.layers.weight_sharing import PATHWAYS
from bayesws.models.cnn import PUBLISHED, ConvolutionalNet
from bayesws.sharing.groups import Group


class WSCNN(ConvolutionalNet):
    """Lifting convolution, group convolutions, mean over positions and group, linear head.

    Every sharing layer is followed by ReLU. Before a group convolution comes maximum pooling that halves the image, as
    long as what is left is at least as wide as the kernel. With full sharing over a known group the whole network is
    invariant to it. Convolutions are not padded (as in arXiv 2412.04594): on 8 × 8 images the last of two layers then
    sees a whole image at one position, which is where KFAC-expand is sharpest.

    Args:
        in_channels: of the images.
        num_classes: outputs of the head.
        hidden_channels: channels of every layer, for each of the G group elements.
        group_size: G.
        kernel_size: k.
        layers: number of sharing layers, the lifting one included.
        stack, group, pathways, constraint: as for `WSConv2d`; a fixed stack of 4 elements is the quarter turns.
        norm: "layer" for parameter-free layer normalisation over channels, group and positions before every ReLU, or
            None. It makes the weights before it scale-invariant, and the evidence of their precisions meaningless
            (arXiv 2206.08900): for training on the task loss.
        pooling: whether there is maximum pooling.
        padding, padding_mode, device, dtype: as for `torch.nn.Conv2d`.

    Shapes: x (batch, in_channels, H, W) to logits (batch, num_classes).

    Raises:
        ValueError: sizes below one, a group that does not fit; images that are too small for the layers.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        hidden_channels: int = 8,
        group_size: int = 4,
        kernel_size: int = 3,
        layers: int = 2,
        *,
        stack: str = "fixed",
        group: str | Group | None = None,
        pathways: tuple[str, ...] = PATHWAYS,
        constraint: str = "doubly",
        norm: str | None = None,
        pooling: bool = True,
        padding: int = 0,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            {
                "in_channels": in_channels,
                "num_classes": num_classes,
                "hidden_channels": hidden_channels,
                "group_size": group_size,
                "kernel_size": kernel_size,
                "layers": layers,
                "stack": stack,
                "group": group,
                "pathways": pathways,
                "constraint": constraint,
                "norm": norm,
                "pooling": pooling,
                "padding": padding,
                "padding_mode": padding_mode,
            }
        )
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        names = ("group_size", "stack", "group", "pathways", "constraint")
        sharing: dict[str, Any] = {name: self.settings[name] for name in names}
        geometry: dict[str, Any] = {
            "kernel_size": kernel_size,
            "padding": padding,
            "padding_mode": padding_mode,
        }
        self.lift = WSLiftConv2d(in_channels, hidden_channels, **geometry, **sharing, **new)
        self.group_convs = nn.ModuleList(
            WSConv2d(hidden_channels, hidden_channels, **geometry, **sharing, **new) for _ in range(layers - 1)
        )
        self.head = nn.Linear(hidden_channels, num_classes, **new)

    @classmethod
    def published(cls, **changes: Any) -> "WSCNN":
        """The network for MNIST of arXiv 2412.04594: five unpadded 5 × 5 layers of 32 channels × 4, layer norm.

        It has 121 875 stack parameters and 410 890 others. A soft stack here has a residual beside them, which the
        evidence needs (see `WeightSharing`) and the published layer has not.

        Args:
            changes: arguments of `WSCNN` that are to differ.
        """
        sharing: dict[str, Any] = {"hidden_channels": 32, "stack": "dense", "pathways": ("shared",)}
        return cls(**PUBLISHED | sharing | changes)

    def convolutions(self) -> list[nn.Module]:
        """In the order in which they are applied."""
        return [self.lift, *self.group_convs]

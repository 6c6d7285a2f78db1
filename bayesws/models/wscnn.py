"""WSCNN: a small convolutional network of weight-sharing layers, invariant where it shares fully."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.layers.conv import WSConv2d, WSLiftConv2d
from bayesws.layers.weight_sharing import PATHWAYS
from bayesws.sharing.groups import Group


class WSCNN(nn.Module):
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
        padding: int = 0,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers={layers}: expected at least 1")
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: expected at least 2")
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        self.settings: dict[str, Any] = {
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
            "padding": padding,
            "padding_mode": padding_mode,
        }
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

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Class logits."""
        features = F.relu(self.lift(x))
        for convolution in self.group_convs:
            features = F.relu(convolution(_pooled(features, self.settings["kernel_size"])))
        return self.head(features.mean((-3, -2, -1)))


def _pooled(features: Tensor, kernel_size: int) -> Tensor:
    """Maximum pooling with stride 2 of (batch, channels, G, H, W), if at least `kernel_size` positions a side remain.

    Windows of 2 for even sides and of 3 for odd ones: they lie symmetrically, so turns and flips pass through.
    """
    height, width = features.shape[-2:]
    window = 2 + height % 2, 2 + width % 2
    if min(height, width) // 2 < kernel_size:
        return features
    pooled = F.max_pool2d(features.flatten(1, 2), window, stride=2)
    return pooled.unflatten(1, features.shape[1:3])

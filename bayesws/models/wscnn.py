"""WSCNN: a small convolutional network of weight-sharing layers, invariant where it shares fully."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from bayesws.layers.change_group import ChangeGroup
from bayesws.layers.conv import WSConv2d, WSLiftConv2d
from bayesws.layers.weight_sharing import PATHWAYS, check_sizes
from bayesws.models.cnn import PUBLISHED, ConvolutionalNet
from bayesws.sharing.groups import Group, generated, known_group


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
        stack, group, pathways, constraint: as for `WSConv2d`; a fixed stack of 4 elements is the quarter turns. Of a
            fixed stack `group` may also be a sequence, one group for every layer. All layers then have
            hidden_channels · G feature maps, which each reads as channels on its own group's elements (see
            `ChangeGroup`).
        norm: "layer" for parameter-free layer normalisation over channels, group and positions before every ReLU, or
            None. It makes the weights before it scale-invariant, and the evidence of their precisions meaningless
            (arXiv 2206.08900): for training on the task loss.
        pooling: whether there is maximum pooling.
        padding, padding_mode, device, dtype: as for `torch.nn.Conv2d`.

    Shapes: x (batch, in_channels, H, W) to logits (batch, num_classes).

    Raises:
        ValueError: sizes below one, a group that does not fit, another number of groups than layers; images that
            are too small for the layers.
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
        group: str | Group | Sequence[str | Group] | None = None,
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
        check_sizes(in_channels=in_channels, hidden_channels=hidden_channels, group_size=group_size)
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        geometry: dict[str, Any] = {
            "kernel_size": kernel_size,
            "padding": padding,
            "padding_mode": padding_mode,
        }
        common: dict[str, Any] = {"stack": stack, "pathways": pathways, "constraint": constraint, **geometry, **new}
        self.group_changes = nn.ModuleList()
        if group is None or isinstance(group, str | Group):
            sharing: list[dict[str, Any]] = [{"group_size": group_size, "group": group}] * layers
        else:
            groups = self._groups(group)
            sharing = [{"group_size": g.size, "group": g} for g in groups]
            for before, after in pairwise(groups):
                same = torch.equal(before.permutations, after.permutations)
                self.group_changes.append(nn.Identity() if same else ChangeGroup(before, after, device))
        channels = [hidden_channels * group_size // layer["group_size"] for layer in sharing]
        self.lift = WSLiftConv2d(in_channels, channels[0], **sharing[0], **common)
        self.group_convs = nn.ModuleList(
            WSConv2d(c, c, **layer, **common) for c, layer in zip(channels[1:], sharing[1:], strict=True)
        )
        self.head = nn.Linear(channels[-1], num_classes, **new)

    def _groups(self, groups: Sequence[str | Group]) -> list[Group]:
        """One group for every layer, each of which can read all feature maps."""
        layers, kernel_size = self.settings["layers"], self.settings["kernel_size"]
        if len(groups) != layers:
            raise ValueError(f"group with {len(groups)} groups: expected one, or one for each of {layers} layers")
        found = [g if isinstance(g, Group) else known_group(g, kernel_size, kernel_size) for g in groups]
        width = self.settings["hidden_channels"] * self.settings["group_size"]
        for group in [*found, *(generated(*pair) for pair in pairwise(found))]:
            if width % group.size:
                raise ValueError(
                    f"{width} feature maps (hidden_channels × group_size) with {group.name!r}, {group.size} elements: "
                    "expected a multiple of its size"
                )
        return found

    def _between(self, index: int, features: Tensor) -> Tensor:
        features = super()._between(index, features)
        return self.group_changes[index](features) if self.group_changes else features

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

"""WSCNN: a small convolutional network of weight-sharing layers, invariant where it shares fully."""

from dataclasses import replace
from itertools import pairwise
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from bayesws.layers.change_group import ChangeGroup
from bayesws.layers.conv import WSConv2d, WSLiftConv2d
from bayesws.layers.group_head import GroupHead
from bayesws.layers.sharing_settings import Sharing, StackKeywords
from bayesws.layers.sizes import check_sizes
from bayesws.models.cnn import PUBLISHED, ConvolutionalNet, normalisations
from bayesws.sharing.groups import Group, generated, known_group


class WSCNN(ConvolutionalNet):
    """Lifting convolution, group convolutions, mean over positions and group, linear head.

    Unless contains=False (see `Sharing`) biases and head are pathways, too: the head's shared one acts on the mean over
    positions and group, its free one on the mean over positions. Free alone it is the plain network of
    hidden_channels · G channels (`CNN`), shared alone the group network; but for batch normalisation, which takes the
    elements of a channel together.

    Every sharing layer is followed by ReLU. Before a group convolution comes maximum pooling that halves the image, as
    long as what is left is at least as wide as the kernel. With full sharing over a known group the whole network is
    invariant to it. Convolutions are not padded (as in arXiv 2412.04594): on 8 × 8 images the last of two layers then
    sees a whole image at one position, which is where KFAC-expand is sharpest.

    Args:
        in_channels: of the images.
        num_classes: outputs of the head.
        hidden_channels: channels of every layer, for each of the G group elements.
        group_size: G, here or in `sharing`; 4 where it is left out.
        kernel_size: k.
        layers: number of sharing layers, the lifting one included.
        sharing: how the G copies of every layer share, Sharing(stack="fixed") where it is left out: the quarter turns.
            Its `group` may also be several, one for every layer. All layers then have hidden_channels · G
            feature maps, which each reads as channels on its own group's elements (see `ChangeGroup`).
        norm: before every ReLU, "layer" for parameter-free layer normalisation over channels, group and positions,
            "batch" for batch normalisation, a channel's elements together, or None. It makes the weights before it
            scale-invariant: the true evidence does not know the scale of their prior. The fixed point δ‖θ‖² = γ, where
            a fit ends, is the scale at which the Laplace evidence is right; at other precisions it is not (arXiv
            2206.08900). Of the two only "layer" is a function of one datum, as the evidence needs it.
        pooling: whether there is maximum pooling.
        padding, padding_mode, device, dtype: as for `torch.nn.Conv2d`.
        keywords: the attributes of a `Sharing` in its place.

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
        group_size: int | None = None,
        kernel_size: int = 3,
        layers: int = 2,
        *,
        sharing: Sharing | None = None,
        norm: str | None = None,
        pooling: bool = True,
        padding: int = 0,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **keywords: Unpack[StackKeywords],
    ) -> None:
        sharing = Sharing.of(sharing, Sharing(stack="fixed"), group_size=group_size, **keywords)
        geometry: dict[str, Any] = {"kernel_size": kernel_size, "padding": padding, "padding_mode": padding_mode}
        sizes = {"in_channels": in_channels, "num_classes": num_classes, "hidden_channels": hidden_channels}
        others = {"layers": layers, "norm": norm, "pooling": pooling}
        super().__init__({**sizes, **sharing.as_keywords(), **geometry, **others})
        check_sizes(in_channels=in_channels, hidden_channels=hidden_channels)
        sharing = sharing.as_network
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        groups = self._groups(sharing)
        self.group_changes = nn.ModuleList(_change(*pair, device) for pair in pairwise(groups))
        by_layer = [replace(sharing, group_size=g.size, group=g) for g in groups] or [sharing] * layers
        channels = [hidden_channels * sharing.group_size // own.group_size for own in by_layer]
        self.lift = WSLiftConv2d(in_channels, channels[0], sharing=by_layer[0], **geometry, **new)
        self.group_convs = nn.ModuleList(
            WSConv2d(c, c, sharing=own, **geometry, **new) for c, own in zip(channels[1:], by_layer[1:], strict=True)
        )
        self.norms = normalisations(norm, channels, nn.BatchNorm3d, **new)
        self.head_sees_group = bool(sharing.contains) and "free" in sharing.pathways
        if self.head_sees_group:
            elements = by_layer[-1].group_size
            self.head = GroupHead(channels[-1], num_classes, elements, sharing.pathways, **new)
        else:
            self.head = nn.Linear(channels[-1], num_classes, **new)

    def _groups(self, sharing: Sharing) -> list[Group]:
        """One group for every layer, each of which can read all feature maps; none where all layers are alike."""
        if isinstance(sharing.group, str | Group | None):
            return []
        layers, kernel_size = self.settings["layers"], self.settings["kernel_size"]
        if len(sharing.group) != layers:
            raise ValueError(
                f"group with {len(sharing.group)} groups: expected one, or one for each of {layers} layers"
            )
        found = [g if isinstance(g, Group) else known_group(g, kernel_size, kernel_size) for g in sharing.group]
        width = self.settings["hidden_channels"] * sharing.group_size
        for group in [*found, *(generated(*pair) for pair in pairwise(found))]:
            if width % group.size:
                raise ValueError(
                    f"{width} feature maps (hidden_channels × group_size) with {group.name!r}, {group.size} elements: "
                    "expected a multiple of its size"
                )
        return found

    def _before_head(self, features: Tensor) -> Tensor:
        return features.mean((-2, -1)) if self.head_sees_group else super()._before_head(features)

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
        sharing = {} if changes.get("sharing") else {"stack": "dense", "pathways": ("shared",)}
        return cls(**PUBLISHED | {"hidden_channels": 32} | sharing | changes)

    def convolutions(self) -> list[nn.Module]:
        """In the order in which they are applied."""
        return [self.lift, *self.group_convs]


def _change(before: Group, after: Group, device: torch.device | str | None) -> nn.Module:
    """What lies between layers over two groups: nothing where these are the same."""
    same = torch.equal(before.permutations, after.permutations)
    return nn.Identity() if same else ChangeGroup(before, after, device)

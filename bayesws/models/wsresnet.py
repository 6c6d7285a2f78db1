"""WSResNet: a small residual network of weight-sharing layers, invariant where it shares fully."""

from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.layers.conv import WSConv2d, WSLiftConv2d
from bayesws.layers.group_head import GroupHead
from bayesws.layers.sharing_settings import Sharing, StackKeywords
from bayesws.layers.stack import group_of
from bayesws.models.resnet import ResidualNet


class OfChannels(nn.Module):
    """y[o, g] = Σ_{c, h} W_g[o, c, h] x[c, h] at every position: a group convolution of one position.

    One position knows no turns: the group is its action on its own axis, which the layer within sees as an image.

    Args:
        in_channels, out_channels, device, dtype: as for `WSConv2d`.
        kernel_size: of the convolutions beside it, in which a group's name is understood.
        sharing: of the convolutions beside it.

    Shapes: x (batch, in_channels, G, H, W) to y (batch, out_channels, G, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, sharing: Sharing, **new: Any) -> None:
        super().__init__()
        if sharing.stack == "fixed":
            sharing = replace(sharing, group=group_of(sharing, (kernel_size, kernel_size)).on_group_axis())
        self.map = WSLiftConv2d(in_channels, out_channels, (sharing.group_size, 1), bias=False, sharing=sharing, **new)

    def forward(self, x: Float[Tensor, "batch in group height width"]) -> Float[Tensor, "batch out group height width"]:
        """Apply the map."""
        return self.map(x.flatten(3)).squeeze(3).unflatten(3, x.shape[3:])


class WSResNet(ResidualNet):
    """Lifting convolution, residual blocks of group convolutions, mean over positions and group, a hidden layer.

    The first convolution is followed by batch normalisation and ReLU. A block is two convolutions, each with
    parameter-free instance normalisation (over group and positions, channel by channel) and ReLU, beside a linear map
    of the channels where their number changes (else the identity); of the sum follow batch normalisation, maximum
    pooling that halves the image, and ReLU. The head is linear, batch normalisation, ReLU, dropout, linear.
    Convolutions are padded to keep the size. With full sharing over a known group and an odd kernel the whole network
    is invariant to it, on images of any size, in eval mode.

    Without normalisation, and unless contains=False (see `Sharing`), biases, the blocks' linear maps and the head's
    first layer are pathways, too, as in `WSCNN`; the linear maps are then group convolutions of one position. Free
    alone it is the plain network of hidden_channels · G channels (`ResNet`), shared alone the group network.

    The defaults are the sizes of the network for CIFAR-10 of arXiv 2412.04594. With stack="dense" and
    pathways=("shared",) it is that network: 468 195 stack parameters and 1 632 106 others, and beside them the residual
    of a soft stack, which the evidence needs (see `WeightSharing`) and the published layer has not.

    Args:
        in_channels: of the images.
        num_classes: outputs of the head.
        hidden_channels: channels of the first convolution, for each of the G group elements.
        group_size: G, here or in `sharing`; 4 where it is left out.
        kernel_size: k.
        sharing: how the G copies of every layer share, Sharing(stack="fixed") where it is left out: the quarter turns.
        widths: channels of every block, in units of `hidden_channels`.
        head_features: width of the hidden layer.
        dropout: probability of leaving out one of its units in training.
        norm: "instance" for all the normalisation above, or None for none. It makes the weights before it
            scale-invariant: their evidence is right at the precisions that a fit finds, and at no others (see `WSCNN`).
            What a normalisation would take out again, the biases before it, is there without it only.
        padding_mode, device, dtype: as for `torch.nn.Conv2d`.
        keywords: the attributes of a `Sharing` in its place.

    Shapes: x (batch, in_channels, H, W) to logits (batch, num_classes).

    Raises:
        ValueError: unknown names, sizes below one, no block, a group that does not fit; images that are too small.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        hidden_channels: int = 32,
        group_size: int | None = None,
        kernel_size: int = 7,
        *,
        sharing: Sharing | None = None,
        widths: tuple[int, ...] = (1, 2),
        head_features: int = 256,
        dropout: float = 0.3,
        norm: str | None = "instance",
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **keywords: Unpack[StackKeywords],
    ) -> None:
        sharing = Sharing.of(sharing, Sharing(stack="fixed"), group_size=group_size, **keywords)
        settings = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "hidden_channels": hidden_channels,
            "kernel_size": kernel_size,
            **sharing.as_keywords(),
            "widths": widths,
            "head_features": head_features,
            "dropout": dropout,
            "norm": norm,
            "padding_mode": padding_mode,
        }
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        if norm is None:
            sharing = sharing.as_network
        lift, between = partial(WSLiftConv2d, sharing=sharing), partial(WSConv2d, sharing=sharing)
        if not sharing.contains:
            super().__init__(lift, between, 3, settings, new)
            return
        shortcut = partial(OfChannels, kernel_size=kernel_size, sharing=sharing, **new)
        elements, pathways = sharing.group_size, sharing.pathways
        hidden_layer = partial(GroupHead, group_size=elements, pathways=pathways, **new) if "free" in pathways else None
        super().__init__(lift, between, 3, settings, new, shortcut, hidden_layer)

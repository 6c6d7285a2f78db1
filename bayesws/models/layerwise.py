"""LayerwiseNet: blocks that are a sum of maps, from fully connected to convolution and group convolution."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.io.arguments import whole
from bayesws.layers.branches import Branches
from bayesws.layers.factored import FactoredLinear2d
from bayesws.layers.group_conv import GroupConv2d
from bayesws.layers.linear2d import Linear2d
from bayesws.layers.sizes import check_sizes
from bayesws.layers.sparse import SparseConv2d, SparseLinear2d
from bayesws.layers.subsample import CHOICES, Align2d, Subsample2d
from bayesws.layers.turns import TURNS, PoolGroup, StackTurns

ORDER = ("gconv", "conv", "s-conv", "f-fc", "s-fc", "fc")  # of branches, the one that shares most first
WIDTHS = (1, 2, 2, 4, 4, 8, 8, 16)  # of the blocks' outputs, in units of `width`
STRIDES = (1, 2, 1, 2, 1, 2, 2, 2)
HIDDEN = 64  # of the head, in units of `width`
KERNEL = 3
ANCHORS, ANCHORS_BESIDE = 7, 4  # of a sparse kernel's 9 taps, alone and beside a map of all positions
FREE_SCALE = 0.1  # of maps beside one that shares more, as in every sharing layer
INPUT = "input"  # what chooses the kept positions for all branches
UNIT = math.sqrt(3)  # times U(±1/√fan_in) has the variance 1/fan_in

Make = Callable[..., nn.Module]


class LayerwiseNet(nn.Module):
    """Eight blocks y = ReLU(sum of branches), then a head of one hidden layer: which branch each layer needs, the
    evidence says.

    Branches, the one that shares most first:

        gconv   one 3 × 3 convolution for each of the image's four quarter turns
        conv    a 3 × 3 convolution; s-conv one that is interpolated from anchors
        f-fc    a map of all positions in two factors; s-fc one that is interpolated from anchors
        fc      a map of all positions

    Convolutions are padded circularly and keep every second position where the image is halved, maps of all positions
    go straight to the halved image. Which positions, the features say, so that shifts of the image pass through: those
    of the convolution (`Subsample2d`, as published), or those of the block's input, for all branches alike (`Align2d`).
    With gconv the image is stacked in its turns at the start, all other branches act on all of their channels at once,
    and the maximum over the stack comes before the head. Beside one that shares more, a branch starts at a tenth of its
    weights, so that it does not fit first and hide the sharing. A mean of K branches has the same functions, and same
    evidence at K² times smaller precisions; but the one that is chosen would learn at a K-th of the rate.

    Args:
        blocks: branches joined by "+", such as "fc+conv"; of every block.
        width: α, channels of the first block; 16 α of the last.
        in_channels: of the images.
        size: their height and width, a power of two.
        num_classes: outputs.
        choose: which positions are kept where the image is halved: by the block's "input", every convolution then lying
            within a dense map beside it, accounted for jointly; by the convolution's output, one choice an "example",
            or one a "batch" as published, which has no evidence.
        device, dtype: as for `torch.nn.Linear`.

    Shapes: x (batch, in_channels, size, size) to logits (batch, num_classes).

    Raises:
        ValueError: unknown branches or one twice, sizes below one or no power of two.

    Reference: arXiv 2310.06131; He et al. (2015) for the start.

    >>> net = LayerwiseNet("fc+conv", width=1, in_channels=1, size=16)
    >>> net(torch.zeros(2, 1, 16, 16)).shape, [name for name, _ in net.blocks[0].named_children()]
    (torch.Size([2, 10]), ['conv', 'fc'])
    """

    def __init__(
        self,
        blocks: str = "fc+conv",
        width: int = 10,
        in_channels: int = 3,
        size: int = 32,
        num_classes: int = 10,
        *,
        choose: str = "example",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        names = _branches(blocks)
        check_sizes(width=width, in_channels=in_channels, size=size)
        whole("num_classes", num_classes, least=2)
        if size & (size - 1):
            raise ValueError(f"size={size}: expected a power of two, such as {2 ** round(math.log2(size))}")
        self.settings: dict[str, Any] = {"blocks": blocks, "width": width, "in_channels": in_channels, "size": size}
        self.settings |= {"num_classes": num_classes, "choose": choose}
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        parts = TURNS if "gconv" in names else 1
        self.lift = StackTurns() if parts > 1 else nn.Identity()
        if choose not in (INPUT, *CHOICES):
            raise ValueError(f"choose={choose!r}: expected one of {', '.join((INPUT, *CHOICES))}")
        self.aligned, self.blocks = nn.ModuleList(), nn.ModuleList()
        channels = in_channels
        for width_of, stride in zip(WIDTHS, STRIDES, strict=True):
            stride = min(stride, size)  # one position is not halved
            made = _makers(names, channels, width * width_of, size, stride, parts, choose, new)
            self.aligned.append(Align2d(stride) if choose == INPUT and stride > 1 else nn.Identity())
            branches: dict[str, Any] = {name.replace("-", "_"): made[name]() for name in names}
            self.blocks.append(Branches(reduce="sum", **branches))
            channels, size = width * width_of, size // stride
        self.pool = PoolGroup(parts) if parts > 1 else nn.Identity()
        features = channels * size**2
        self.head = nn.Sequential(
            nn.Linear(features, width * HIDDEN, **new), nn.ReLU(), nn.Linear(width * HIDDEN, num_classes, **new)
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all weights as their own layers do, U(±1/√fan_in), and scale them so that signals keep their size.

        ReLU halves the mean square, so that weights need the variance 2 / fan_in (He et al., 2015) in the first branch
        of a block; the others start at a tenth of such weights.
        """
        for module in self.modules():
            if module is not self and callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        for block in self.blocks:
            branches = list(block.children())
            for branch in branches:
                scale = UNIT * math.sqrt(2) * (1.0 if branch is branches[0] else FREE_SCALE)
                if isinstance(branch, FactoredLinear2d):
                    branch.inner.weight.mul_(UNIT)
                    branch.outer.weight.mul_(scale)
                else:
                    _kernel_of(branch).mul_(scale)
        _kernel_of(self.head).mul_(UNIT * math.sqrt(2))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Class logits."""
        features = self.lift(x)
        for align, block in zip(self.aligned, self.blocks, strict=True):
            features = block(align(features)).relu()
        return self.head(self.pool(features).flatten(1))


def _kernel_of(module: nn.Module) -> Tensor:
    """The weight of the first layer that a module holds."""
    weights = (getattr(part, "weight", None) for part in module.modules())
    return next(weight for weight in weights if isinstance(weight, nn.Parameter))


def _branches(blocks: str) -> list[str]:
    """The names, the one that shares most first."""
    names = blocks.split("+") if isinstance(blocks, str) else []
    if not names or not set(names) <= set(ORDER) or len(set(names)) < len(names):
        raise ValueError(f"blocks={blocks!r}: expected one or more of {', '.join(ORDER)}, joined by '+'")
    return sorted(names, key=ORDER.index)


def _makers(
    names: list[str], channels: int, out: int, size: int, stride: int, parts: int, choose: str, new: dict[str, Any]
) -> dict[str, Callable[[], nn.Module]]:
    """By branch what makes it; channels are those of one part."""
    between, sizes = (parts * channels, parts * out), (size, size // stride)
    convolution: dict[str, Any] = {"padding": KERNEL // 2, "padding_mode": "circular"} | new
    anchors = ANCHORS_BESIDE if any(name.endswith("fc") for name in names) else ANCHORS

    if choose == INPUT:
        convolution["stride"] = stride

    def strided(make: Make, *given: int, **more: int) -> Callable[[], nn.Module]:
        return lambda: _subsampled(make(*given, **more, **convolution), 1 if choose == INPUT else stride, choose)

    return {
        "gconv": strided(GroupConv2d, channels, out, KERNEL, parts=parts),
        "conv": strided(nn.Conv2d, *between, KERNEL),
        "s-conv": strided(SparseConv2d, *between, KERNEL, anchors),
        "f-fc": lambda: FactoredLinear2d(*between, *sizes, **new),
        "s-fc": lambda: SparseLinear2d(*between, *sizes, **new),
        "fc": lambda: Linear2d(*between, *sizes, **new),
    }


def _subsampled(convolution: nn.Module, stride: int, choose: str) -> nn.Module:
    """Every stride-th position of what a convolution gives."""
    return convolution if stride == 1 else nn.Sequential(convolution, Subsample2d(stride, choose))

"""Small networks for the tests of the evidence: together they hold every kind of layer and every way to call one."""

import torch
import torch.nn.functional as F
from torch import nn

from bayesws.layers import WSConv2d, WSLiftConv2d, WSLinear
from bayesws.sharing import Group

BOTH, SHARED, FREE = ("shared", "free"), ("shared",), ("free",)
# stack, pathways, group size
SHARING = [
    ("fixed", BOTH, 2),
    ("fixed", SHARED, 2),
    ("fixed", FREE, 2),
    ("dense", BOTH, 2),
    ("dense", SHARED, 2),
    ("product", BOTH, 2),
    ("product", SHARED, 3),
    ("power", BOTH, 3),
    ("power", SHARED, 2),
]
SHARING_IDS = [f"{stack}-{'+'.join(pathways)}-{size}" for stack, pathways, size in SHARING]


def half_shift(d):
    """Two elements on a line of d positions: nothing, and a shift by half."""
    return Group("half-shift", torch.stack([torch.arange(d), torch.arange(d).roll(d // 2)]))


def half_turn(*support):
    """Two elements on a grid or a cube of voxels: nothing, and the half turn in the last two axes."""
    positions = torch.arange(torch.Size(support).numel()).reshape(support)
    return Group("half-turn", torch.stack([positions.flatten(), positions.flip(-1, -2).flatten()]))


class EveryLayer(nn.Module):
    """Lifting, group and plain convolutions, a linear layer over positions, a sharing layer called twice, a head."""

    def __init__(self, stack, pathways, size, outputs=3):
        super().__init__()
        fixed = stack == "fixed"
        sharing = {"stack": stack, "pathways": pathways, "group_size": size, "dtype": torch.float64}
        on_images = sharing | {"group": "half-turns" if fixed else None}
        self.lift = WSLiftConv2d(1, 2, 2, padding=1, stride=2, **on_images)
        self.conv = WSConv2d(2, 1, 2, padding="same", padding_mode="circular", bias="free", **on_images)
        self.plain = nn.Conv2d(size, 2, 2, dilation=2, padding=1, dtype=torch.float64)
        self.linear = nn.Linear(9, size, dtype=torch.float64)
        self.twice = WSLinear(2 * size, 2, group=half_shift(2 * size) if fixed else None, **sharing)
        self.head = nn.Linear(2 * size, outputs, dtype=torch.float64)
        self.relu = nn.ReLU(inplace=True)
        move_from_start(self)

    def forward(self, x):
        x = self.relu(self.lift(x))
        x = self.relu(self.conv(x)).flatten(1, 2)
        x = self.relu(self.plain(x))
        x = torch.tanh(self.linear(x.flatten(2)).flatten(1))  # nn.Linear over the two channels
        x = torch.tanh(self.twice(x).flatten(1))
        x = torch.tanh(self.twice(x).flatten(1))
        return self.head(x)


class Small(nn.Module):
    """The three sharing layers, smooth between: for finite differences."""

    def __init__(self, stack, pathways, size, outputs=2):
        super().__init__()
        fixed = stack == "fixed"
        sharing = {"stack": stack, "pathways": pathways, "group_size": size, "dtype": torch.float64}
        on_images = sharing | {"group": "half-turns" if fixed else None}
        self.lift = WSLiftConv2d(1, 1, 2, **on_images)
        self.conv = WSConv2d(1, 1, 2, bias=False, **on_images)
        self.linear = WSLinear(4, outputs, group=half_shift(4) if fixed else None, **sharing)
        move_from_start(self)

    def forward(self, x):
        x = torch.tanh(self.lift(x))
        x = torch.tanh(self.conv(x)).mean(2).flatten(1)
        return self.linear(x).mean(-1)


class Linear(nn.Module):
    """One sharing layer with all its copies as outputs: linear in its weights."""

    def __init__(self, stack, pathways, size, d=4, out=2):
        super().__init__()
        group = half_shift(d) if stack == "fixed" else None
        self.map = WSLinear(d, out, stack=stack, pathways=pathways, group_size=size, group=group, dtype=torch.float64)
        move_from_start(self)

    def forward(self, x):
        return self.map(x).flatten(1)


@torch.no_grad()
def move_from_start(net):
    """Weights, logits and precisions of order one, no two alike: a start hides what is equal by chance."""
    for name, parameter in net.named_parameters():
        parameter.copy_(torch.randn_like(parameter) * (0.5 if "log_precisions" in name else 0.7))


def stack_and_other_parameters(net):
    """Numbers of a stack's logits; of all that the published layer has besides, precisions and residual left out."""
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    logits = sum(n for name, n in sizes.items() if "logits" in name)
    other = sum(n for name, n in sizes.items() if not {"logits", "log_precisions", "free"} & set(name.split(".")))
    return logits, other


def images(n, side=4):
    return torch.randn(n, 1, side, side, dtype=torch.float64)


def targets(kind, n, outputs):
    if kind == "classification":
        return torch.arange(n) % outputs
    return torch.randn(n, outputs, dtype=torch.float64)


def softmax_regression(d, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(d, classes, dtype=torch.float64))


class Folding(nn.Module):
    """LayerIO a layer with positions folded into the batch, which the evidence cannot tell from more data."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        y = self.layer(x.flatten(0, 1))
        return F.softplus(y).unflatten(0, x.shape[:2]).flatten(2).sum(1)

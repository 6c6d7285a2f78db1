"""The networks and the images that we and the peers are timed on."""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesws as bws

Pair = tuple[Tensor, Tensor]


def images(count: int) -> tuple[Pair, str]:
    """So many images 1×28×28 of 10 classes, and where they come from.

    MNIST where $BAYESWS_DATA has it; else scikit-learn's 8×8 digits, enlarged, and repeated where there are too few.
    """
    root = os.environ.get("BAYESWS_DATA")
    if root and (Path(root) / "MNIST" / "raw").is_dir():
        return bws.data.load("mnist", root=root, train_size=count).train, "MNIST"
    x, y = bws.data.load("digits", train_size=1796).train
    index = torch.arange(count) % len(x)
    enlarged = F.interpolate(x[index], size=(28, 28), mode="bilinear", align_corners=False)
    return (enlarged, y[index]), "scikit-learn digits enlarged to 28×28 (no MNIST under BAYESWS_DATA)"


def plain_cnn() -> nn.Sequential:
    """A small CNN of 5386 parameters."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 10),
    )


def sharing_cnn(channels: int = 8, group_size: int = 4, kernel_size: int = 3) -> bws.models.WSCNN:
    """A WSCNN that shares over a fixed group, without free weights: what the linear twin can be as well."""
    torch.manual_seed(0)
    group = {1: "trivial", 2: "half-turns", 4: "quarter-turns", 8: "dihedral"}[group_size]
    return bws.models.WSCNN(1, 10, channels, group_size, kernel_size, stack="fixed", group=group, pathways=("shared",))


def train(net: nn.Module, data: Pair, epochs: int = 3, batch_size: int = 50) -> None:
    """A few epochs of Adam, so that the softmax is not uniform; precisions get no gradient and stay."""
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for index in torch.randperm(len(data[1]), generator=generator).split(batch_size):
            optimiser.zero_grad()
            F.cross_entropy(net(data[0][index]), data[1][index]).backward()
            optimiser.step()


class LinearTwin(nn.Module):
    """A WSCNN without free weights as stock layers: every sharing layer is one nn.Linear, called once.

    y_g = (R_g w) · x = w · R_gᵀ x: the patches are unfolded, permuted once for every group element, and go in as
    (batch, positions · G, in · d). The bias is shared over the group, which nn.Linear's own is.

    Args:
        net: the network; its weights are copied.
    """

    def __init__(self, net: bws.models.WSCNN) -> None:
        super().__init__()
        self.kernel_size = int(net.settings["kernel_size"])
        sharing = [net.lift, *net.group_convs]
        self.turned, self.linears = [], nn.ModuleList()
        for layer in sharing:
            assert isinstance(layer, bws.layers.WeightSharing)
            chosen = layer.representations().argmax(-1)  # (R_g w)[n] = w[chosen[g, n]]
            self.turned.append(chosen.argsort(-1))  # (R_gᵀ x)[m] = x[turned[g, m]]
            linear = nn.Linear(layer.in_channels * chosen.shape[1], layer.out_channels)
            with torch.no_grad():
                linear.weight.copy_(layer.shared.flatten(1))
                linear.bias.copy_(layer.bias)
            self.linears.append(linear)
        self.head = nn.Linear(net.head.in_features, net.head.out_features)
        self.head.load_state_dict(net.head.state_dict())
        self.to(next(net.head.parameters()).dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits, those of the WSCNN."""
        for position, (turned, linear) in enumerate(zip(self.turned, self.linears, strict=True)):
            if position:
                x = self._pooled(x)
            x = F.relu(self._applied(linear, turned, x))
        return self.head(x.mean((-3, -2, -1)))

    def _applied(self, linear: nn.Module, turned: Tensor, x: Tensor) -> Tensor:
        """(batch, in·G or in, H, W) to (batch, out, G, H', W')."""
        k, (height, width) = self.kernel_size, (side - self.kernel_size + 1 for side in x.shape[-2:])
        x = x.flatten(1, -3)
        patches = x.unfold(2, k, 1).unfold(3, k, 1).permute(0, 2, 3, 1, 4, 5)  # faster than F.unfold
        patches = patches.reshape(len(x), height * width, -1, turned.shape[1])
        # all R_gᵀ side by side as one product: indexing is slower, its backward most of all
        turns = F.one_hot(turned, turned.shape[1]).to(x.dtype).flatten(0, 1).mT
        rows = (patches @ turns).unflatten(-1, turned.shape).transpose(2, 3)
        y = linear(rows.flatten(3).flatten(1, 2))  # on (batch, positions·G, in·d)
        return y.unflatten(1, (height, width, len(turned))).permute(0, 4, 3, 1, 2)

    def _pooled(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if min(height, width) // 2 < self.kernel_size:
            return x
        pooled = F.max_pool2d(x.flatten(1, 2), (2 + height % 2, 2 + width % 2), stride=2)
        return pooled.unflatten(1, x.shape[1:3])

"""What a weight-sharing convolution costs beside nn.Conv2d of the same effective shape, forward and backward.

64 images, one thread, float32, gradients for the input as well (a group convolution is never a network's first layer).
The command is in the README beside this file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timing import interleaved, ratio
from torch import Tensor, nn

import bayesws as bws

IMAGES = 64
GROUP_SIZE = 4
NORMALISER_WEIGHT, ENTROPY_WEIGHT = 0.1, 0.01
HARDNESS = 9.0


@dataclass(frozen=True)
class Size:
    """One row: channels for each group element, side of the kernel and of the feature maps, which are padded."""

    channels: int
    kernel_size: int
    side: int


SIZES = [
    Size(32, 5, 12),
    Size(32, 7, 14),
    Size(16, 7, 14),
    Size(16, 7, 28),
]
# against conv, nn.Conv2d: jobs of `jobs_of`
COLUMNS = {
    "canonical": "W_g = R_g w alone, as published",
    "canonical_regularised": "that with normaliser and entropy",
    "canonical_hard": "W_g = R_g w with a nearly hard stack, logits N(0, 1) + 9 P, whose projection takes Newton steps",
    "residual": "with the residual pathway L_g v_g of the evidence",
    "residual_regularised": "that with normaliser and entropy",
    "sinkhorn": "projection and its backward alone",
}


def layer_of(size: Size, residual: bool, hardness: float = 0.0) -> bws.layers.WSConv2d:
    """The soft dense layer; without the residual it is the published one, W_g = R_g w.

    `hardness` is added to the logits of one random permutation for each group element.
    """
    layer = bws.layers.WSConv2d(
        size.channels,
        size.channels,
        size.kernel_size,
        padding=size.kernel_size // 2,
        group_size=GROUP_SIZE,
        stack="dense",
        pathways=("shared",),
    )
    if not residual:
        layer.register_parameter("free", None)
    with torch.no_grad():
        (logits,) = layer.structure()
        permutations = torch.stack([torch.randperm(logits.shape[-1]) for _ in logits])
        logits.add_(hardness * torch.eye(logits.shape[-1])[permutations])
    return layer


def jobs_of(size: Size) -> dict[str, Callable[[], object]]:
    """What is timed, all on the same features."""
    width = size.channels * GROUP_SIZE
    plain = nn.Conv2d(width, width, size.kernel_size, padding=size.kernel_size // 2)
    canonical, residual, hard = layer_of(size, False), layer_of(size, True), layer_of(size, False, HARDNESS)
    features = torch.randn(IMAGES, size.channels, GROUP_SIZE, size.side, size.side, requires_grad=True)
    images = features.detach().flatten(1, 2).requires_grad_()
    incoming = torch.randn(IMAGES, size.channels, GROUP_SIZE, size.side, size.side)

    def conv() -> None:
        forget(plain, images)
        plain(images).backward(incoming.flatten(1, 2))

    def sharing(layer: bws.layers.WSConv2d, regularised: bool) -> None:
        forget(layer, features)
        with bws.layers.computed_once(layer):
            if not regularised:
                layer(features).backward(incoming)
                return
            penalty = NORMALISER_WEIGHT * bws.sharing.normaliser(layer.stack.logits[0])
            penalty = penalty + ENTROPY_WEIGHT * bws.sharing.mean_entropy(layer.representations())
            torch.autograd.backward([layer(features), penalty], [incoming, torch.ones_like(penalty)])

    def sinkhorn() -> None:
        r = canonical.representations()
        r.backward(torch.ones_like(r))

    return {
        "conv": conv,
        "canonical": lambda: sharing(canonical, False),
        "canonical_regularised": lambda: sharing(canonical, True),
        "canonical_hard": lambda: sharing(hard, False),
        "residual": lambda: sharing(residual, False),
        "residual_regularised": lambda: sharing(residual, True),
        "sinkhorn": sinkhorn,
    }


def forget(module: nn.Module, x: Tensor) -> None:
    """Drop gradients, as an optimiser does before a step."""
    module.zero_grad(set_to_none=True)
    x.grad = None


def table(repeats: int, quick: bool) -> dict[str, Any]:
    """Medians of the ratios to nn.Conv2d, with quartiles, at every size; `quick` takes the smallest."""
    rows: list[dict[str, Any]] = []
    for size in [Size(16, 5, 8)] if quick else SIZES:
        torch.manual_seed(0)
        seconds = interleaved(jobs_of(size), repeats)
        ratios = {name: ratio(seconds[name], seconds["conv"]) for name in COLUMNS}
        rows.append(
            {"size": f"{size.channels} × {GROUP_SIZE}, {size.kernel_size}×{size.kernel_size}, {size.side}²"} | ratios
        )
    return {"columns": COLUMNS, "tables": {"B5: WSConv2d / nn.Conv2d, forward and backward, 64 images": rows}}

"""The penalties of the published method on a soft stack, for training on the task loss (`fit(objective="task")`).

Source: "Learning Symmetries via Weight-Sharing with Doubly Stochastic Tensors", arXiv 2412.04594. The released settings
weigh the normaliser 0.1 and the entropy 0.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def normaliser(logits: Float[Tensor, "*batch d d"]) -> Float[Tensor, ""]:
    """How far exp(logits) is from being doubly stochastic by itself, before any projection.

    mean_i (log Σ_j exp l_ij)² + mean_j (log Σ_i exp l_ij)², the means over the batch as well; 0 where every row and
    column of exp(logits) sums to one. It fixes the offsets of rows and columns, which the projection ignores.

    Args:
        logits: (..., d, d), one or more matrices; none give 0.

    >>> round(normaliser(torch.zeros(2, 2)).item(), 6)  # 2 (log 2)²
    0.960906
    """
    if not logits.numel():
        return logits.sum()
    return logits.logsumexp(-1).square().mean() + logits.logsumexp(-2).square().mean()


def mean_entropy(stack: Float[Tensor, "group d d"]) -> Float[Tensor, ""]:
    """Mean row entropy of the soft permutations R_2, ..., R_G, in nats; 0 for permutations, log d for uniform ones.

    mean_{g > 1, i} -Σ_j R_gij log R_gij. The anchor R_1 = I has none and does not count. The gradient is finite at
    entries of 0 too (log R is cut off at the smallest normal number of the type, -87 in float32). The published code
    sums where this takes the mean, so its weight is (G - 1) d times smaller.

    Args:
        stack: (G, d, d), rows sum to one; the anchor alone gives 0.

    >>> soft = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]])
    >>> round(mean_entropy(soft).item(), 6)  # log 2
    0.693147
    """
    rest = stack[1:]
    if not rest.numel():
        return rest.sum()
    return -(rest * rest.clamp(min=torch.finfo(rest.dtype).tiny).log()).sum(-1).mean()

"""What is shared: stacks of (soft) permutations and the groups they can become. Tensor mathematics only."""

from bayesws.sharing.doubly_stochastic import (
    DoublyStochastic,
    constrained,
    dense_stack,
    power_stack,
    product_stack,
    sinkhorn,
)
from bayesws.sharing.groups import Group, generated, known_group, known_groups
from bayesws.sharing.regularisers import mean_entropy, normaliser

__all__ = [
    "DoublyStochastic",
    "Group",
    "constrained",
    "dense_stack",
    "generated",
    "known_group",
    "known_groups",
    "mean_entropy",
    "normaliser",
    "power_stack",
    "product_stack",
    "sinkhorn",
]

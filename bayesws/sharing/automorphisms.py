"""Approximate automorphisms: permutations P of positions that leave a moment of the data as it is, P M Pᵀ ≈ M.

If data is symmetric under a permutation P of positions, then so is every moment of it. So the near-automorphisms of a
layer's input moments are the candidates for what it may share. Here: finding them, the groups that they form, and
whether a misfit is more than sampling noise.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from scipy.stats import chi2
from torch import Tensor

WIDTH = 20_000  # partial permutations kept while searching
LARGEST_GROUP = 48


@dataclass(frozen=True)
class Automorphisms:
    """The permutations with the smallest misfits.

    Attributes:
        permutations: (n, d), as in `Group`: P sends w to w[permutation].
        misfits: (n,), ascending; the identity's is 0. See `misfit`.
        complete_below: every permutation with a misfit below this one is in the list; others may be missing.
    """

    permutations: Int64[Tensor, "n d"]
    misfits: Float[Tensor, " n"]
    complete_below: float


def misfit(moments: Float[Tensor, "order d d"], permutations: Int64[Tensor, "n d"]) -> Float[Tensor, " n order"]:
    """‖P M Pᵀ - M‖_F / ‖M‖_F of every moment under every permutation.

    >>> circulant = torch.tensor([[[2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 2.0]]])
    >>> misfit(circulant, torch.tensor([[1, 2, 0]])).item()
    0.0
    """
    norms = moments.flatten(1).norm(dim=1)
    return torch.stack([(_moved(moments, p) - moments).flatten(1).norm(dim=1) / norms for p in permutations])


def near_automorphisms(moments: Float[Tensor, "order d d"], keep: int = 64, width: int = WIDTH) -> Automorphisms:
    """The `keep` permutations with the smallest misfit, root mean square over the moments.

    Positions are given their images one by one. What the positions so far contribute to the squared misfit can only
    grow, so it bounds every permutation that continues them; the `width` lowest bounds are followed. The smallest bound
    that was dropped says below which misfit nothing can have been missed: with width ≥ d! the search is exhaustive.

    Args:
        moments: symmetric matrices (order, d, d), on whatever scales.
        keep: how many to return at most.
        width: how many partial permutations to follow.
    """
    m = moments.double() / moments.double().flatten(1).norm(dim=1)[:, None, None] / len(moments) ** 0.5
    d = m.shape[-1]
    images, bounds = torch.empty(1, 0, dtype=torch.long), torch.zeros(1, dtype=m.dtype)
    dropped = float("inf")
    for position in range(d):
        known = m[:, position, :position]  # (order, position): with which it must agree
        more = (m.diagonal(dim1=1, dim2=2) - m[:, position, position, None]).square().sum(0).expand(len(images), d)
        for step in range(position):
            more = more + 2 * (m[:, images[:, step]] - known[:, step, None, None]).square().sum(0)
        taken = torch.zeros(len(images), d, dtype=torch.bool).scatter_(1, images, True)
        candidates = (bounds[:, None] + more).masked_fill(taken, float("inf")).flatten()
        count = min(int(candidates.isfinite().sum()), width if position < d - 1 else keep)
        lowest = candidates.topk(count + 1 if count < len(candidates) else count, largest=False)
        if len(lowest.values) > count:
            dropped = min(dropped, float(lowest.values[-1]))
        chosen = lowest.indices[:count]
        images = torch.cat([images[chosen // d], (chosen % d)[:, None]], 1)
        bounds = lowest.values[:count]
    return Automorphisms(images, bounds.clamp(min=0).sqrt(), dropped**0.5)


def closed_sets(permutations: Int64[Tensor, "n d"], largest: int = LARGEST_GROUP) -> list[tuple[int, ...]]:
    """Every group among the permutations, as ascending tuples of indices, the smallest first.

    Args:
        permutations: distinct; must hold the identity for any group to be found.
        largest: number of elements of the largest group of interest.
    """
    index = {tuple(row): i for i, row in enumerate(permutations.tolist())}
    # (P_a P_b w)[n] = w[p_b[p_a[n]]], as in Group.table
    products = permutations[torch.arange(len(permutations))[None, :, None], permutations[:, None, :]]
    table = [[index.get(tuple(p), -1) for p in row] for row in products.tolist()]
    identity = index.get(tuple(range(permutations.shape[-1])))
    if identity is None:
        return []
    start: tuple[int, ...] = (identity,)
    found, frontier = {start}, [start]
    while frontier:
        group = frontier.pop()
        for element in range(len(table)):
            if element in group:
                continue
            larger = _generated(table, (*group, element), largest)
            if larger is not None and larger not in found:
                found.add(larger)
                frontier.append(larger)
    return sorted(found, key=lambda group: (len(group), group))


def _generated(table: list[list[int]], generators: tuple[int, ...], largest: int) -> tuple[int, ...] | None:
    """The closure of some elements; None where it leaves the table or is too large. Finite: inverses come by powers."""
    group, frontier = set(generators), list(generators)
    while frontier:
        new = frontier.pop()
        for generator in generators:
            product = table[new][generator]
            if product < 0:
                return None
            if product not in group:
                group.add(product)
                frontier.append(product)
                if len(group) > largest:
                    return None
    return tuple(sorted(group))


def symmetrised(moments: Float[Tensor, "*batch d d"], group: Int64[Tensor, "group d"]) -> Float[Tensor, "*batch d d"]:
    """(1/G) Σ_g P_g M P_gᵀ: the part of a moment that a group leaves as it is."""
    total = torch.zeros_like(moments)
    for permutation in group:
        total += _moved(moments, permutation)
    return total / len(group)


def p_value(
    blocks: Float[Tensor, "block order d d"],
    group: Int64[Tensor, "group d"],
    subgroup: Int64[Tensor, "subgroup d"] | None = None,
) -> float:
    """The probability of a misfit at least as large if the data is symmetric under the group, given a subgroup.

    D_b = sym_H(M_b) - sym_K(M_b) for independent blocks b of the data has mean 0 where the data is symmetric under
    K ⊃ H. Then B ‖mean D‖² / mean ‖D_b‖² is close to chi-squared / ν with ν = (tr C)² / tr C² degrees of freedom, C the
    covariance of D_b (Satterthwaite's approximation). Taking the H that the data is known to have out of both sides
    takes its noise out of the test.

    Args:
        blocks: moments of the blocks, (B, order, d, d).
        group: K, permutations (G, d).
        subgroup: H, contained in K; None is the identity alone.
    """
    scale = blocks.mean(0).flatten(1).norm(dim=1)[:, None, None]
    scaled = blocks / scale
    difference = (scaled if subgroup is None else symmetrised(scaled, subgroup)) - symmetrised(scaled, group)
    d = difference.flatten(1).double()
    count = len(d)
    gram = d @ d.T
    trace = gram.diagonal().mean()
    if not trace > 0:
        return 1.0
    squared = (gram.square().sum() - gram.diagonal().square().sum()) / (count * (count - 1))  # tr C²
    freedom = float((trace.square() / squared).clamp(min=1.0, max=float(d.shape[1])))
    statistic = float(gram.mean() * count / trace)
    return float(chi2.sf(statistic * freedom, freedom))


def _moved(moments: Tensor, permutation: Tensor) -> Tensor:
    """P M Pᵀ."""
    return moments[..., permutation[:, None], permutation[None, :]]

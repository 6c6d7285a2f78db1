"""How the channels of a layer pair up under a transform: permutations whose power is the identity."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment

EXCHANGES = 4000  # tried at most: in noise of thousands of channels they would go on and on


def cycles(permutation: Sequence[int] | np.ndarray) -> list[list[int]]:
    """The cycles of a permutation, each from its smallest member on.

    >>> cycles([1, 0, 2])
    [[0, 1], [2]]
    """
    found, seen = [], set()
    for start in range(len(permutation)):
        cycle = []
        while start not in seen:
            seen.add(start)
            cycle.append(start)
            start = int(permutation[start])
        if cycle:
            found.append(cycle)
    return found


def matching(scores: Float[np.ndarray, "channel channel"], order: int) -> Int64[np.ndarray, " channel"]:
    """A permutation p of the channels with p^order = 1 and a large Σ_c scores[c, p(c)].

    The best assignment, with every cycle whose length does not divide the order cut into shorter ones, and then
    improved by exchanging two channels as long as that helps. Without cuts it is the largest sum there is; with cuts it
    need not be. Ties are left in place: p(c) = c.

    Args:
        scores: likeness of channel c, moved, to channel p(c).
        order: of the transform, 2 or 4.
    """
    tiny = 1e-9 * float(np.abs(scores).max(initial=0.0))
    scores = scores + tiny * np.eye(len(scores))
    _, found = linear_sum_assignment(scores, maximize=True)
    partner = np.asarray(found, dtype=np.int64)
    wrong = [cycle for cycle in cycles(partner) if order % len(cycle)]
    for cycle in wrong:
        for arc in _cut(scores, cycle, order):
            partner[arc] = arc[1:] + arc[:1]
    return _exchanged(scores, partner) if wrong else partner


def _cut(scores: np.ndarray, cycle: list[int], order: int) -> list[list[int]]:
    """A cycle in pieces whose lengths divide the order: as long as possible, from the start that scores most."""

    def pieces(start: int) -> list[list[int]]:
        left, found = cycle[start:] + cycle[:start], []
        while left:
            length = next(n for n in (4, 2, 1) if n <= len(left) and order % n == 0)
            found.append(left[:length])
            left = left[length:]
        return found

    def total(arcs: list[list[int]]) -> float:
        return float(sum(scores[arc, arc[1:] + arc[:1]].sum() for arc in arcs))

    return max((pieces(start) for start in range(min(len(cycle), order))), key=total)


def _exchanged(scores: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """Two channels change places in their cycles, as long as Σ scores[c, p(c)] grows."""
    everyone = np.arange(len(partner))
    own = scores[everyone, everyone]
    before = np.argsort(partner)
    least = 1e-12 * np.abs(scores).max(initial=0.0)
    for _ in range(EXCHANGES // max(len(partner), 1)):
        better = False
        for c in range(len(partner)):
            a, b = int(before[c]), int(partner[c])
            if a == c:  # alone in its cycle: its exchange is tried from the other side
                continue
            fixed = everyone == partner
            gain = scores[a] + scores[:, b] - scores[a, c] - scores[c, b]
            gain += np.where(fixed, own[c] - own, scores[before, c] + scores[c, partner])
            gain -= np.where(fixed, 0.0, scores[before, everyone] + scores[everyone, partner])
            gain[c] = 0.0
            for d in (a, b):  # neighbours in one cycle
                changed = scores[everyone, _exchange(partner, c, d)] - scores[everyone, partner]
                gain[d] = changed.sum()
            d = int(gain.argmax())
            if gain[d] > least:
                partner, before = _exchange(partner, c, d), _exchange(before, c, d)
                better = True
        if not better:
            break
    return partner


def _exchange(partner: np.ndarray, c: int, d: int) -> np.ndarray:
    """The permutation in which c has the place of d, and d that of c."""
    exchange = np.arange(len(partner))
    exchange[[c, d]] = d, c
    return exchange[partner[exchange]]


def random_matching(channels: int, order: int, generator: torch.Generator) -> np.ndarray:
    """A random permutation in cycles of that order, and shorter ones for what is left."""
    mixed = torch.randperm(channels, generator=generator).tolist()
    partner = np.empty(channels, dtype=np.int64)
    while mixed:
        length = next(n for n in (order, 2, 1) if n <= len(mixed))
        cycle, mixed = mixed[:length], mixed[length:]
        partner[cycle] = cycle[1:] + cycle[:1]
    return partner

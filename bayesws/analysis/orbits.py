"""Orbits of a layer's weights under a transform: how alike the weights of an orbit are, and what that says of ρ."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bayesws.analysis.channel_matching import cycles

CLOSEST = 1e-6  # smallest 1 - ρ: copies that differ by a thousandth of their size are not told from equal ones
_LOW, _HIGH = np.linspace(0.0, 0.99, 991), 1 - np.geomspace(0.01, CLOSEST, 401)
GRID = np.concatenate([_LOW, _HIGH[1:]])  # of ρ, denser towards 1


@dataclass(frozen=True)
class Sums:
    """What the likelihood of ρ needs of the weights: by orbit size m, the sums of squares within and between.

    Attributes:
        orbits: number of orbits of each size.
        within: Σ over their weights of (w - mean of its orbit)².
        between: Σ over their weights of (mean of its orbit)².
    """

    orbits: dict[int, int]
    within: dict[int, float]
    between: dict[int, float]

    def __add__(self, other: "Sums") -> "Sums":
        def merged(one: dict, two: dict) -> dict:
            return {m: one.get(m, 0) + two.get(m, 0) for m in one | two}

        return Sums(
            merged(self.orbits, other.orbits), merged(self.within, other.within), merged(self.between, other.between)
        )

    def log_likelihood_ratio(self, rho: np.ndarray) -> np.ndarray:
        """log p(w | ρ) - log p(w | 0) in nats, the weights' variance s marginalised under Jeffreys' prior 1/s.

        An orbit of m weights is N(0, s [(1-ρ) I + ρ 11ᵀ]), with eigenvalues s (1-ρ), m-1 times, and s (1+(m-1)ρ):

            log p = -½ Σ_orbits [(m-1) log(1-ρ) + log(1+(m-1)ρ)] - N/2 log Σ_m [within/(1-ρ) + between/(1+(m-1)ρ)]

        up to a constant, N the number of weights. Weights that are alone in their orbit (m = 1) say nothing of ρ, but
        of s.
        """
        size = sum(m * count for m, count in self.orbits.items())
        total = sum(self.within.values()) + sum(self.between.values())
        if total <= 0:
            return np.zeros_like(rho)
        half_log_det, squares = np.zeros_like(rho), np.zeros_like(rho)
        for m, count in self.orbits.items():
            half_log_det += 0.5 * count * ((m - 1) * np.log1p(-rho) + np.log1p((m - 1) * rho))
            squares += self.within[m] / (1 - rho) + self.between[m] / (1 + (m - 1) * rho)
        return -half_log_det - size / 2 * np.log(squares / total)

    def posterior(self) -> tuple[float, tuple[float, float], float]:
        """Median and central 95 % interval of ρ under a uniform prior on [0, 1), and the log evidence against ρ = 0."""
        logs = self.log_likelihood_ratio(GRID)
        highest = float(logs.max())
        density = np.exp(logs - highest)
        steps = np.diff(GRID)
        mass = steps * (density[1:] + density[:-1]) / 2
        spread = np.concatenate([[0.0], mass.cumsum()])
        low, median, high = np.interp([0.025, 0.5, 0.975], spread / spread[-1], GRID)
        return float(median), (float(low), float(high)), highest + float(np.log(mass.sum()))

    def compared(self) -> int:
        """Number of weights that are not alone in their orbit."""
        return sum(m * count for m, count in self.orbits.items() if m > 1)


@dataclass(frozen=True)
class Products:
    """Inner products of filters with moved filters, for some of their weights: enough for the sums of any pairing.

    Attributes:
        grams: by size s of the orbits of (input channel, position) and by power k of the transform,
            G[c, d] = Σ_u W[c, u] W[d, π^k u], u all those in orbits of size s; shape (C_out, C_out).
        units: by s, how many u.
    """

    grams: dict[int, list[np.ndarray]]
    units: dict[int, int]

    def scores(self) -> np.ndarray:
        """How alike filter c and filter d, moved, are; u that the transform leaves in place would flatter p(c) = c."""
        channels = len(next(iter(self.grams.values()))[0])
        return sum((grams[1] for s, grams in self.grams.items() if s > 1), np.zeros((channels, channels)))

    def sums(self, partner: np.ndarray) -> Sums:
        """Of the weights (c, u), whose orbits under (p, π) have size lcm(cycle of c, orbit of u)."""
        lengths = np.empty(len(partner), dtype=np.int64)
        for cycle in cycles(partner):
            lengths[cycle] = len(cycle)
        everyone = np.arange(len(partner))
        found = Sums({}, {}, {})
        for s, grams in self.grams.items():
            squares = grams[0][everyone, everyone]
            means, moved = np.zeros(len(partner)), everyone
            for gram in grams:  # Σ over an orbit of w · mean = Σ mean²
                means += gram[everyone, moved] / len(grams)
                moved = partner[moved]
            for length in np.unique(lengths):
                m, those = int(np.lcm(s, length)), lengths == length
                between = float(means[those].sum())
                within = max(float(squares[those].sum()) - between, 0.0) if m > 1 else 0.0
                found += Sums({m: int(those.sum()) * self.units[s] // m}, {m: within}, {m: between})
        return found


def products(
    weight: Float[Tensor, "out unit"], transform: Int64[Tensor, " unit"], order: int, folds: Tensor
) -> list[Products]:
    """The inner products of every fold of units.

    Args:
        weight: W, a filter a row.
        transform: π, where the transform takes each unit (input channel, position); π^order = 1.
        order: of the transform.
        folds: for each unit its fold, one fold for a whole orbit.
    """
    powers = [torch.arange(len(transform))]
    for _ in range(order - 1):
        powers.append(transform[powers[-1]])
    sizes = torch.full_like(transform, order)
    for k in range(order - 1, 0, -1):
        if order % k == 0:
            sizes[powers[k] == powers[0]] = k
    found = []
    for fold in folds.unique():
        grams, units = {}, {}
        for s in sizes[folds == fold].unique():
            chosen = ((folds == fold) & (sizes == s)).nonzero().flatten()
            part = weight[:, chosen]
            # π^(order-k) gives the transpose
            half = [(part @ weight[:, power[chosen]].T).numpy() for power in powers[: order // 2 + 1]]
            grams[int(s)] = half + [half[order - k].T for k in range(order // 2 + 1, order)]
            units[int(s)] = len(chosen)
        found.append(Products(grams, units))
    return found

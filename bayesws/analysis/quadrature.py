"""Independent draws from a density of one or two variables: by a grid, refined to where the mass is.

A grid of so few variables is the integral itself: nothing has to converge, several modes do no harm.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

POINTS = {1: 1001, 2: 121}  # along each of so many axes
MOST = 8  # times as many, where a ridge lies across the axes
LEFT_OUT = 1e-6  # of the mass
STEEP = 4.0  # nats between the highest point and its neighbour: in steeper ones a grid misses what lies between

Sides = list[Tensor]


def refined(density: Callable[[Sides], Tensor], ends: tuple[float, float], axes: int) -> tuple[Sides, Tensor]:
    """A grid over where the mass is, and the log density on it.

    From a grid between the ends to the smallest box of cells that leaves out no more than 1e-6 of its mass, and so on
    until that is not half as long on any side. Where a grid sees no more of a peak than a point, of which the log
    density falls by D > 4 nats to the next, the box is that of the density to the power 4 / D, which it does see.

    Args:
        density: of the sides of a grid, each (n,), the log density (n, ...) on it up to a constant.
        ends: of every axis to begin with; twice as far apart, as often as there is mass at one. The power has no say
            in that: it spreads mass to the ends, and far out an evidence is what rounding makes of it.
        axes: one or two.
    """
    points = POINTS[axes]
    sides = [torch.linspace(*ends, points, dtype=torch.float64)] * axes
    began = False
    while True:
        logs = _finite(density(sides))
        calm = min(1.0, STEEP / max(_fall(logs), STEEP))
        weights = (calm * logs.flatten()).softmax(0).reshape(logs.shape)
        if not began and _at_an_end(logs):
            reach = (ends[1] - ends[0]) / 2
            ends = (ends[0] - reach, ends[1] + reach)
            sides = [torch.linspace(*ends, points, dtype=torch.float64)] * axes
            continue
        began = True
        boxes = [_box(side, mass) for side, mass in zip(sides, _masses(weights), strict=True)]
        narrower = any(high - low < 0.5 * float(s[-1] - s[0]) for (low, high), s in zip(boxes, sides, strict=True))
        if not narrower:
            if calm == 1 or points > POINTS[axes] * MOST / 2:
                return sides, logs
            points *= 2
        sides = [torch.linspace(*box, points, dtype=torch.float64) for box in boxes]


def drawn(sides: Sides, logs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws (count, axes) by the inverse of the distribution function, one from each of so many equal shares."""
    shares = (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64)) / count
    shares = shares[torch.randperm(count, generator=generator)]  # or draws of two densities would go together
    places = torch.searchsorted(logs.flatten().softmax(0).cumsum(0), shares).clamp(max=logs.numel() - 1)
    within = torch.rand(count, len(sides), generator=generator, dtype=torch.float64) - 0.5  # a cell
    cells = np.unravel_index(places.numpy(), logs.shape)
    steps = torch.stack([side[1] - side[0] for side in sides])
    return torch.stack([side[cell] for side, cell in zip(sides, cells, strict=True)], 1) + steps * within


def _masses(weights: Tensor) -> list[Tensor]:
    """By axis, (n,)."""
    return [weights.movedim(axis, 0).reshape(size, -1).sum(1) for axis, size in enumerate(weights.shape)]


def _at_an_end(logs: Tensor) -> bool:
    """Whether there is mass at an end of an axis."""
    masses = _masses(logs.flatten().softmax(0).reshape(logs.shape))
    return any(float(mass[end]) > LEFT_OUT for mass in masses for end in (0, -1))


def _finite(logs: Tensor) -> Tensor:
    """Less the highest; what is no number, or far below, has no mass."""
    logs = logs.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    return (logs - logs.max()).clamp(min=-1e9)


def _fall(logs: Tensor) -> float:
    """From the highest point to its lowest neighbour along an axis, nats."""
    top = np.unravel_index(int(logs.argmax()), logs.shape)
    falls = [0.0]
    for axis, size in enumerate(logs.shape):
        for step in (-1, 1):
            place = [int(i) for i in top]
            place[axis] += step
            if 0 <= place[axis] < size:
                falls.append(float(logs[top] - logs[tuple(place)]))
    return max(falls)


def _box(side: Tensor, mass: Tensor) -> tuple[float, float]:
    """From the last point of an axis before its mass to the first behind it."""
    below, above = mass.cumsum(0), mass.flip(0).cumsum(0).flip(0)
    inside = ((below > LEFT_OUT / 4) & (above > LEFT_OUT / 4)).nonzero().flatten()
    low, high = max(int(inside[0]) - 1, 0), min(int(inside[-1]) + 1, len(side) - 1)
    return float(side[low]), float(side[high])

"""What each layer shares, over several fits: their rows by layer, means over seeds, and how a table says them."""

import math
from collections.abc import Sequence
from statistics import mean

from bayesws.training.result import SharingRow
from bayesws.trials.records import Trial


def rows_by_layer(trials: Sequence[Trial]) -> dict[str, list[SharingRow]]:
    """The rows of every layer over several trials, by its name."""
    rows: dict[str, list[SharingRow]] = {}
    for trial in trials:
        for row in trial.sharing:
            rows.setdefault(row.name, []).append(row)
    return rows


def mean_strength(rows: Sequence[SharingRow]) -> float:
    """ρ of one layer, its mean over several fits; nan for a layer without copies that share."""
    return mean(row.strength for row in rows)


def mean_effective(rows: Sequence[SharingRow]) -> dict[str, float]:
    """γ by pathway of one layer, its mean over several fits."""
    return {pathway: mean(row.effective.get(pathway, 0.0) for row in rows) for pathway in rows[0].parameters}


def in_use(rows: Sequence[SharingRow], between: str = "\n") -> str:
    """What one layer uses of its parameters, pathway by pathway, the mean over several fits.

    >>> in_use([SharingRow("lift", 0.9, {"shared": 27.14, "free": 0.1}, {"shared": 72, "free": 288}, {})], ", ")
    'shared 27.1 of 72, free 0.1 of 288'
    """
    parameters = rows[0].parameters
    return between.join(f"{name} {gamma:.1f} of {parameters[name]}" for name, gamma in mean_effective(rows).items())


def of_strength(value: float) -> str:
    """ρ for a table; a dash where there are no copies that share."""
    return "–" if math.isnan(value) else f"{value:.2f}"

"""Which structure does every layer want? Networks that differ in one layer, compared by their evidence."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from bayesws.evidence.curvature import Curvature
from bayesws.trials.ranking import LayerRanking, Ranking
from bayesws.trials.select import comparable_curvature, made, select

Structure = tuple[str, ...]


def select_layers(
    make: Callable[[Structure], nn.Module],
    choices: Sequence[str],
    layers: int,
    data: Any,
    *,
    evidence_curvature: str | Curvature | None = None,
    **settings: Any,
) -> LayerRanking:
    """Choose a structure for every layer by the evidence: "C2, C4, D4 or none?", asked layer by layer.

    First the networks with one structure throughout. From the best of them every layer in turn, the last first, takes
    the structure with the largest evidence, the others held, until none wants another: no network that differs from
    the chosen one in a single layer has a larger evidence, and all of these are among those tried. For K choices and
    n layers that is K + n·(K - 1) fits at least, where all networks are K^n; one that is better only in two layers at
    once can be missed.

    Args:
        make: from a structure for every layer, each one of `choices`, to a network; called with torch's seed set.
        choices: names of structures, such as "none" and "quarter-turns".
        layers: n.
        data: as for `select`.
        evidence_curvature: as for `select`; chosen from the networks with one structure throughout.
        settings: further arguments of `select`, and so of `fit`, such as `likelihood`, `seeds`, `test` and `epochs`.

    Raises:
        ValueError: no choices, one named twice, no layers; what `select` raises.
    """
    if isinstance(make, nn.Module):
        raise ValueError(f"make is a {type(make).__name__}: expected a function from structures to a network")
    if not choices or len(set(choices)) < len(choices):
        raise ValueError(f"choices={list(choices)}: expected different names, at least one")
    if layers < 1:
        raise ValueError(f"layers={layers}: expected at least 1")
    if evidence_curvature is None:
        throughout = [(choice,) * layers for choice in choices]
        nets = [made(_label(structure), partial(make, structure), 0) for structure in throughout]
        evidence_curvature = comparable_curvature(nets)
    tried: dict[Structure, Ranking] = {}

    def evidence_of(structure: Structure) -> float:
        if structure not in tried:
            candidate = {_label(structure): partial(make, structure)}
            tried[structure] = select(candidate, data, evidence_curvature=evidence_curvature, **settings)
        return tried[structure].best.log_evidence

    best = max(((choice,) * layers for choice in choices), key=evidence_of)
    settled = False
    while not settled:
        before = best
        for place in reversed(range(layers)):
            best = max((_with(best, place, choice) for choice in choices), key=evidence_of)
        settled = best == before
    rows = sorted((ranking.best for ranking in tried.values()), key=lambda row: -row.log_evidence)
    fits = {name: fit for ranking in tried.values() for name, fit in ranking.fits.items()}
    return LayerRanking(
        best,
        [{choice: evidence_of(_with(best, place, choice)) for choice in choices} for place in range(layers)],
        Ranking(rows, tried[best].settings, fits),
    )


def _with(structure: Structure, place: int, choice: str) -> Structure:
    return (*structure[:place], choice, *structure[place + 1 :])


def _label(structure: Structure) -> str:
    return " · ".join(structure)

"""Which group does every layer want? Networks that differ in one layer, compared by their evidence."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import nn

from bayesws.evidence.curvature import Curvature
from bayesws.evidence.likelihood import Likelihood, likelihood_named
from bayesws.io.arguments import shown, whole
from bayesws.trials.ranking import LayerRanking, Ranking
from bayesws.trials.select import comparable_curvature, select
from bayesws.trials.starts import made

Groups = tuple[str, ...]


def select_layers(
    make: Callable[[Groups], nn.Module],
    choices: Sequence[str],
    layers: int,
    data: Any,
    *,
    likelihood: str | Likelihood = "classification",
    evidence_curvature: str | Curvature | None = None,
    **settings: Any,
) -> LayerRanking:
    """Choose a group for every layer by the evidence: "C2, C4, D4 or none?", asked layer by layer.

    Args:
        make: from a group for every layer, each one of `choices`, to a network; called with torch's seed set.
        choices: names of groups, such as "none" and "quarter-turns", or of whatever else a layer may have.
        layers: n.
        data, likelihood: as for `select`.
        evidence_curvature: as for `select`; chosen from the networks with one group throughout.
        settings: further arguments of `select`, and so of `fit`, such as `seeds`, `test` and `epochs`.

    Raises:
        ValueError: no choices, one named twice, no layers; what `select` raises.
    """
    if isinstance(make, nn.Module) or not callable(make):
        raise ValueError(f"make is a {type(make).__name__}: expected a function from groups to a network")
    _check(choices, layers)
    if evidence_curvature is None:
        nets = [made(network_name(groups), partial(make, groups), 0) for groups in throughout(choices, layers)]
        evidence_curvature = comparable_curvature(nets, data, likelihood_named(likelihood))

    def rank(networks: Sequence[Groups]) -> Ranking:
        by_name = {network_name(groups): partial(make, groups) for groups in networks}
        return select(by_name, data, likelihood, evidence_curvature=evidence_curvature, **settings)

    return search_layers(rank, choices, layers)


def search_layers(rank: Callable[[Sequence[Groups]], Ranking], choices: Sequence[str], layers: int) -> LayerRanking:
    """The search of `select_layers`, with any way of ranking networks.

    First the networks with one group throughout. From the best of them every layer in turn, the last first, takes
    the group with the largest evidence, the others held, until none wants another: no network that differs from
    the chosen one in a single layer has a larger evidence, and all of these are among those tried. For K choices and
    n layers that is K + n·(K - 1) fits at least, where all networks are K^n; one that is better only in two layers at
    once can be missed.

    Args:
        rank: trains and ranks networks, each given by its layers' groups and named by `network_name`; no network twice.
        choices: names of groups.
        layers: n.

    Raises:
        ValueError: no choices, one named twice, no layers; what `rank` raises.
    """
    _check(choices, layers)
    tried: dict[Groups, float] = {}
    rankings: list[Ranking] = []

    def best_of(networks: Iterable[Groups]) -> Groups:
        asked = list(dict.fromkeys(networks))
        if new := [groups for groups in asked if groups not in tried]:
            rankings.append(rank(new))
            evidences = {row.name: row.log_evidence for row in rankings[-1].rows}
            tried.update({groups: evidences[network_name(groups)] for groups in new})
        return max(asked, key=tried.__getitem__)

    best = best_of(throughout(choices, layers))
    settled = False
    while not settled:
        before = best
        for place in reversed(range(layers)):
            best = best_of(_with(best, place, choice) for choice in choices)
        settled = best == before
    rows = sorted((row for ranking in rankings for row in ranking.rows), key=lambda row: -row.log_evidence)
    fits = {name: fit for ranking in rankings for name, fit in ranking.fits.items()}
    by_layer = [{choice: tried[_with(best, place, choice)] for choice in choices} for place in range(layers)]
    return LayerRanking(best, by_layer, Ranking(rows, rankings[0].settings, fits))


def throughout(choices: Sequence[str], layers: int) -> list[Groups]:
    """The networks with one group in all layers."""
    return [(choice,) * layers for choice in choices]


def network_name(groups: Groups) -> str:
    """What a ranking calls a network with these groups in its layers."""
    return " · ".join(groups)


def _check(choices: Sequence[str], layers: int) -> None:
    if isinstance(choices, str) or not isinstance(choices, Sequence) or not all(isinstance(c, str) for c in choices):
        raise ValueError(f"choices={shown(choices)}: expected different names, at least one, in a list")
    if not choices or len(set(choices)) < len(choices):
        raise ValueError(f"choices={shown(list(choices))}: expected different names, at least one")
    whole("layers", layers)


def _with(groups: Groups, place: int, choice: str) -> Groups:
    return (*groups[:place], choice, *groups[place + 1 :])

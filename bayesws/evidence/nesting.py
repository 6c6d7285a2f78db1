"""Pathways that act within another's directions, φ + R θ with Rᵀ R = κ I: what the sum has, counted once.

In the directions that the inner pathway reaches, the prior variance of the sum in the inner's coordinates is

    1/λ = 1/δ + 1/(κ λ')        λ' that of the outer pathway, λ' = δ' where that lies within no other

and in these coordinates, one λ a pathway, scatter and evidence fall apart into terms of one λ each, where δ does not:

    scatter = ½ Σ λ ‖c‖²        c: what the pathway's directions have of the sum, without what inner ones have of it

With separate blocks for the two the shared directions would be paid for twice.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce as fold
from operator import add, sub

import torch
from torch import Tensor

from bayesws.layers.contract import Pathway

Nested = Mapping[str, tuple[str, float]]  # by inner pathway: its outer one, and κ
Logs = Mapping[str, Tensor]


def nested(pathways: Mapping[str, Pathway]) -> dict[str, tuple[str, float]]:
    """Which of these pathways lie within another of them."""
    places = {name: p.within for name, p in pathways.items() if p.within is not None}
    return {name: (within.outer, within.kappa) for name, within in places.items() if within.outer in pathways}


def outermost_first(names: Iterable[str], within: Nested) -> list[str]:
    """The names, every pathway after the one that it lies within."""
    return sorted(names, key=lambda name: _depth(name, within))


def log_outside(name: str, log_lambdas: Logs, within: Nested) -> Tensor:
    """log κλ' of a pathway within another: the sum's precision in its coordinates if it were closed itself."""
    outer, kappa = within[name]
    return log_lambdas[outer] + math.log(kappa)


def log_lambdas(log_precisions: Logs, within: Nested) -> dict[str, Tensor]:
    """log λ by pathway, of the sum in the pathway's coordinates; log δ where it lies within no other."""
    found: dict[str, Tensor] = {}
    for name in outermost_first(log_precisions, within):
        log_delta = log_precisions[name]
        if name in within:
            found[name] = -torch.logaddexp(-log_delta, -log_outside(name, found, within))
        else:
            found[name] = log_delta
    return found


def variance_share(name: str, deltas: Mapping[str, float], within: Nested) -> float:
    """A pathway's share of the prior variances 1/δ of all that it is nested with; 1 where it is not."""
    outermost = _outermost(name, within)
    together = [other for other in deltas if _outermost(other, within) == outermost]
    return 1 / deltas[name] / sum(1 / deltas[other] for other in together)


@dataclass(frozen=True)
class Sum:
    """What nested pathways are together, φ + R θ: split by their directions, which no precision decides.

    Attributes:
        whole: by pathway, what the sum has in its directions, in its coordinates: (Rᵀ R)⁻¹ Rᵀ of the outer one's.
        rest: c by pathway, the same without what inner pathways have of it.
    """

    whole: dict[str, Tensor]
    rest: dict[str, Tensor]

    @classmethod
    def of(cls, pathways: Mapping[str, Pathway]) -> "Sum":
        """Of pathways at their present parameters; one that is nested with none stands for itself."""
        order, lifts = outermost_first(pathways, nested(pathways)), _lifts(pathways)
        whole: dict[str, Tensor] = {}
        for name in reversed(order):  # in every pathway's coordinates, itself and what lies within it
            whole[name] = fold(add, (lift(whole[inner]) for inner, lift in lifts[name]), pathways[name].parameter)
        for name in order:
            within = pathways[name].within
            if within is not None and within.outer in pathways:
                lowered = within.lower(whole[within.outer])
                whole[name] = lowered / within.kappa if within.gram is None else _solve(within.gram(), lowered)
        rest = {n: fold(sub, (lift(whole[inner]) for inner, lift in lifts[n]), whole[n]) for n in order}
        return cls(whole, rest)


@torch.no_grad()
def rebalance(pathways: Mapping[str, Pathway], log_precisions: Logs) -> None:
    """Give every nested pathway, in place, its share of their sum under the prior: the scatter is then the least.

    θ = δ⁻¹ Rᵀ Σ⁻¹ W for the sum W, of variance Σ; the network's function stays as it is.

    Args:
        pathways: all of a network's.
        log_precisions: by pathway.
    """
    within, split = nested(pathways), Sum.of(pathways)
    lambdas, lifts = log_lambdas({name: log_precisions[name] for name in pathways}, within), _lifts(pathways)
    pulls: dict[str, Tensor] = {}  # Rᵀ Σ⁻¹ W
    for name in reversed(outermost_first(pathways, within)):
        place = pathways[name].within
        if name in within and place is not None and place.gram is not None:
            # Σ = I/λ' + R Rᵀ/δ: Rᵀ Σ⁻¹ = δ (Rᵀ R + δ/λ' I)⁻¹ Rᵀ
            gram, delta = place.gram(), log_precisions[name].exp()
            ridge = delta / lambdas[place.outer].exp() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            whole = split.whole[name]
            pulls[name] = delta * _solve(gram + ridge, (whole.reshape(-1, len(gram)) @ gram).reshape(whole.shape))
            continue
        pulls[name] = lambdas[name].exp() * split.rest[name]
        for inner, lift in lifts[name]:
            pulls[name] = pulls[name] + lift(pulls[inner]) / within[inner][1]
    shares = {name: pulls[name] / log_precisions[name].exp() for name in pathways}
    for name in outermost_first(pathways, within):
        if name in within:
            pathways[name].parameter.copy_(shares[name])
        elif lifts[name]:  # the outermost: what the others leave
            others = (lift(_whole_of(inner, shares, lifts)) for inner, lift in lifts[name])
            pathways[name].parameter.copy_(fold(sub, others, split.whole[name]))


def _whole_of(name: str, shares: Mapping[str, Tensor], lifts: "Lifts") -> Tensor:
    """A pathway and what lies within it, together."""
    return fold(add, (lift(_whole_of(inner, shares, lifts)) for inner, lift in lifts[name]), shares[name])


Lifts = Mapping[str, list[tuple[str, Callable[[Tensor], Tensor]]]]


def _lifts(pathways: Mapping[str, Pathway]) -> Lifts:
    """By pathway those right within it, with R."""
    found: dict[str, list[tuple[str, Callable[[Tensor], Tensor]]]] = {name: [] for name in pathways}
    for name, pathway in pathways.items():
        if pathway.within is not None and pathway.within.outer in pathways:
            found[pathway.within.outer].append((name, pathway.within.lift))
    return found


def _solve(matrix: Tensor, vectors: Tensor) -> Tensor:
    """M⁻¹ v of every n numbers in their order, for a symmetric M (n, n)."""
    return torch.linalg.solve(matrix, vectors.reshape(-1, len(matrix)), left=False).reshape(vectors.shape)


def _outermost(name: str, within: Nested) -> str:
    return _outermost(within[name][0], within) if name in within else name


def _depth(name: str, within: Nested) -> int:
    return 1 + _depth(within[name][0], within) if name in within else 0

"""One start of a network of a ranking: trained by the evidence, then judged by one that is the same for all."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from bayesws.evidence.curvature import Curvature
from bayesws.evidence.likelihood import Likelihood
from bayesws.io.json_files import Count, Measured, Seconds, of_kind
from bayesws.layers.identify import identify_groups
from bayesws.layers.weight_sharing import WeightSharing
from bayesws.training.fit import fit
from bayesws.training.result import FitResult
from bayesws.training.summaries import SharingRow
from bayesws.trials.comparable import MEANING
from bayesws.trials.doubt import doubts
from bayesws.trials.judged import judged
from bayesws.trials.ranking import RankedNetwork


@dataclass(frozen=True)
class Start:
    """What one start of a network has come to.

    Attributes:
        name: of the network.
        seed: of the start.
        log_evidence: nats, summed over the training data.
        examples: how many.
        parameters: number of weights.
        sharing: a row per layer, effective parameters by the same curvature as the evidence.
        groups: the known group of every sharing layer by the layer's name, "no group" where it is none.
        schedule: of the fit.
        seconds: wall time of fit and evidence.
        notes: what did not converge.
        test_nll: negative log likelihood of held-out data at the MAP, nats per datum; None where none were given.
        data: SHA-256 of the training data; None for a DataLoader.
        meaning: the `MEANING` that the numbers were computed by.
        curvature: that the log evidence was computed with; None in files of older versions.
    """

    name: str
    seed: int
    log_evidence: Measured
    examples: Count
    parameters: Count
    sharing: list[SharingRow]
    groups: dict[str, str]
    schedule: dict[str, Any]
    seconds: Seconds
    notes: list[str]
    test_nll: float | None
    data: str | None
    meaning: int | None
    curvature: Curvature | None = None

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """From what `dataclasses.asdict` made of one, as JSON brings it back; keys that are no fields are left out.

        Raises:
            ValueError: a record of something else.
        """
        found = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        return of_kind(found, cls, "the record of a start", "remove its file, and it is run again")


def started(
    name: str,
    net: nn.Module,
    data: Any,
    likelihood: Likelihood,
    curvature: Curvature | None,
    evidence_curvature: Curvature,
    *,
    seed: int,
    test: tuple[Tensor, Tensor] | None = None,
    **settings: Any,
) -> tuple[FitResult, Start]:
    """Train a network by the evidence from a seed, and compute the evidence that ranks.

    Args:
        name: of the network.
        net: at its initial weights.
        data, likelihood, curvature: as for `fit`.
        evidence_curvature: of the evidence that ranks.
        seed: as for `fit`.
        test: held-out (x, y).
        settings: further arguments of `fit`.

    Raises:
        ValueError, FloatingPointError: as `fit`, with the network's name before it.
    """
    began = time.perf_counter()
    try:
        result = fit(net, data, likelihood, "evidence", curvature, seed=seed, **settings)
        ranked = judged(result, data, evidence_curvature)
    except (ValueError, FloatingPointError, RuntimeError) as error:
        kind = FloatingPointError if isinstance(error, FloatingPointError) else ValueError
        raise kind(f"network {name!r}: {error}") from error
    evidence = ranked.evidence
    return result, Start(
        name,
        seed,
        evidence.log_evidence,
        evidence.examples,
        sum(p.parameters for p in evidence.by_pathway.values()),
        ranked.sharing,
        _groups(result.model),
        result.recipe.schedule,
        time.perf_counter() - began,
        [*ranked.notes, *([] if test is None else doubts(result, evidence, *test))],
        None if test is None else result.nll(*test, kind="map"),
        result.provenance.data,
        MEANING,
        evidence_curvature,
    )


def best_of(starts: Sequence[Start]) -> RankedNetwork:
    """A network of the ranking at the best of its starts, the first of several that are equal."""
    best = max(starts, key=lambda start: start.log_evidence)
    return RankedNetwork(
        best.name,
        best.log_evidence,
        [start.log_evidence for start in starts],
        best.seed,
        best.parameters,
        best.sharing,
        best.groups,
        sum(start.seconds for start in starts),
        best.notes,
        best.test_nll,
        best.data,
        best.meaning,
        best.curvature,
    )


def made(name: str, network: nn.Module | Callable[[], nn.Module], seed: int) -> nn.Module:
    """The network itself, or what its function makes from a seed; its name is for errors.

    Raises:
        ValueError: something else.
    """
    if isinstance(network, nn.Module):
        return network
    torch.manual_seed(seed)
    net = network() if callable(network) else network
    if not isinstance(net, nn.Module):
        raise ValueError(
            f"network {name!r} of type {type(net).__name__}: expected a network, or a function that makes one"
        )
    return net


def _groups(net: nn.Module) -> dict[str, str]:
    """The known group of every layer that shares, by name."""
    shares = any(isinstance(layer, WeightSharing) and layer.shared is not None for layer in net.modules())
    return {name: found.name or "no group" for name, found in identify_groups(net).items()} if shares else {}

"""What an evidence will take, said before it is spent: memory from shapes, time from a part of one batch."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bayesws.evidence.by_default import sharpest_curvature
from bayesws.evidence.checks import FEW, check_network
from bayesws.evidence.curvature import Curvature, curvature_named
from bayesws.evidence.footprint import held_numbers, peak_bytes
from bayesws.evidence.gathering import batch_plan
from bayesws.evidence.likelihood import Likelihood, likelihood_named
from bayesws.evidence.memory import SHARPEST_FIRST, in_bytes, memory_at_hand
from bayesws.evidence.networks import check_network_kind, check_trained
from bayesws.evidence.objective import batches_for
from bayesws.evidence.shapes import numbers_in_a_row, shapes_of
from bayesws.evidence.thinning import rows_for
from bayesws.evidence.timing import seconds_by_part, seconds_of
from bayesws.layers.cache import computed_once
from bayesws.layers.contract import declarations, evaluating


@dataclass(frozen=True)
class Forecast:
    """What one evidence takes, if no graph is kept of it; see `forecast`.

    Attributes:
        curvature: that is meant.
        memory: at the peak, bytes, beside the network and the data.
        held: of these the sums over the data, bytes: H itself, or its factors.
        at_hand: bytes that can be taken.
        seconds: inf where it does not fit.
        by_part: seconds of the signals, of the way back, of eigenvalues and determinants, and of the checks.
        fitting: the curvature itself where it fits, else the sharpest that does; None where none does.
    """

    curvature: Curvature
    memory: int
    held: int
    at_hand: int
    seconds: float
    by_part: dict[str, float]
    fitting: Curvature | None

    @property
    def fits(self) -> bool:
        """Whether the memory at hand holds it."""
        return self.memory <= self.at_hand

    @property
    def dominated_by(self) -> str:
        """The part that takes most of the time; "memory" where it does not fit."""
        return max(self.by_part, key=lambda part: self.by_part[part]) if self.by_part else "memory"

    def __str__(self) -> str:
        memory = f"{_named(self.curvature)}: {in_bytes(self.memory)} of {in_bytes(self.at_hand)}"
        if self.fits:
            return f"{memory}, {self.seconds:.2g} s, most of them for {self.dominated_by}"
        return f"{memory} does not fit; {'nothing does' if self.fitting is None else f'{_named(self.fitting)} does'}"


def forecast(
    net: nn.Module,
    data: Any,
    curvature: str | Curvature | None = None,
    likelihood: str | Likelihood = "classification",
    batch_size: int = 250,
) -> Forecast:
    """Memory and time of `log_evidence(net, data, likelihood, curvature)`, before they are spent.

    Memory follows from what the layers declare and from the shapes of one datum: the rows, or the P² numbers, of
    "full", the blocks of "layer", the factors of "kron", signals. Time is measured on a part of one batch and two
    columns, and on slices of large matrices: seconds = data · (signals + columns · way back) + factorisations. Where a
    structure is learned and gradients are kept, both are more.

    Args:
        net, data, curvature, likelihood, batch_size: as for `log_evidence`; of a DataLoader one batch is drawn.

    Raises:
        ValueError: what `log_evidence` raises; a DataLoader that does not know how many data it gives.

    >>> net = nn.Linear(3000, 5, bias=False)
    >>> found = forecast(net, (torch.zeros(2, 3000), torch.zeros(2, dtype=torch.int64)), "diag")
    >>> found.held  # one number of four bytes for every weight
    60000
    """
    check_network_kind(net)
    check_trained(net)
    model, batches = likelihood_named(likelihood), batches_for(net, data, batch_size)
    layers = declarations(net)
    x, y = next(iter(batches))
    if batches.length < 0:
        raise ValueError("a DataLoader that does not know how many data it gives: expected a Dataset with a length")
    asked = (
        sharpest_curvature(net, batches.total, lambda: x, model) if curvature is None else curvature_named(curvature)
    )
    with torch.no_grad(), evaluating(net), computed_once(net):
        shapes, outputs = shapes_of(net, layers, x)
        model.check(outputs[:1].expand(len(y), *outputs.shape[1:]), y)  # its labels are in range
        chunks, copies = batch_plan(net, layers, batches)
        some = (x.chunk(chunks)[0], y.chunk(chunks)[0])

        columns = model.hessian_root(outputs).shape[-1]

        def bytes_of(kind: Curvature) -> int:
            rows = rows_for(kind, batches.length, columns)
            return peak_bytes(kind, layers, shapes, rows, len(some[0]), outputs.element_size())

        memory, at_hand = bytes_of(asked), memory_at_hand(outputs.device)
        held = held_numbers(asked, layers, shapes, rows_for(asked, batches.length, columns)) * outputs.element_size()
        milder = (Curvature(kind) for kind in SHARPEST_FIRST)
        fitting = next((kind for kind in (asked, *milder) if bytes_of(kind) <= at_hand), None)
        by_part = {}
        if memory <= at_hand:
            checks = seconds_of(lambda: check_network(net, layers, x[:FEW]), outputs.device, turns=1)
            looked_at = max(1, round(asked.subset * batches.length))
            by_part = {"checks": checks} | seconds_by_part(
                net, layers, asked, model, some, copies, looked_at, numbers_in_a_row(layers, shapes)
            )
    seconds = sum(by_part.values()) if by_part else math.inf
    return Forecast(asked, memory, held, at_hand, seconds, by_part, fitting)


def _named(curvature: Curvature) -> str:
    """Its kind, and what is not as usual about it."""
    columns = "" if curvature.samples is None else f", {curvature.samples} sampled column(s)"
    share = "" if curvature.subset == 1 else f", {curvature.subset:.2g} of the data"
    return f"{curvature.kind}{columns}{share}"

"""A walk through the data, or through a part of it: what it sums is one value, and those of parts are added."""

import math
import warnings
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from bayesws.evidence.accumulators import Accumulator, accumulators_for
from bayesws.evidence.batches import Batches, spread
from bayesws.evidence.capture import (
    CACHED,
    Forward,
    Layers,
    output_gradients,
    overwrites,
    run_forward,
)
from bayesws.evidence.checks import FEW, check_network
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.hessian import sum_tensors
from bayesws.evidence.likelihood import Likelihood
from bayesws.evidence.memory import refuse_what_does_not_fit
from bayesws.evidence.sampling import Draw, sampled_batches
from bayesws.evidence.sentinel import Sentinel
from bayesws.evidence.sums import SEEN, Sums
from bayesws.evidence.thinning import rows_of, thinned
from bayesws.layers.cache import computed_once
from bayesws.layers.contract import declarations, evaluating

COLUMNS_AT_ONCE = 1
DATA_FIT, EXAMPLES = ("data fit",), ("examples",)  # keys of a walk's own sums


@dataclass(frozen=True)
class Gathered:
    """What a walk has summed over a whole data set, or over a part of one: gathered(a) + gathered(b) = gathered(a ∪ b).

    The parts are those of `Batches.part`, or other data that know their place, where columns are sampled or a subset
    is taken; any data where not.

    Attributes:
        sums: all that adds up, of every accumulator and the walk's own.
        accumulators: how H follows from the sums.
        outputs: of one example; 0 where none was looked at.
        curvature: what was asked for.
    """

    sums: Sums
    accumulators: list[Accumulator]
    outputs: int
    curvature: Curvature

    def __add__(self, other: "Gathered") -> "Gathered":
        if self.curvature != other.curvature:
            raise ValueError(f"sums for {self.curvature} and {other.curvature}: expected those for one curvature")
        if odd := sorted(self._shapes() ^ other._shapes()):
            raise ValueError(f"only one of the sums has pathway {odd[0][0]!r}, {odd[0][1]}: expected one network's")
        if 0 != self.outputs != other.outputs != 0:
            raise ValueError(f"sums of {self.outputs} and {other.outputs} outputs: expected one network's")
        return replace(self, sums=self.sums + other.sums, outputs=max(self.outputs, other.outputs))

    def _shapes(self) -> set[tuple[str, tuple[int, ...]]]:
        pathways = [named for accumulator in self.accumulators for named in accumulator.pathways.items()]
        return {(name, tuple(pathway.parameter.shape)) for name, (_, pathway) in pathways}

    @property
    def data_fit(self) -> Tensor:
        """log p(D | θ*) of the data that were looked at, nats."""
        return self.sums.tensors[DATA_FIT]

    @property
    def seen(self) -> int:
        """How many data were looked at."""
        return self.sums.counts[SEEN]

    @property
    def examples(self) -> int:
        """How many data these stand for; more than `seen` where the curvature takes a subset."""
        return self.sums.counts[EXAMPLES]

    @property
    def times(self) -> float:
        """How often the data that were looked at go into all data.

        Raises:
            ValueError: none was looked at.
        """
        if not self.seen:
            raise ValueError(f"none of {self.examples} data is in the subset: add what the other parts have summed")
        return self.examples / self.seen


def gather(
    net: nn.Module,
    data: Batches,
    likelihood: Likelihood,
    curvature: Curvature,
    graph: str = "none",
    check: bool = True,
    function_space: bool = False,
) -> Gathered:
    """Walk through the data once and sum what the curvature needs.

    Where rows are drawn in function space, a look at all outputs goes before it (see `thinning.thinned`).

    Args:
        graph: as for `add_batch`.
        function_space: as for `accumulators_for`.
    """
    layers = declarations(net)
    rows = partial(rows_of, net, data, likelihood, curvature) if function_space else None
    refuse_what_does_not_fit(layers, curvature, rows)
    _warn_of_normalisation(net)
    data_fits, seen, width = [], 0, 0
    with evaluating(net), computed_once(net):
        few = data.few(FEW) if check else None  # a batch of a DataLoader is looked at when it comes
        if few is not None:
            check_network(net, layers, few)
        chunks, copies = batch_plan(net, layers, data)
        batches = chunks * max(1, math.floor(curvature.subset * data.length) // data.batch_size)
        sentinel = Sentinel(net, layers, curvature.seed, batches, thorough=check)
        of_rows = thinned(net, data, likelihood, curvature)
        accumulators = accumulators_for(curvature, layers, function_space, drawn=of_rows is not None)
        for x, y, draw in sampled_batches(data, curvature, chunks, of_rows):
            unchecked = spread(x, FEW) if check and few is None and not seen else None
            picked = sentinel.pick(x)
            forward = run_forward(net, layers, x, copies)
            if not x.is_cuda or (check and not seen):  # a check reads back: on a device not in every batch
                likelihood.check(forward.outputs, y)
            if check:
                data.look_beside(likelihood, forward.outputs)
            if unchecked is not None:
                check_network(net, layers, unchecked)
            sentinel.look(forward, picked)
            data_fits.append(add_batch(forward, y, likelihood, accumulators, draw, graph))
            seen += len(x)
            width = forward.outputs[0].numel()
        sentinel.tell()
    data.check_beside()
    data_fit = sum_tensors(data_fits)
    if not torch.isfinite(data_fit):
        raise ValueError("the data fit is not finite: check the network's weights, its inputs and the targets")
    sums = [tensor.detach().sum() for accumulator in accumulators for tensor in accumulator.sums]
    if not torch.isfinite(sum_tensors(sums)):
        raise ValueError(
            "the curvature is not finite: expected outputs with a finite gradient for every datum; look for a square "
            "root, a norm or a logarithm at zero in the network, or for weights that are too large"
        )
    examples = data.length if curvature.subset < 1 else seen  # a loader need not give all of its data set
    own = Sums({DATA_FIT: data_fit}, {SEEN: seen, EXAMPLES: examples})
    return Gathered(sum((a.sums for a in accumulators), own), accumulators, width, curvature)


def batch_plan(net: nn.Module, layers: Layers, data: Batches) -> tuple[int, bool]:
    """In how many chunks to take a batch, so that the signals of its widest layer stay in a processor's cache, and
    whether the layers' outputs have to be copied.
    """
    first = data.first()
    if first is None:
        return 1, True
    copies, widest = overwrites(net, layers, first)
    return math.ceil(min(data.batch_size, data.length) * widest / CACHED) or 1, copies


def add_batch(
    forward: Forward,
    y: Tensor,
    likelihood: Likelihood,
    accumulators: list[Accumulator],
    draw: Draw,
    graph: str = "none",
) -> Tensor:
    """Add one batch to the accumulators; its log likelihood, nats.

    Args:
        graph: what the sums are to be differentiable in: "none", "signals" (everything) or "layers" (what the layers
            make of their signals, these taken as constants).
    """
    through, keep = graph == "signals", graph != "none"
    calls = forward.calls if through else {name: heard.detached() for name, heard in forward.calls.items()}
    if draw.kept is not None:
        calls = {name: heard.some(draw.kept) for name, heard in calls.items()}
        accumulators = accumulators if len(draw.kept) else []
    with torch.set_grad_enabled(keep):
        for accumulator in accumulators:
            accumulator.add_inputs(calls, draw)
        root = draw.combine(likelihood.hessian_root(forward.outputs if through else forward.outputs.detach()))
        if accumulators:
            root = root if through else root.detach()
            for gradients in output_gradients(forward, root, through, COLUMNS_AT_ONCE, keep):
                if draw.kept is not None:
                    gradients = {name: [g[:, draw.kept] for g in found] for name, found in gradients.items()}
                for accumulator in accumulators:
                    accumulator.add_gradients(calls, gradients)
        return likelihood.log_prob(forward.outputs, y)


def _warn_of_normalisation(net: nn.Module) -> None:
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    if found := next((name for name, m in net.named_modules() if isinstance(m, kinds)), None):
        warnings.warn(
            f"layer {found!r} normalises: weights right before it are scale-invariant, and the evidence is right only "
            "at the precisions that a fit finds, δ‖θ‖² = γ (arXiv 2206.08900)",
            stacklevel=5,
        )

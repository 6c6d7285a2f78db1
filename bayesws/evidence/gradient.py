"""The gradient of the log evidence in precisions, noise and structure, weights fixed: three ways to it.

"once"  one pass with its graph kept, then one backward pass through all of it: exact, memory grows with the data.
"twice" a detached pass; the derivative of the evidence in what that pass has summed (the adjoints); a second pass,
        batch by batch, that weights every batch's contribution with them. The same gradient in constant memory.
"local" the stack's part in the factors and in the likelihood alone: how the layers' inputs and output gradients, and
        through them the curvature, change with the structure is left out, and so is the noise in the curvature. The
        cheapest with Kronecker factors; not the evidence's gradient (on trained digits off by 0.1 to 0.5 of its norm:
        experiments/benchmarks).

None of them follows the weights: how the MAP θ* moves with the hyperparameters is left out (exact for linear networks).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from bayesws.evidence.accumulators import accumulators_for
from bayesws.evidence.batches import Batches
from bayesws.evidence.capture import run_forward
from bayesws.evidence.checks import differ
from bayesws.evidence.curvature import Curvature, curvature_named
from bayesws.evidence.gathering import DATA_FIT, Gathered, add_batch, batch_plan, gather
from bayesws.evidence.hessian import sum_tensors
from bayesws.evidence.likelihood import Likelihood, likelihood_named
from bayesws.evidence.networks import check_network_kind
from bayesws.evidence.objective import Evidence, assemble, batches_for, finish, laplace_pass, resolve_prior
from bayesws.evidence.rows import RowAccumulator
from bayesws.evidence.sampling import sampled_batches
from bayesws.evidence.sums import Key
from bayesws.evidence.thinning import thinned
from bayesws.io.arguments import choice, whole
from bayesws.layers.cache import computed_once, cut_from_parameters
from bayesws.layers.contract import declarations, evaluating, shaping_precisions, starting_log_precisions, structure

WAYS = ("once", "twice", "local")
# The second pass keeps the graphs of all columns of a chunk, so it takes chunks this much smaller than the first: where
# factors are summed, and where every column has rows of Jacobians.
CHUNKS, CHUNKS_WITH_ROWS = 4, 12


def evidence_gradient(
    net: nn.Module,
    data: Any,
    likelihood: str | Likelihood = "classification",
    curvature: str | Curvature = "kron",
    prior: Mapping[str, Tensor | float] | float | None = None,
    way: str = "twice",
    second_samples: int | None = None,
    batch_size: int = 250,
) -> tuple[Evidence, dict[str, Tensor]]:
    """The log evidence, and its gradient in all of its hyperparameters that require one.

    Args:
        net, data, likelihood, curvature, batch_size: as for `log_evidence`.
        prior: log precisions by pathway, as for `log_evidence`; those of layers with soft stacks are the layers' own,
            which shape their kernels.
        way: "once", "twice" or "local", see the module's text.
        second_samples: with "twice", how many sampled columns a datum its second pass takes; None takes those of the
            curvature. The adjoints are the first pass's, so where that takes all columns the gradient stays unbiased,
            for a fraction of the cost.

    Returns: the evidence in nats (not to be differentiated again), and gradients by name: as in
    `net.named_parameters()` for log precisions and logits, "log_noise", and "prior.<pathway>" for log precisions handed
    over in `prior` that require a gradient.

    Raises:
        ValueError: an unknown way, and what `log_evidence` raises.
    """
    check_network_kind(net)
    if second_samples is not None:
        whole("second_samples", second_samples, also=", or None for those of the curvature")
    model, log_precisions = likelihood_named(likelihood), resolve_prior(net, prior)
    shaping = {id(t) for t in shaping_precisions(net)}
    for name, own in starting_log_precisions(net).items():
        if id(own) in shaping and log_precisions[name] is not own:
            raise ValueError(f"prior for {name!r}: the stack is soft; set the layer's own log precision")
    wanted: dict[str, Tensor] = dict(zip(["log_noise"], model.hyperparameters(), strict=False))
    logits, tensors = {id(t) for t in structure(net)}, {id(t) for t in log_precisions.values()}
    wanted |= {n: p for n, p in net.named_parameters() if p.requires_grad and id(p) in logits | tensors | shaping}
    known = {id(t) for t in wanted.values()}
    wanted |= {f"prior.{n}": t for n, t in log_precisions.items() if t.requires_grad and id(t) not in known}
    evidence, found = gradient_in(
        net,
        batches_for(net, data, batch_size),
        model,
        curvature,
        log_precisions,
        list(wanted.values()),
        way,
        second_samples,
        again=True,
    )
    return evidence, dict(zip(wanted, found, strict=True))


def gradient_in(
    net: nn.Module,
    data: Batches,
    likelihood: Likelihood,
    curvature: str | Curvature,
    log_precisions: Mapping[str, Tensor],
    wanted: Sequence[Tensor],
    way: str = "twice",
    second_samples: int | None = None,
    again: bool = False,
) -> tuple[Evidence, list[Tensor]]:
    """The same in given tensors: log precisions, noise, logits; zero in those that it does not depend on.

    Args:
        again: whether to hold that a loader gives the second pass the data of the first: a fit may take another draw.
    """
    choice("way", way, WAYS)
    asked = curvature_named(curvature)
    if way == "once":
        with torch.enable_grad():
            evidence = assemble(net, laplace_pass(net, data, likelihood, asked), log_precisions)
            return evidence, _gradients(evidence.total, wanted)
    with torch.no_grad():
        gathered = gather(net, data, likelihood, asked)
    evidence, adjoints, direct = adjoints_of(net, gathered, log_precisions, wanted)
    if not wanted:
        return evidence, []
    draws = asked if second_samples is None else replace(asked, samples=second_samples)
    data_fit = gathered.data_fit if again else None
    through_sums = second_pass(net, data, likelihood, asked, draws, adjoints, wanted, way == "local", data_fit)
    return evidence, [a + b for a, b in zip(direct, through_sums, strict=True)]


def adjoints_of(
    net: nn.Module, gathered: Gathered, log_precisions: Mapping[str, Tensor], wanted: Sequence[Tensor]
) -> tuple[Evidence, dict[Key, Tensor], list[Tensor]]:
    """The evidence, its derivative in every sum of a walk, and its gradient in `wanted` with the sums held."""
    with torch.enable_grad(), computed_once(net):
        leaves = gathered.sums.leaves()
        evidence = assemble(net, finish(replace(gathered, sums=leaves)), log_precisions)
        found = _gradients(evidence.total, [*leaves.tensors.values(), *wanted])
    return evidence, dict(zip(leaves.tensors, found, strict=False)), found[len(leaves.tensors) :]


def second_pass(
    net: nn.Module,
    data: Batches,
    likelihood: Likelihood,
    curvature: Curvature,
    draws: Curvature,
    adjoints: Mapping[Key, Tensor],
    wanted: Sequence[Tensor],
    local: bool,
    data_fit: Tensor | None = None,
) -> list[Tensor]:
    """The gradient of Σ <adjoint, sum>, the adjoints held; those of parts of the data add up to that of the whole.

    Chunk by chunk down to the layers' stacks and kernels; from there on to `wanted` once.

    Args:
        net, data, likelihood, curvature: as in the first pass; data may be a part of that pass's.
        draws: the curvature with the sampled columns that this pass takes.
        adjoints: of all that the first pass has summed, by key.
        wanted: tensors to differentiate in.
        local: whether to take the layers' signals as constants.
        data_fit: what the first pass has found for the same data; None where it may have been others.

    Raises:
        ValueError: data that are not those of the first pass.
    """
    layers = declarations(net)
    of_rows = thinned(net, data, likelihood, curvature)
    total: list[Tensor] = []
    data_fits: list[Tensor] = []
    with evaluating(net), torch.enable_grad(), cut_from_parameters(net) as cut:
        smaller = CHUNKS if curvature.kind == "kron" else CHUNKS_WITH_ROWS
        if draws.samples is not None:
            smaller = min(smaller, 2 * draws.samples)
        chunks, copies = batch_plan(net, layers, data)
        for x, y, draw in sampled_batches(data, draws, chunks * smaller, of_rows):
            accumulators = accumulators_for(curvature, layers, drawn=of_rows is not None)
            forward = run_forward(net, layers, x, copies)
            if local:  # Kronecker factors are sums of signals alone; rows of Jacobians have been through the stack
                accumulators = [a for a in accumulators if isinstance(a, RowAccumulator)]
            graph = "layers" if local else "signals"
            fit = add_batch(forward, y, likelihood, accumulators, draw, graph)
            data_fits.append(fit.detach())
            value = adjoints[DATA_FIT] * fit
            for accumulator in accumulators:
                value = value + sum((adjoints[key] * term).sum() for key, term in accumulator.sums.tensors.items())
            found = _gradients(value, [*wanted, *cut.leaves])
            total = [f if t is None else t + f for t, f in zip_longest(total, found)]  # more leaves may turn up later
        if data_fit is not None and differ(sum_tensors(data_fits), data_fit):
            raise ValueError(
                "the loader gives other data every time: expected those of the first pass again in the second; "
                "use way='once', or a sampler that draws once"
            )
        if not total:  # a part without a datum of the subset
            return [torch.zeros_like(t) for t in wanted]
        direct, below = total[: len(wanted)], total[len(wanted) :]
        if not (below and wanted):
            return direct
        onward = torch.autograd.grad(cut.values, wanted, below, allow_unused=True)
    return [a if b is None else a + b for a, b in zip(direct, onward, strict=True)]


def _gradients(value: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
    if not (value.requires_grad and wanted):
        return [torch.zeros_like(t) for t in wanted]
    found = torch.autograd.grad(value, wanted, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, wanted, strict=True)]

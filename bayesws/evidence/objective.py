"""The Laplace evidence of a network: what the data says of its precisions, its noise and its structure."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayesws.evidence.accumulators import CACHED, Accumulator, Sums, accumulators_for, joint_hessian
from bayesws.evidence.batches import Batches
from bayesws.evidence.capture import Forward, Layers, check_declarations, output_gradients, overwrites, run_forward
from bayesws.evidence.curvature import Curvature, curvature_named
from bayesws.evidence.hessian import Hessian, Repeated, sum_tensors
from bayesws.evidence.likelihood import Categorical, Gaussian, likelihood_named
from bayesws.evidence.sampling import Draw, sampled_batches
from bayesws.layers.cache import computed_once
from bayesws.layers.contract import (
    declarations,
    evaluating,
    named_pathways,
    shaping_precisions,
    starting_log_precisions,
    structure,
)


@dataclass(frozen=True)
class PathwayEvidence:
    """One pathway's part in the evidence.

    Attributes:
        scatter: ½ δ ‖θ‖², nats.
        occam: its share of the Occam factor, nats; None where the curvature couples the pathways ("full").
        effective: γ, the effective number of parameters.
        parameters: the number of parameters.
        log_precision: log δ.
    """

    scatter: Tensor
    occam: Tensor | None
    effective: Tensor
    parameters: int
    log_precision: Tensor


@dataclass(frozen=True)
class Evidence:
    """log p(D | Θ, Λ, σ) ≈ data_fit - scatter - occam, in nats summed over the data.

    Attributes:
        data_fit: log p(D | θ*).
        scatter: ½ θ*ᵀ Λ θ*.
        occam: ½ log det(I + Λ⁻¹ H).
        by_pathway: every pathway's part, by "layer.pathway".
        examples: number of data.
        curvature: what was computed; its `bound` says how the number stands to the exact one.
    """

    data_fit: Tensor
    scatter: Tensor
    occam: Tensor
    by_pathway: dict[str, PathwayEvidence]
    examples: int
    curvature: Curvature

    @property
    def total(self) -> Tensor:
        """The log evidence, nats; differentiable."""
        return self.data_fit - self.scatter - self.occam

    def __float__(self) -> float:
        return float(self.total.detach())


@dataclass(frozen=True)
class LaplacePass:
    """One pass over the data: everything of the evidence that does not depend on the precisions.

    Attributes:
        data_fit: log p(D | θ*), nats; of a subset, scaled to all data.
        hessian: H in the form that the Occam factor needs.
        examples: number of data that the evidence is about (all, also where a subset was looked at).
        outputs: of one example.
        curvature: what was computed.
    """

    data_fit: Tensor
    hessian: Hessian
    examples: int
    outputs: int
    curvature: Curvature


def laplace_pass(
    net: nn.Module,
    data: Batches,
    likelihood: Categorical | Gaussian,
    curvature: str | Curvature = "kron",
    check: bool = True,
) -> LaplacePass:
    """Data fit and curvature of a network at its present weights.

    The result is differentiable in the structure and the noise if any of them requires a gradient and gradients are
    enabled (torch.no_grad() turns that off, and saves its time and memory).

    Args:
        check: whether to hold the layers' declarations against autograd, on two data.

    Raises:
        ValueError: an unknown curvature, a parameter that nothing declares, data that does not fit.
    """
    learnable: list[Tensor] = [*structure(net), *likelihood.hyperparameters(), *shaping_precisions(net)]
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in learnable)
    graph = "signals" if differentiable else "none"
    with computed_once(net):
        return finish(gather(net, data, likelihood, curvature_named(curvature), graph, check))


@dataclass(frozen=True)
class Gathered:
    """What a walk through the data has summed."""

    data_fit: Tensor  # of the data looked at
    accumulators: list[Accumulator]
    seen: int
    examples: int
    outputs: int
    curvature: Curvature

    @property
    def times(self) -> float:
        """How often the data that were looked at go into all data."""
        return self.examples / self.seen


def gather(
    net: nn.Module,
    data: Batches,
    likelihood: Categorical | Gaussian,
    curvature: Curvature,
    graph: str = "none",
    check: bool = True,
) -> Gathered:
    """Walk through the data once and sum what the curvature needs; `graph` as for `add_batch`."""
    layers = declarations(net)
    accumulators = accumulators_for(curvature, layers)
    _warn_of_normalisation(net)
    data_fits, seen, width = [], 0, 0
    with evaluating(net), computed_once(net):
        parts, copies = batch_plan(net, layers, data)
        for x, y, draw in sampled_batches(data, curvature, parts):
            forward = run_forward(net, layers, x, copies)
            if not x.is_cuda or (check and not seen):  # a check reads back: on a device not in every batch
                likelihood.check(forward.outputs, y)
            if check and not seen:
                check_declarations(net, layers, x)
            data_fits.append(add_batch(forward, y, likelihood, accumulators, draw, graph))
            seen += len(x)
            width = forward.outputs[0].numel()
    data_fit = sum_tensors(data_fits)
    if not torch.isfinite(data_fit):
        raise ValueError("the data fit is not finite: check the network's weights, its inputs and the targets")
    return Gathered(data_fit, accumulators, seen, max(len(data), seen), width, curvature)


def batch_plan(net: nn.Module, layers: Layers, data: Batches) -> tuple[int, bool]:
    """In how many parts to take a batch, so that the signals of its widest layer stay in a processor's cache, and
    whether the layers' outputs have to be copied.
    """
    first = data.first()
    if first is None:
        return 1, True
    copies, widest = overwrites(net, layers, first)
    return math.ceil(min(data.batch_size, len(data)) * widest / CACHED) or 1, copies


def add_batch(
    forward: Forward,
    y: Tensor,
    likelihood: Categorical | Gaussian,
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
    with torch.set_grad_enabled(keep):
        for part in accumulators:
            part.add_inputs(calls, draw)
        root = draw.combine(likelihood.hessian_root(forward.outputs if through else forward.outputs.detach()))
        if accumulators:
            root = root if through else root.detach()
            for gradients in output_gradients(forward, root, through, COLUMNS_AT_ONCE, keep):
                for part in accumulators:
                    part.add_gradients(calls, gradients)
        return likelihood.log_prob(forward.outputs, y)


def finish(gathered: Gathered, sums: list[Sums] | None = None) -> LaplacePass:
    """The pass that follows from what was gathered, or from sums in its place (to differentiate in them)."""
    hessian = joint_hessian(gathered.accumulators, [m.sums for m in gathered.accumulators] if sums is None else sums)
    if gathered.curvature.subset < 1:
        hessian = Repeated(hessian, gathered.times)
    data_fit = gathered.times * gathered.data_fit
    return LaplacePass(data_fit, hessian, gathered.examples, gathered.outputs, gathered.curvature)


def assemble(net: nn.Module, done: LaplacePass, log_precisions: Mapping[str, Tensor]) -> Evidence:
    """The evidence from a pass, for given log precisions; differentiable in these."""
    pathways = dict(named_pathways(net))
    scatters = {
        name: 0.5 * log_precisions[name].exp() * p.parameter.detach().square().sum() for name, p in pathways.items()
    }
    occam, effective = done.hessian.occam_by_pathway(log_precisions), done.hessian.effective(log_precisions)
    zero = torch.zeros(())
    by_pathway = {
        name: PathwayEvidence(
            scatters[name],
            occam.get(name, zero),
            effective.get(name, zero),
            p.numel,
            log_precisions[name],
        )
        for name, p in pathways.items()
    }
    return Evidence(
        done.data_fit,
        sum_tensors(scatters.values()),
        done.hessian.occam(log_precisions),
        by_pathway,
        done.examples,
        done.curvature,
    )


def log_evidence(
    net: nn.Module,
    data: Any,
    likelihood: str | Categorical | Gaussian = "classification",
    curvature: str | Curvature = "full",
    prior: Mapping[str, Tensor | float] | float | None = None,
    batch_size: int = 250,
) -> Evidence:
    """The Laplace approximation of the log evidence of a network at its present weights.

    log p(D | Θ, Λ, σ) ≈ log p(D | θ*) - ½ θ*ᵀ Λ θ* - ½ log det(I + Λ⁻¹ H)

    with H the generalised Gauss-Newton matrix of the negative log likelihood. The weights are taken as the MAP θ*:
    how the MAP moves with the hyperparameters is left out of the gradient (exact for linear networks).

    Args:
        net: a network of `bayesws.layers`, nn.Linear, nn.Conv1d/2d/3d, affine normalisation and parameter-free modules;
            a module may be called several times. What it cannot treat raises an error, and is never left out.
        data: a pair of tensors (x, y), a Dataset or a DataLoader.
        likelihood: "classification" (logits, integer labels), "regression" (σ = 1), or a likelihood with its own σ.
        curvature: a `Curvature`, or its structure: "full" (exact, P² memory), "layer", "pathway", "kron" or "diag".
        prior: log precisions by pathway name, or one for all; those not named, and None, are the layers' own, and
            log 1 for plain torch layers. A `FitResult` has its own in `.prior`.
        batch_size: how many data are treated at once; does not change the result.

    Returns: an `Evidence` in nats, summed over the data, differentiable in precisions, noise and structure.

    Raises:
        ValueError: names that are unknown, data that does not fit, parameters that cannot be treated.

    >>> net = nn.Linear(1, 1, bias=False)  # y = w x + noise, w ~ N(0, 1), noise ~ N(0, 1), one datum: p(D) = N(1; 0, 2)
    >>> _ = nn.init.constant_(net.weight, 0.5)  # the MAP
    >>> found = log_evidence(net, (torch.ones(1, 1), torch.ones(1, 1)), "regression")
    >>> round(float(found), 4)  # -1/4 - ½ log 4π
    -1.5155
    >>> round(found.occam.item(), 4), round(found.by_pathway["weight"].effective.item(), 4)  # ½ log 2 nats, γ = ½
    (0.3466, 0.5)

    References: MacKay (1992); arXiv 2104.04975, eq. 5; arXiv 2310.06131, eq. 6.
    """
    model = likelihood_named(likelihood)
    log_precisions = resolve_prior(net, prior)
    batches, asked = Batches(data, batch_size), curvature_named(curvature)

    def evidence(network: nn.Module) -> Evidence:
        return assemble(network, laplace_pass(network, batches, model, asked), log_precisions)

    # A soft stack's free pathway takes its shape from the precisions, so a prior that is given must reach the layers.
    own = {id(parameter): name for name, parameter in net.named_parameters()}
    given = {
        f"network.{own[id(tensor)]}": log_precisions[name]
        for name, tensor in starting_log_precisions(net).items()
        if id(tensor) in own
    }
    return torch.func.functional_call(_Within(net), given, (evidence,))


def resolve_prior(net: nn.Module, prior: Mapping[str, Tensor | float] | float | None) -> dict[str, Tensor]:
    """Log precisions of every pathway: those given, else the layers' own; pathways of one tensor keep one precision.

    Raises:
        ValueError: a name that is not a pathway of the network.
    """
    declared = starting_log_precisions(net)
    if prior is None:
        return declared
    if not isinstance(prior, Mapping):
        prior = dict.fromkeys(declared, prior)
    if unknown := next((name for name in prior if name not in declared), None):
        raise ValueError(f"prior for {unknown!r}: expected pathways among {', '.join(declared)}")
    given = {
        name: torch.as_tensor(value, dtype=declared[name].dtype, device=declared[name].device)
        for name, value in prior.items()
    }
    of_tensor = {id(declared[name]): value for name, value in given.items()}
    shared = {name: of_tensor[id(own)] for name, own in declared.items() if id(own) in of_tensor}
    return declared | shared | given


class _Within(nn.Module):
    """A network as a module's child, so that torch.func.functional_call can hand it other precisions."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, run: Callable[[nn.Module], Evidence]) -> Evidence:
        return run(self.network)


def _warn_of_normalisation(net: nn.Module) -> None:
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    if found := next((name for name, m in net.named_modules() if isinstance(m, kinds)), None):
        warnings.warn(
            f"layer {found!r} normalises: weights right before it are scale-invariant, and the linearised evidence "
            "is not meaningful for their precision (arXiv 2206.08900)",
            stacklevel=5,
        )


COLUMNS_AT_ONCE = 1

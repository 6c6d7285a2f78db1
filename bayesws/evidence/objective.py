"""The Laplace evidence of a network: what the data says of its precisions, its noise and its structure."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayesws.evidence.batches import Batches
from bayesws.evidence.curvature import Curvature, accumulator, sum_tensors
from bayesws.evidence.likelihood import Categorical, Gaussian, likelihood_named
from bayesws.evidence.signals import layer_signals
from bayesws.layers.base import (
    declarations,
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
    """

    data_fit: Tensor
    scatter: Tensor
    occam: Tensor
    by_pathway: dict[str, PathwayEvidence]
    examples: int

    @property
    def total(self) -> Tensor:
        """The log evidence, nats; differentiable."""
        return self.data_fit - self.scatter - self.occam

    def __float__(self) -> float:
        return float(self.total.detach())


@dataclass(frozen=True)
class LaplacePass:
    """One pass over the data: everything of the evidence that does not depend on the precisions."""

    data_fit: Tensor
    curvature: Curvature
    examples: int
    outputs: int  # of one example


def laplace_pass(
    net: nn.Module, data: Batches, likelihood: Categorical | Gaussian, curvature: str = "kron"
) -> LaplacePass:
    """Data fit and curvature of a network at its present weights.

    The result is differentiable in the structure and the noise if any of them requires a gradient and gradients are
    enabled (torch.no_grad() turns that off, and saves its time and memory).

    Raises:
        ValueError: an unknown curvature, a parameter that nothing declares, data that does not fit.
    """
    layers = declarations(net)
    gathered = accumulator(curvature, layers)
    learnable: list[Tensor] = [*structure(net), *likelihood.hyperparameters(), *shaping_precisions(net)]
    create_graph = torch.is_grad_enabled() and any(t.requires_grad for t in learnable)
    _warn_of_normalisation(net)
    data_fits, examples, width = [], 0, 0
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        for x, y in data:
            outputs, signals = layer_signals(net, layers, x, y, likelihood, create_graph)
            data_fits.append(likelihood.log_prob(outputs, y))
            gathered.add(signals)
            examples += len(x)
            width = outputs[0].numel()
    finally:
        for module, mode in modes.items():
            module.training = mode
    return LaplacePass(sum_tensors(data_fits), gathered.result(), examples, width)


def assemble(net: nn.Module, done: LaplacePass, log_precisions: Mapping[str, Tensor]) -> Evidence:
    """The evidence from a pass, for given log precisions; differentiable in these."""
    pathways = dict(named_pathways(net))
    scatters = {
        name: 0.5 * log_precisions[name].exp() * p.parameter.detach().square().sum() for name, p in pathways.items()
    }
    occam, effective = (
        done.curvature.occam_by_pathway(log_precisions),
        done.curvature.effective(log_precisions),
    )
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
        done.curvature.occam(log_precisions),
        by_pathway,
        done.examples,
    )


def log_evidence(
    net: nn.Module,
    data: Any,
    likelihood: str | Categorical | Gaussian = "classification",
    curvature: str = "full",
    prior: Mapping[str, Tensor | float] | float | None = None,
    batch_size: int = 250,
) -> Evidence:
    """The Laplace approximation of the log evidence of a network at its present weights.

    log p(D | Θ, Λ, σ) ≈ log p(D | θ*) - ½ θ*ᵀ Λ θ* - ½ log det(I + Λ⁻¹ H)

    with H the generalised Gauss-Newton matrix of the negative log likelihood. The weights are taken as the MAP θ*:
    how the MAP moves with the hyperparameters is left out of the gradient (exact for linear networks).

    Args:
        net: a network of `bayesws.layers`, nn.Linear, nn.Conv2d and parameter-free modules.
        data: a pair of tensors (x, y), a Dataset or a DataLoader.
        likelihood: "classification" (logits, integer labels), "regression" (σ = 1), or a likelihood with its own σ.
        curvature: "full" (exact, P² memory), "kron" (KFAC-expand; a lower bound in that it leaves out what couples
            pathways) or "diag".
        prior: log precisions by pathway name, or one for all; those not named, and None, are the layers' own, and
            log 1 for plain torch layers. A `FitResult` has its own in `.prior`.
        batch_size: how many data are treated at once; does not change the result.

    Returns: an `Evidence` in nats, summed over the data, differentiable in precisions, noise and structure.

    Raises:
        ValueError: names that are unknown, data that does not fit, parameters that cannot be treated.

    References: MacKay (1992); arXiv 2104.04975, eq. 5; arXiv 2310.06131, eq. 6.
    """
    model = likelihood_named(likelihood)
    log_precisions = resolve_prior(net, prior)
    batches = Batches(data, batch_size)

    def evidence(network: nn.Module) -> Evidence:
        return assemble(network, laplace_pass(network, batches, model, curvature), log_precisions)

    # A soft stack's free pathway takes its shape from the precisions, so a prior that is given must reach the layers.
    own = {id(parameter): name for name, parameter in net.named_parameters()}
    given = {
        f"network.{own[id(tensor)]}": log_precisions[name]
        for name, tensor in starting_log_precisions(net).items()
        if id(tensor) in own
    }
    return torch.func.functional_call(_Within(net), given, (evidence,))


def resolve_prior(net: nn.Module, prior: Mapping[str, Tensor | float] | float | None) -> dict[str, Tensor]:
    """Log precisions of every pathway: those given, else the layers' own.

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
    return declared | given


class _Within(nn.Module):
    """A network as a module's child, so that torch.func.functional_call can hand it other precisions."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, run: Callable[[nn.Module], Evidence]) -> Evidence:
        return run(self.network)


def _warn_of_normalisation(net: nn.Module) -> None:
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    if found := next((name for name, m in net.named_modules() if isinstance(m, kinds)), None):
        warnings.warn(
            f"layer {found!r} normalises: weights right before it are scale-invariant, and the linearised evidence "
            "is not meaningful for their precision (arXiv 2206.08900)",
            stacklevel=4,
        )

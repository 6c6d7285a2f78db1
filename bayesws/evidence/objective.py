"""The Laplace evidence of a network: what the data says of its precisions, its noise and its structure."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from bayesws.evidence.accumulators import joint_hessian
from bayesws.evidence.batches import Batches
from bayesws.evidence.by_default import sharpest_curvature
from bayesws.evidence.curvature import Curvature, curvature_named
from bayesws.evidence.gathering import Gathered, gather
from bayesws.evidence.hessian import Hessian, Repeated, sum_tensors
from bayesws.evidence.likelihood import Likelihood, likelihood_named
from bayesws.evidence.networks import check_network_kind
from bayesws.layers.cache import computed_once
from bayesws.layers.contract import (
    called_with,
    named_pathways,
    shaping_precisions,
    starting_log_precisions,
    structure,
)

SATURATED = 0.75  # effective parameters, as a share of sampled rows


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
        sampled_rows: of the determinant, where they were drawn (see `LaplacePass`).
    """

    data_fit: Tensor
    scatter: Tensor
    occam: Tensor
    by_pathway: dict[str, PathwayEvidence]
    examples: int
    curvature: Curvature
    sampled_rows: int | None = None

    @property
    def saturated(self) -> bool:
        """Whether sampled rows are too few for what the data determine: γ is more than three quarters of their number.

        H has at most as many eigenvalues as there are rows, and so γ is at most their number. Where it comes near, the
        Occam factor is too small, and precisions that are set by it let the network learn its data by heart.
        """
        if self.sampled_rows is None:
            return False  # before anything is read back from a device
        return sum(float(p.effective.detach()) for p in self.by_pathway.values()) > SATURATED * self.sampled_rows

    @property
    def too_few_rows(self) -> str:
        """What there is to say where it is so."""
        return (
            f"the data determine more parameters than {self.sampled_rows} sampled rows can hold, so the evidence is "
            "too high: take curvature='kron', or more rows"
        )

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

    @property
    def sampled_rows(self) -> int | None:
        """How many rows H was drawn as, and so the most eigenvalues that it can have; None where nothing was drawn."""
        curvature = self.curvature
        if curvature.kind != "full" or curvature.samples is None:
            return None
        looked_at = round(self.examples * curvature.subset)
        if curvature.rows >= looked_at and curvature.samples >= self.outputs:
            return None  # these are all rows that there are
        return min(looked_at, curvature.rows) * curvature.samples


def laplace_pass(
    net: nn.Module,
    data: Batches,
    likelihood: Likelihood,
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
        asked = curvature_named(curvature)
        return finish(gather(net, data, likelihood, asked, graph, check, function_space=True))


def finish(gathered: Gathered) -> LaplacePass:
    """The pass that follows from what was gathered, differentiable in its sums."""
    times, hessian = gathered.times, joint_hessian(gathered.accumulators, gathered.sums)
    if gathered.curvature.subset < 1:
        hessian = Repeated(hessian, times)
    return LaplacePass(times * gathered.data_fit, hessian, gathered.examples, gathered.outputs, gathered.curvature)


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
        done.sampled_rows,
    )


def log_evidence(
    net: nn.Module,
    data: Any,
    likelihood: str | Likelihood = "classification",
    curvature: str | Curvature | None = None,
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
        data: a pair of tensors or numpy arrays (x, y), a Dataset or a DataLoader. A loader, or a Dataset, may also give
            mappings, with one of x, input(s), image(s), ... and one of y, target(s), label(s), or tuples (x, y, ...).
            x goes to the network in the type of its weights where it does not take x as it is; bytes (uint8) divided by
            255 (see `evidence.examples`).
        likelihood: "classification" (logits, integer labels), "regression" (σ = 1), or a likelihood with its own σ.
        curvature: a `Curvature`, or its kind: "full" (exact; R × P and R² numbers of memory for R = data × columns, or
            P² where that is less), "layer", "pathway", "kron" or "diag". `Curvature("full", samples=2)` has two rows a
            datum, of at most about 2000: nearly exact, the judge between starts and structures where "full" does not
            fit. None takes the sharpest that can be afforded (see `by_default.sharpest_curvature`). The result's own
            `curvature` says which it was.
        prior: log precisions by pathway name, or one for all; those not named, and None, are the layers' own, and
            log 1 for plain torch layers. A `FitResult` has its own in `.prior`.
        batch_size: how many data are treated at once; does not change the result.

    Returns: an `Evidence` in nats, summed over the data, differentiable in precisions, noise and structure.

    Raises:
        ValueError: names that are unknown, data that does not fit, parameters that cannot be treated.

    Warns: of sampled rows that are too few for what the data determine (`Evidence.saturated`).

    >>> net = nn.Linear(1, 1, bias=False)  # y = w x + noise, w ~ N(0, 1), noise ~ N(0, 1), one datum: p(D) = N(1; 0, 2)
    >>> _ = nn.init.constant_(net.weight, 0.5)  # the MAP
    >>> found = log_evidence(net, (torch.ones(1, 1), torch.ones(1, 1)), "regression")
    >>> round(float(found), 4)  # -1/4 - ½ log 4π
    -1.5155
    >>> round(found.occam.item(), 4), round(found.by_pathway["weight"].effective.item(), 4)  # ½ log 2 nats, γ = ½
    (0.3466, 0.5)

    References: MacKay (1992); arXiv 2104.04975, eq. 5; arXiv 2310.06131, eq. 6.
    """
    check_network_kind(net)
    model = likelihood_named(likelihood)
    log_precisions, batches = resolve_prior(net, prior), batches_for(net, data, batch_size)
    asked = (
        sharpest_curvature(net, batches.total, batches.example, model)
        if curvature is None
        else curvature_named(curvature)
    )

    def evidence(network: nn.Module) -> Evidence:
        return assemble(network, laplace_pass(network, batches, model, asked), log_precisions)

    # A soft stack's free pathway takes its shape from the precisions, so a prior that is given must reach the layers.
    own = {id(parameter): name for name, parameter in net.named_parameters()}
    given = {
        f"network.{own[id(tensor)]}": log_precisions[name]
        for name, tensor in starting_log_precisions(net).items()
        if id(tensor) in own
    }
    found: Evidence = called_with(_Within(net), given, evidence)
    if found.saturated:
        warnings.warn(found.too_few_rows, stacklevel=2)
    return found


def batches_for(net: nn.Module, data: Any, batch_size: int) -> Batches:
    """Data as a network takes them, where it is."""
    return Batches(data, batch_size, next((p.device for p in net.parameters()), None), net=net)


def resolve_prior(net: nn.Module, prior: Mapping[str, Tensor | float] | float | None) -> dict[str, Tensor]:
    """Log precisions of every pathway: those given, else the layers' own; pathways of one tensor keep one precision.

    Raises:
        ValueError: a name that is not a pathway of the network, a log precision that no float holds.
    """
    declared = starting_log_precisions(net)
    if prior is None:
        return declared
    if not isinstance(prior, Mapping):
        prior = dict.fromkeys(declared, prior)
    if not all(isinstance(name, str) for name in prior):
        raise ValueError(f"prior by {next(n for n in prior if not isinstance(n, str))!r}: expected names of pathways")
    if unknown := next((name for name in prior if name not in declared), None):
        raise ValueError(f"prior for {unknown!r}: expected pathways among {', '.join(declared)}")
    given = {name: _log_precision(name, value, declared[name]) for name, value in prior.items()}
    for name, value in given.items():
        if not -LARGEST <= float(value.detach()) <= LARGEST:  # nan is neither
            raise ValueError(
                f"prior for {name!r}, {float(value.detach()):g}: expected a log precision between {-LARGEST:g} and "
                f"{LARGEST:g}; e^16 switches a pathway off"
            )
    of_tensor = {id(declared[name]): value for name, value in given.items()}
    shared = {name: of_tensor[id(own)] for name, own in declared.items() if id(own) in of_tensor}
    return declared | shared | given


def _log_precision(name: str, value: Any, own: Tensor) -> Tensor:
    """A log precision in the type of the pathway's own; a tensor stays in its graph."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() and not value.is_meta:
        return value.reshape(()).to(own.device, own.dtype)
    if isinstance(value, Real) and not isinstance(value, bool):
        return torch.as_tensor(float(value), dtype=own.dtype, device=own.device)
    came = f"a {type(value).__name__}" if not isinstance(value, Tensor) else f"a tensor of shape {tuple(value.shape)}"
    raise ValueError(f"prior for {name!r}, {came}: expected one log precision, a number or a scalar tensor")


LARGEST = 80.0  # log precision: e^88 is the end of float32


class _Within(nn.Module):
    """A network as a module's child, so that `called_with` can hand it other precisions."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, run: Callable[[nn.Module], Evidence]) -> Evidence:
        return run(self.network)

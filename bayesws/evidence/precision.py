"""Setting precisions by the evidence: MacKay's fixed point on a pass that is already paid for."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bayesws.evidence.hessian import Hessian, sum_tensors
from bayesws.evidence.nesting import Nested, log_lambdas, log_outside, nested, outermost_first, rebalance
from bayesws.layers.contract import Pathway, named_pathways

LOG_BOUNDS = (-8.0, 16.0)  # of log δ: e¹⁶ switches a pathway off, in float32 as well
STILL = 1e-6  # of log δ: a step that moves none further is the last; about what float32 tells apart
TINY = torch.finfo(torch.float32).tiny


@torch.no_grad()
def update_precisions(
    net: nn.Module,
    hessian: Hessian,
    log_precisions: Mapping[str, Tensor],
    steps: int = 1,
    damping: float = 0.5,
    largest_step: float = 1.0,
    hold_split: bool = False,
) -> None:
    """Move log precisions, in place, towards the stationary point δ = γ(δ) / ‖θ‖² of the evidence.

    log δ ← log δ + damping · (log γ(δ) - log δ‖θ‖²), at most `largest_step` a step, within LOG_BOUNDS. Damping below
    one is needed: for a pathway without support γ ≈ tr(H) / δ, and the undamped iteration swings for ever.

    Of pathways that act within one another's directions (`nesting`) the sum is held, and not its split, which is
    brought in balance, in place; they step in the coordinates λ that decouple them. Where the inner pathway's variance
    1/δ = 1/λ - 1/κλ' would not be positive it is closed, and the outer one steps as the sum alone.

    Args:
        net: the network, for ‖θ‖² at its present weights.
        hessian: from `laplace_pass`; its eigenvalues are reused in every step.
        log_precisions: by pathway; pathways that share one tensor share one precision.
        steps: number of fixed-point steps; fewer where nothing moves any more.
        damping: in (0, 1].
        largest_step: of log δ, of nested pathways of log λ, in one step.
        hold_split: whether the weights stay as they are: the split of a sum, too, where another loss has decided it.

    References: MacKay (1992), "Bayesian interpolation", section 4.
    """
    pathways, zero = dict(named_pathways(net)), torch.zeros(())
    within = {} if hold_split else nested(pathways)
    for _ in range(steps):
        if within:
            rebalance(pathways, log_precisions)
        found = hessian.effective(log_precisions)
        effective = {name: found.get(name, zero) for name in pathways}
        before = {name: t.clone() for name, t in log_precisions.items()}
        _step(effective, _weights(pathways, log_precisions), log_precisions, within, damping, largest_step)
        if max((float((t - before[name]).abs()) for name, t in log_precisions.items()), default=0.0) <= STILL:
            break
    if within:
        rebalance(pathways, log_precisions)


@torch.no_grad()
def ascend_precisions(
    net: nn.Module,
    log_precisions: Mapping[str, Tensor],
    tensors: Sequence[Tensor],
    gradients: Sequence[Tensor],
    damping: float = 0.5,
    largest_step: float = 1.0,
) -> None:
    """One step on log precisions, in place, that also shape a soft stack's kernel: MacKay's step from the gradient.

    For a precision that only weighs its pathway the evidence's gradient in log δ is g = ½ (γ - δ‖θ‖²), so δ‖θ‖² + 2 g
    is what stands for γ in MacKay's step. Written so it holds for any gradient, and its fixed point is where g = 0.

    Args:
        net: the network, for ‖θ‖² at its present weights; nested pathways in balance, as `update_precisions` has them.
        log_precisions: by pathway; pathways that share one tensor share one precision.
        tensors: the log precisions to move; gradients: of the log evidence in each, nats.
        damping: in (0, 1].
        largest_step: of log δ, of nested pathways of log λ.
    """
    pathways = dict(named_pathways(net))
    weights = _weights(pathways, log_precisions)
    slopes = {id(tensor): gradient for tensor, gradient in zip(tensors, gradients, strict=True)}
    names = {id(log_precisions[name]): name for name in pathways}  # one a tensor, which takes the whole gradient
    effective = dict(weights)
    for key, slope in slopes.items():
        effective[names[key]] = effective[names[key]] + 2 * slope
    moved = {name: t for name, t in log_precisions.items() if id(t) in slopes}
    _step(effective, weights, moved, nested(pathways), damping, largest_step)


def _weights(pathways: Mapping[str, Pathway], log_precisions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """δ‖θ‖² by pathway."""
    return {name: log_precisions[name].exp() * p.parameter.square().sum() for name, p in pathways.items()}


def _step(
    effective: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    log_precisions: Mapping[str, Tensor],
    within: Nested,
    damping: float,
    largest_step: float,
) -> None:
    """log δ ← log δ + damping · log(γ / δ‖θ‖²), in place; in λ where pathways are nested.

    Args:
        effective: γ by pathway, 2 ∂/∂log δ of minus the Occam factor; weights: δ‖θ‖², the same of the scatter.
    """

    def moved(log_precision: Tensor, gamma: Tensor, weight: Tensor) -> Tensor:
        ratio = torch.log(gamma.clamp(min=TINY)) - torch.log(weight.clamp(min=TINY))
        return log_precision + (damping * ratio.to(log_precision)).clamp(-largest_step, largest_step)

    members: dict[int, list[str]] = {}
    for name, tensor in log_precisions.items():
        members.setdefault(id(tensor), []).append(name)
    single = {names[0] for names in members.values() if len(names) == 1}  # those with a precision of their own
    within = {inner: place for inner, place in within.items() if {inner, place[0]} <= single}
    nests = {name: log_precisions[name] for inner, (outer, _) in within.items() for name in (inner, outer)}
    for names in members.values():
        if names[0] not in nests:
            log_delta = log_precisions[names[0]]
            gamma, weight = (sum_tensors([terms[name] for name in names]) for terms in (effective, weights))
            log_delta.copy_(moved(log_delta, gamma, weight).clamp(*LOG_BOUNDS))
    lambdas = log_lambdas(nests, within)
    gammas, squares = (_in_lambda(terms, nests, lambdas, within) for terms in (effective, weights))
    steps: dict[str, Tensor] = {}
    closed = set()
    for name in reversed(outermost_first(nests, within)):
        steps[name] = moved(lambdas[name], gammas[name], squares[name])
        if name in within:
            outer, kappa = within[name]
            outside = moved(lambdas[outer], gammas[outer], squares[outer]) + math.log(kappa)
            if steps[name] >= outside:  # its part of the sum is then the outer one's
                closed.add(name)
                gammas[outer], squares[outer] = gammas[outer] + gammas[name], squares[outer] + squares[name]
    for name in outermost_first(nests, within):
        log_delta = steps[name]
        if name in closed:
            log_delta, steps[name] = torch.full_like(log_delta, LOG_BOUNDS[1]), log_outside(name, steps, within)
        elif name in within:
            # 1/δ = 1/λ - 1/κλ'
            log_delta = log_delta - (-torch.expm1(log_delta - log_outside(name, steps, within))).clamp(min=TINY).log()
        nests[name].copy_(log_delta.clamp(*LOG_BOUNDS))


def _in_lambda(
    slopes: Mapping[str, Tensor], log_precisions: Mapping[str, Tensor], lambdas: Mapping[str, Tensor], within: Nested
) -> dict[str, Tensor]:
    """Derivatives in log δ as derivatives in log λ."""
    found = {name: slopes[name] * (log_precisions[name] - lambdas[name]).exp() for name in log_precisions}
    for name in outermost_first(within, within):  # so far with the δ of inner ones held, not their λ
        outer = within[name][0]
        found[outer] = found[outer] - found[name] * (lambdas[name] - log_outside(name, lambdas, within)).exp()
    return found

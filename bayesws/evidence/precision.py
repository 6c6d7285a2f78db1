"""Setting precisions by the evidence: MacKay's fixed point on a pass that is already paid for."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bayesws.evidence.hessian import Hessian, sum_tensors
from bayesws.layers.contract import named_pathways

LOG_BOUNDS = (-8.0, 16.0)  # of log δ: e¹⁶ switches a pathway off, in float32 as well


@torch.no_grad()
def update_precisions(
    net: nn.Module,
    hessian: Hessian,
    log_precisions: Mapping[str, Tensor],
    steps: int = 1,
    damping: float = 0.5,
    largest_step: float = 1.0,
) -> None:
    """Move log precisions, in place, towards the stationary point δ = γ(δ) / ‖θ‖² of the evidence.

    log δ ← log δ + damping · (log γ(δ) - log δ‖θ‖²), at most `largest_step` a step, within LOG_BOUNDS. Damping below
    one is needed: for a pathway without support γ ≈ tr(H) / δ, and the undamped iteration swings for ever.

    Args:
        net: the network, for ‖θ‖² at its present weights.
        hessian: from `laplace_pass`; its eigenvalues are reused in every step.
        log_precisions: by pathway; pathways that share one tensor share one precision.
        steps: number of fixed-point steps.
        damping: in (0, 1].
        largest_step: of log δ, in one step.

    References: MacKay (1992), "Bayesian interpolation", section 4.
    """
    pathways = dict(named_pathways(net))
    tensors = {id(t): t for t in log_precisions.values()}
    members = {key: [n for n in pathways if id(log_precisions[n]) == key] for key in tensors}
    squares = {
        key: sum_tensors([pathways[n].parameter.square().sum() for n in names]) for key, names in members.items()
    }
    tiny = torch.finfo(torch.float32).tiny
    for _ in range(steps):
        effective = hessian.effective(log_precisions)
        for key, names in members.items():
            gamma = sum_tensors([effective[n] for n in names if n in effective])
            log_delta = tensors[key]
            target = torch.log(gamma.clamp(min=tiny)) - torch.log(squares[key].clamp(min=tiny))
            move = (damping * (target.to(log_delta) - log_delta)).clamp(-largest_step, largest_step)
            log_delta.add_(move).clamp_(*LOG_BOUNDS)


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

    For a precision that only weighs its pathway the evidence's gradient in log δ is g = ½ (γ - δ‖θ‖²), so MacKay's
    target γ / ‖θ‖² is δ (1 + 2 g / δ‖θ‖²). Written so it holds for any gradient, and its fixed point is where g = 0:
    log δ ← log δ + damping · log(1 + 2 g / δ‖θ‖²), at most `largest_step`, within LOG_BOUNDS.

    Args:
        net: the network, for ‖θ‖² at its present weights.
        log_precisions: by pathway; pathways that share one tensor share one precision.
        tensors: the log precisions to move; gradients: of the log evidence in each, nats.
        damping: in (0, 1].
        largest_step: of log δ.
    """
    pathways = dict(named_pathways(net))
    tiny = torch.finfo(torch.float32).tiny
    for log_delta, gradient in zip(tensors, gradients, strict=True):
        members = [pathways[n].parameter for n, t in log_precisions.items() if t is log_delta]
        weight = log_delta.exp() * sum_tensors([p.square().sum() for p in members])
        ratio = 1 + 2 * gradient / weight.clamp(min=tiny)
        move = damping * ratio.clamp(min=tiny).log()
        log_delta.add_(move.clamp(-largest_step, largest_step)).clamp_(*LOG_BOUNDS)

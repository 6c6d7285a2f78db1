"""Setting precisions and noise by the evidence: MacKay's fixed point on a pass that is already paid for."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayesws.evidence.hessian import Hessian, sum_tensors
from bayesws.layers.base import named_pathways

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
def update_noise(log_noise: nn.Parameter, squared_error: float, outputs: int, effective: float) -> None:
    """Set log σ, in place, to the stationary point σ² = ‖y - f‖² / (number of outputs - γ) of the evidence.

    Args:
        log_noise: log σ.
        squared_error: Σ (y - f)² over all data and outputs.
        outputs: their number.
        effective: γ of all pathways; bounded away from the number of outputs.
    """
    variance = squared_error / max(outputs - effective, 0.05 * outputs)
    log_noise.fill_(0.5 * torch.log(torch.tensor(max(variance, 1e-12))).item())

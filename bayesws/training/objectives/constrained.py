"""Free weights that are allowed at first and constrained away: dual ascent on how much of them each layer may use.

Adaptive constrained equivariance (arXiv 2505.13631): in every layer the free weights enter as γ v and

    min_{θ, γ, u} max_{λ ≥ 0}  loss(θ, γ) + Σ_i λ_i (|γ_i| - u_i) + ½ s ‖u‖²

takes the network from flexible (γ = 1, λ = 0) to equivariant, but for a slack u_i where the data insist. The inner
minimum over u is u_i = λ_i / s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayesws.layers.contract import called_with, named_pathways
from bayesws.training.objectives.fixed_ratio import check_free, check_positive
from bayesws.training.objectives.objective import Setting
from bayesws.training.objectives.task_loss import Axis, PenalisedAtWork, Penalties, TaskLoss

DUAL_RATE = 0.01  # of the multipliers, a step on the weights


@dataclass(frozen=True, kw_only=True)
class Constrained(TaskLoss):
    """Adaptive constrained equivariance (arXiv 2505.13631): free weights constrained away by dual ascent, with slack.

    Attributes:
        slacks: weights s of ½ s ‖u‖², nats per datum, that are tried; the search starts with the first, the source's.

    Raises:
        ValueError: no slack, or one that is not positive; as `TaskLoss`.
    """

    slacks: tuple[float, ...] = (1.0, 0.1, 0.01)
    name: ClassVar[str] = "constrained"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(slacks=self.slacks)

    def check(self, setting: Setting) -> None:
        """Raise ValueError for a network without free weights beside shared ones."""
        super().check(setting)
        check_free(self.name, setting)

    def start(self, free: Sequence[str]) -> Penalties:
        """The first slack."""
        return replace(super().start(free), slack=self.slacks[0])

    def axes(self, free: Sequence[str]) -> list[Axis]:
        """The slack."""
        return [lambda best: [replace(best, slack=slack) for slack in self.slacks]]

    def begin(self, setting: Setting, chosen: Penalties) -> "ConstrainedAtWork":
        """Train with the free weights of every layer allowed at first."""
        return ConstrainedAtWork(self, setting, chosen)


class ConstrainedAtWork(PenalisedAtWork):
    """The task loss with γ v for v, and the multipliers' ascent after every step on the weights."""

    def __init__(self, settings: Constrained, setting: Setting, penalties: Penalties) -> None:
        super().__init__(settings, setting, penalties)
        assert penalties.slack is not None
        self.relaxation = Relaxation(setting.net, penalties.slack)

    def further_groups(self) -> list[dict[str, Any]]:
        """The scales γ as well."""
        return [*super().further_groups(), {"params": list(self.relaxation.scales.values()), "share": self.share}]

    def outputs(self, x: Tensor) -> Tensor:
        """Of the network with γ v for v."""
        return self.relaxation.outputs(x)

    def further_penalties(self) -> list[Tensor]:
        """The constraints, weighted by their multipliers."""
        return [self.relaxation.penalty()]

    def after_step(self, epoch: int, step: int) -> None:
        """One step up in the multipliers."""
        self.relaxation.ascend()

    def after_epoch(self, epoch: int) -> dict[str, float]:
        """γ by pathway."""
        return self.relaxation.record()

    def finish(self) -> None:
        """γ v takes the place of v."""
        self.relaxation.fold()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """γ and λ as well."""
        tensors, values = super().state()
        return tensors | {f"relaxation.{name}": tensor for name, tensor in self.relaxation.state().items()}, values

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """See `state`."""
        super().restore(tensors, values)
        for name, tensor in self.relaxation.state().items():
            tensor.copy_(tensors[f"relaxation.{name}"])


class Relaxation:
    """The state beside a network's own: γ and λ of every pathway that breaks a layer's sharing.

    Attributes:
        scales: γ by pathway, scalars that take a gradient, 1 at the start.
        multipliers: λ by pathway, 0 at the start.
    """

    def __init__(self, net: nn.Module, slack: float) -> None:
        names = {id(parameter): name for name, parameter in net.named_parameters()}
        self.net, self.slack = net, slack
        self.parameters = {n: (names[id(p.parameter)], p.parameter) for n, p in named_pathways(net) if p.breaks_sharing}
        self.scales = {n: torch.ones_like(p[(0,) * p.dim()]).requires_grad_() for n, (_, p) in self.parameters.items()}
        self.multipliers = {n: torch.zeros_like(scale) for n, scale in self.scales.items()}

    def outputs(self, x: Tensor) -> Tensor:
        """The network's outputs with γ v for v."""
        scaled = {name: self.scales[n] * parameter for n, (name, parameter) in self.parameters.items()}
        return called_with(self.net, scaled, x)

    def penalty(self) -> Tensor:
        """Σ λ_i (|γ_i| - u_i) + ½ s u_i² at u_i = λ_i / s, nats per datum."""
        terms = [m * scale.abs() - 0.5 * m**2 / self.slack for m, scale in self._pairs()]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def ascend(self) -> None:
        """One step up in every λ_i: by |γ_i| - u_i."""
        for multiplier, scale in self._pairs():
            multiplier.add_(DUAL_RATE * (scale.abs() - multiplier / self.slack)).clamp_(min=0)

    @torch.no_grad()
    def fold(self) -> None:
        """Put γ v in the place of v."""
        for n, (_, parameter) in self.parameters.items():
            parameter.mul_(self.scales[n])
            self.scales[n].fill_(1.0)

    def record(self) -> dict[str, float]:
        """γ by pathway, as a fit's history keeps it: "scale." before the pathway's name."""
        return {f"scale.{name}": float(scale.detach()) for name, scale in self.scales.items()}

    def state(self) -> dict[str, Tensor]:
        """The tensors themselves, by name: γ and λ."""
        scales = {f"scale.{name}": tensor for name, tensor in self.scales.items()}
        return scales | {f"multiplier.{name}": tensor for name, tensor in self.multipliers.items()}

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        return [(self.multipliers[name], scale) for name, scale in self.scales.items()]

"""Free weights that are allowed at first and constrained away: dual ascent on how much of them each layer may use.

Adaptive constrained equivariance (arXiv 2505.13631): in every layer the free weights enter as γ v and

    min_{θ, γ, u} max_{λ ≥ 0}  loss(θ, γ) + Σ_i λ_i (|γ_i| - u_i) + ½ s ‖u‖²

takes the network from flexible (γ = 1, λ = 0) to equivariant, but for a slack u_i where the data insist. The inner
minimum over u is u_i = λ_i / s.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayesws.layers.contract import named_pathways

DUAL_RATE = 0.01  # of the multipliers, a step on the weights


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
        return functional_call(self.net, scaled, (x,))

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

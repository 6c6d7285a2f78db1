"""A network's likelihood as a function of many weight vectors at once, in coordinates where the prior is N(0, I)."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.evidence.examples import TakenBy
from bayesws.evidence.likelihood import Likelihood, likelihood_named
from bayesws.evidence.networks import check_network_kind, outputs_of
from bayesws.evidence.objective import resolve_prior
from bayesws.evidence.reading import as_tensors
from bayesws.layers.contract import called_with, named_pathways, starting_log_precisions

CACHED = 2**16  # chains times data at once: what a layer then makes of them stays in a processor's cache


class Whitened:
    """log p(D | θ) with θ = Λ^(-1/2) z: z ~ N(0, I) is the prior that `log_evidence` takes, pathway by pathway.

    In float64, on a copy of the network, which is left as it is.

    Args:
        net, data, likelihood, prior: as for `log_evidence`.

    Attributes:
        size: P, the number of weights of all pathways.
        examples: number of data.
        outputs: number of the network's outputs a datum.
        present: z of the network's present weights, (P,).

    Raises:
        ValueError: what `log_evidence` would not take, either; a network without pathways.
    """

    def __init__(
        self,
        net: nn.Module,
        data: Any,
        likelihood: str | Likelihood = "classification",
        prior: Mapping[str, Tensor | float] | float | None = None,
    ) -> None:
        check_network_kind(net)
        self.likelihood = likelihood_named(likelihood)
        chosen = {name: float(value.detach()) for name, value in resolve_prior(net, prior).items()}
        self._net = copy.deepcopy(net).double().eval().requires_grad_(False)
        names = {id(p): name for name, p in self._net.named_parameters()}
        for p, mine in zip(net.parameters(), self._net.parameters(), strict=True):
            mine.requires_grad_(p.requires_grad)  # what is frozen is no pathway
        pathways = dict(named_pathways(self._net))
        if not pathways:
            raise ValueError("a network without pathways: expected at least one parameter that requires a gradient")
        for name, own in starting_log_precisions(self._net).items():
            own.data.fill_(chosen[name])  # a soft stack's free pathway takes its shape from them
        self._names = [names[id(p.parameter)] for p in pathways.values()]
        self._shapes = [p.parameter.shape for p in pathways.values()]
        sizes = [p.numel for p in pathways.values()]
        self.size = sum(sizes)
        device = next(iter(pathways.values())).parameter.device
        self._scales = torch.cat(
            [
                torch.full((n,), -0.5 * chosen[name], dtype=torch.float64, device=device).exp()
                for name, n in zip(pathways, sizes, strict=True)
            ]
        )
        self.present = torch.cat([p.parameter.detach().flatten() for p in pathways.values()]) / self._scales
        self._net.requires_grad_(False)
        x, y = as_tensors(data)
        x = TakenBy(self._net)(x)
        self.x, self.y = (t.to(device).double() if t.is_floating_point() else t.to(device) for t in (x, y))
        self.examples = len(x)
        with torch.no_grad():
            found = outputs_of(self._net, self.x)
            self.likelihood.check(found, self.y)
        self.outputs = found[0].numel()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._scales.device

    def forward(self, z: Float[Tensor, " weights"]) -> Tensor:
        """The network's outputs for all inputs at one z; differentiable, and for torch.func.vmap."""
        return called_with(self._net, self.weights(z), self.x)

    def weights(self, z: Float[Tensor, "*chains weights"]) -> dict[str, Tensor]:
        """θ by the parameter's name in the network, (*chains, ...)."""
        parts = (z * self._scales).split([shape.numel() for shape in self._shapes], -1)
        return {n: p.reshape(*z.shape[:-1], *s) for n, p, s in zip(self._names, parts, self._shapes, strict=True)}

    def log_likelihood(self, z: Float[Tensor, "chains weights"]) -> Float[Tensor, " chains"]:
        """log p(D | z) of every chain, nats summed over the data; differentiable."""

        def of_one(one: Tensor) -> Tensor:
            return self.likelihood.log_prob(self.forward(one), self.y)

        found: Tensor = torch.func.vmap(of_one)(z)
        return found

    def with_gradient(self, z: Float[Tensor, "chains weights"]) -> tuple[Tensor, Tensor]:
        """log p(D | z), (chains,), and its gradient in z, (chains, weights)."""
        values, gradients = [], []
        with torch.enable_grad():
            for part in z.detach().split(math.ceil(CACHED / self.examples)):
                point = part.requires_grad_()
                found = self.log_likelihood(point)
                values.append(found.detach())
                gradients.append(torch.autograd.grad(found.sum(), point)[0])
        return torch.cat(values), torch.cat(gradients)

"""How near the approximations of H come: expand and reduce, separate and joint blocks, against the exact ones."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import bayesws as bws

EPOCHS = 100


class Flattened(nn.Module):
    """A plain convolutional network whose head sees every position by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3)
        self.head = nn.Linear(8 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits of (batch, 1, 8, 8) digits."""
        x = nn.functional.relu(self.first(x))
        x = nn.functional.max_pool2d(nn.functional.relu(self.second(x)), 2)
        return self.head(x.flatten(1))


class Averaged(nn.Module):
    """The same convolutions, averaged over all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits of (batch, 1, 8, 8) digits."""
        x = nn.functional.relu(self.first(x))
        return self.head(nn.functional.relu(self.second(x)).mean((-2, -1)))


def table(repeats: int, quick: bool) -> dict[str, Any]:
    """Occam factors of trained networks, nats: pathway by pathway, and in all."""
    by_pathway: list[dict[str, Any]] = []
    in_all: list[dict[str, Any]] = []
    data = bws.data.load("digits", task="turned", seed=0, train_size=200 if quick else 1000).train
    for name, make in {
        "flattened CNN": Flattened,
        "averaged CNN": Averaged,
        "WSCNN, fixed C4": lambda: bws.models.WSCNN(hidden_channels=4),
        "WSCNN, soft": lambda: bws.models.WSCNN(hidden_channels=3, stack="dense", group_size=3),
    }.items():
        torch.manual_seed(0)
        fit = bws.fit(make(), data, epochs=10 if quick else EPOCHS, progress=False, keep_posterior=False)
        occam = partial(_evidence, fit, (data[0].double(), data[1]))
        kinds = {
            "exact": occam(bws.Curvature("pathway")),
            "expand": occam(bws.Curvature("kron")),
            "reduce": occam(bws.Curvature("kron", "reduce")),
        }
        for pathway, exact in kinds["exact"].by_pathway.items():
            shares = {kind: evidence.by_pathway[pathway].occam for kind, evidence in kinds.items()}
            numbers = {kind: float(share) for kind, share in shares.items() if share is not None}
            nearer = min(("expand", "reduce"), key=lambda kind: abs(numbers[kind] - numbers["exact"]))
            by_pathway.append(
                {"network": name, "pathway": pathway, "parameters": exact.parameters, **numbers, "nearer": nearer}
            )
        whole = {kind: float(occam(bws.Curvature(kind)).occam) for kind in ("full", "layer", "pathway", "diag")}
        whole |= {kind: float(kinds[kind].occam) for kind in ("expand", "reduce")}
        whole["expand, small layers joint"] = float(occam(bws.Curvature("kron", exact_up_to=400)).occam)
        in_all.append({"network": name, **whole})
    return {
        "tables": {
            "Occam factor of every pathway's block, nats": by_pathway,
            "Occam factor of the whole network, nats": in_all,
        }
    }


def _evidence(fit: bws.FitResult, data: tuple[Tensor, Tensor], curvature: bws.Curvature) -> bws.evidence.Evidence:
    """At the fit's weights and precisions, in float64."""
    prior = {pathway: value.double() for pathway, value in fit.prior.items()}
    with torch.no_grad():
        return bws.log_evidence(fit.model.double(), data, curvature=curvature, prior=prior)

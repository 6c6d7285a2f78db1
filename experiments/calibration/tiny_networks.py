"""The tiny networks of the experiment, their data, and the copies that their symmetries make of a mode."""

import math
from typing import Any

import torch
from torch import Tensor, nn

import bayesws as bws

D, POSITIONS = torch.float64, 4  # a line of four positions, and its four shifts


def group_named(name: str | None) -> bws.sharing.Group:
    """The shifts of the line; "swapped": those of the line with its middle positions swapped, another C4."""
    shifts = bws.sharing.known_group("cyclic-shifts", POSITIONS)
    if name is None:
        return shifts
    swap = torch.tensor([0, 2, 1, 3])
    return bws.sharing.Group(name, swap[shifts.permutations[:, swap]])


class Perceptron(nn.Module):
    """x to hidden units to outputs, tanh between."""

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(POSITIONS, hidden, dtype=D)
        self.head = nn.Linear(hidden, outputs, dtype=D)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 4) to (batch, outputs)."""
        y: Tensor = self.head(torch.tanh(self.hidden(x)))
        return y


class Sharing(nn.Module):
    """x to a sharing layer, tanh, then a head on the mean over the group, or on every copy."""

    def __init__(self, spec: dict[str, Any], outputs: int) -> None:
        super().__init__()
        self.averages, hidden = spec["kind"] == "invariant", spec["hidden"]
        group = group_named(spec.get("group"))
        pathways = tuple(spec["pathways"])
        self.hidden = bws.layers.WSLinear(
            POSITIONS, hidden, group_size=group.size, stack="fixed", group=group, pathways=pathways, dtype=D
        )
        self.head = nn.Linear(hidden if self.averages else hidden * group.size, outputs, dtype=D)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 4) to (batch, outputs)."""
        features = torch.tanh(self.hidden(x))
        y: Tensor = self.head(features.mean(-1) if self.averages else features.flatten(1))
        return y


def network(spec: dict[str, Any], config: dict[str, Any]) -> nn.Module:
    """The network of a specification."""
    outputs = config["outputs"][spec["likelihood"]]
    if spec["kind"] == "linear":
        return nn.Sequential(nn.Linear(POSITIONS, outputs, dtype=D))
    if spec["kind"] == "linear_sharing":
        layer = bws.layers.WSLinear(
            POSITIONS,
            outputs,
            group_size=POSITIONS,
            stack="fixed",
            group=group_named(None),
            pathways=tuple(spec["pathways"]),
            dtype=D,
        )
        return nn.Sequential(layer, nn.Flatten())
    return Perceptron(spec["hidden"], outputs) if spec["kind"] == "perceptron" else Sharing(spec, outputs)


def log_precisions(net: nn.Module, spec: dict[str, Any], config: dict[str, Any]) -> dict[str, float]:
    """log δ by pathway: every kernel entry has the same prior variance whatever the pathways.

    With both pathways α⁻¹ = ρ and β⁻¹ = 1 - ρ, ρ the specification's strength, a half if it says nothing.
    """
    chosen = config["log_precisions"] | spec.get("log_precisions", {})
    names = [name for name, _ in bws.layers.named_pathways(net)]
    prior = {name: spec.get("log_precision", chosen.get(name, chosen["default"])) for name in names}
    if len(spec.get("pathways", [])) == 2:
        strength = spec.get("strength", 0.5)
        for name in names:
            share = {"shared": strength, "free": 1 - strength}.get(name.rpartition(".")[2], 1.0)
            prior[name] -= math.log(share)
    return prior


def log_copies(spec: dict[str, Any]) -> float:
    """log of how many weight vectors the network's symmetries make of one, all with the same joint density.

    Hidden channels in any order, H!, each with either sign, 2^H (tanh is odd). A channel of a sharing layer may also be
    relabelled by the group, w → R_h w with v_g → v_gh: the mean over the group does not see it, and a head on every
    copy follows: 4^H. Without the shared pathway a channel's copies are alike: any order of them, (4!)^H.
    """
    if spec["kind"] in ("linear", "linear_sharing"):
        return 0.0
    hidden = spec["hidden"]
    of_channel = {"perceptron": 1, "group_head": POSITIONS, "invariant": POSITIONS}[spec["kind"]]
    if spec.get("pathways") == ["free"]:
        of_channel = math.factorial(POSITIONS)
    return math.lgamma(hidden + 1) + hidden * math.log(2 * of_channel)


@torch.no_grad()
def drawn(net: nn.Module, prior: dict[str, float], generator: torch.Generator) -> nn.Module:
    """The network with weights drawn from the prior."""
    for name, pathway in bws.layers.named_pathways(net):
        weights = torch.randn(pathway.parameter.shape, generator=generator, dtype=D)
        pathway.parameter.copy_(math.exp(-0.5 * prior[name]) * weights)
    return net


@torch.no_grad()
def data_of(
    teacher: nn.Module, likelihood: str, examples: int, config: dict[str, Any], generator: torch.Generator, labels: str
) -> tuple[Tensor, Tensor]:
    """Inputs N(0, I), and targets of the teacher: with noise, or drawn labels, or ("certain") the likeliest ones."""
    x = torch.randn(examples, config["inputs"], generator=generator, dtype=D)
    outputs = teacher(x)
    if likelihood == "regression":
        return x, outputs + config["noise"] * torch.randn(outputs.shape, generator=generator, dtype=D)
    if labels == "certain":
        return x, outputs.argmax(1)
    return x, torch.multinomial(outputs.softmax(1), 1, generator=generator)[:, 0]


def likelihood_of(spec: dict[str, Any], config: dict[str, Any]) -> bws.Gaussian | bws.Categorical:
    """The likelihood, its noise known."""
    if spec["likelihood"] == "classification":
        return bws.Categorical()
    return bws.Gaussian(config["noise"], learn=False, dtype=D)

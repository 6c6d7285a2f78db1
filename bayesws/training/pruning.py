"""Branches that the evidence has no use for are taken out while the network trains, which is faster from then on."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from bayesws.layers.prune import effective_branches, prune

LOOKS = 3  # in a row: what a layer uses may still grow in the first steps


class Pruning:
    """Takes branches out of a network (see `Branches`) that have used next to nothing for three steps in a row.

    At the fixed point δ‖θ‖² = γ of weights of which the prior says more than the data (h < δ) the log evidence with
    and without them, ½ Σ b² / (h + δ) - ½ Σ log(1 + h / δ) apart (see `evidence.surface`), differs by less than γ.
    Kronecker factors overstate γ of maps of all positions: where they set the precisions, a branch goes late.

    Attributes:
        below: the γ, over all pathways of a branch, that is next to nothing; None takes nothing out.
        idle: by branch, in how many steps in a row it has used no more.
        out: by branch that was taken out, after which epoch.
    """

    def __init__(self, below: float | None) -> None:
        self.below = below
        self.idle: dict[str, int] = {}
        self.out: dict[str, int] = {}

    def look(self, net: nn.Module, effective: Mapping[str, float], epoch: int) -> bool:
        """After a step on the precisions; whether anything was taken out. The most used branch of a layer stays.

        Args:
            net: the network, changed in place.
            effective: γ by pathway.
            epoch: that was the last.
        """
        if self.below is None:
            return False
        idle: dict[str, int] = {}
        dead: list[str] = []
        for branches in effective_branches(net, effective).values():
            most = max(branches, key=branches.__getitem__)
            for path, gamma in branches.items():
                if path != most and gamma < self.below:
                    idle[path] = self.idle.get(path, 0) + 1
                    dead += [path] * (idle[path] >= LOOKS)
        self.idle = {path: count for path, count in idle.items() if path not in dead}
        self.out |= dict.fromkeys(dead, epoch)
        prune(net, dead)
        return bool(dead)

    def notes(self) -> list[str]:
        """What was taken out."""
        if not self.out:
            return []
        told = ", ".join(f"{path} after epoch {epoch}" for path, epoch in self.out.items())
        return [f"taken out, as less than {self.below:g} effective parameters were used: {told}"]

    def state(self) -> dict[str, Any]:
        """Plain values."""
        return {"idle": self.idle, "out": self.out}

    def restore(self, values: Mapping[str, Any]) -> None:
        """See `state`."""
        self.idle, self.out = dict(values["idle"]), dict(values["out"])

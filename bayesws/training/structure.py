"""What a training run asks of layers with structure to learn: their regularisers, and whether they have settled."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesws.layers.contract import Structure, structures

REGULARISERS = ("normaliser", "entropy")
UNSETTLED = 0.05  # relative move of what a layer's structure makes, in the last step, that is worth a note


def regularised(layers: Mapping[str, Structure], weights: Mapping[str, float]) -> list[Tensor]:
    """The penalties on the structure of those layers that offer them: of normalisers the sum, of entropies the mean.

    Args:
        layers: structure by layer.
        weights: by the regulariser's name, nats per datum; nothing is computed where it is 0.
    """
    terms = []
    for name in REGULARISERS:
        offered = [layer.regularisers[name] for layer in layers.values() if name in layer.regularisers]
        if weights[name] and offered:
            values = torch.stack([value() for value in offered])
            terms.append(weights[name] * (values.sum() if name == "normaliser" else values.mean()))
    return terms


def check_regularisers(net: nn.Module, weights: Mapping[str, float]) -> None:
    """Raise ValueError for a regulariser with a weight that no layer of the network offers."""
    offered = {name for layer in structures(net).values() for name in layer.regularisers}
    for name in REGULARISERS:
        if weights[name] and name not in offered:
            raise ValueError(
                f"{name}={weights[name]:g}: no layer offers that regulariser (offered: "
                f"{', '.join(sorted(offered)) or 'none'}): expected a soft stack with a constraint; use 0"
            )


class Settling:
    """Whether the structure of a network's layers has settled.

    Attributes:
        layers: structure by layer.
        unconverged: by layer, the largest residual of its own iteration and the note about it; of all looks.
        moves: by layer, how far what its structure makes moved in the last step, relative to what it was.
    """

    def __init__(self, layers: Mapping[str, Structure]) -> None:
        self.layers = layers
        self.unconverged: dict[str, tuple[float, str]] = {}
        self.moves: dict[str, float] = {}
        self._before: dict[str, Tensor] = {}

    def only(self, layers: Mapping[str, Structure]) -> None:
        """Look at these from now on; what was seen of others is forgotten."""
        self.layers = layers
        self.unconverged = {name: seen for name, seen in self.unconverged.items() if name in layers}
        self.moves = {name: moved for name, moved in self.moves.items() if name in layers}

    @torch.no_grad()
    def before_step(self) -> None:
        """Remember where the structure is."""
        if not self._before:
            self._before = {name: layer.status().value.clone() for name, layer in self.layers.items()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Look how far it has moved, and whether it converged."""
        for name, value in self.look().items():
            before = self._before[name]
            size = before.norm().clamp(min=torch.finfo(before.dtype).tiny)
            self.moves[name] = float((value - before).norm() / size)
            self._before[name] = value.clone()

    @torch.no_grad()
    def look(self) -> dict[str, Tensor]:
        """What the structure of every layer makes now; what did not converge is noted."""
        values = {}
        for name, layer in self.layers.items():
            status = layer.status()
            values[name] = status.value
            if not status.converged:
                worst = (status.residual, status.note)
                self.unconverged[name] = max(worst, self.unconverged.get(name, worst))
        return values

    def notes(self) -> list[str]:
        """What has not settled, a line each."""
        notes = [f"layer {name!r}: {note}" for name, (_, note) in self.unconverged.items()]
        return notes + [
            f"layer {name!r}: its structure still moved by {100 * move:.0f} % in the last step: train for more epochs"
            for name, move in self.moves.items()
            if not move <= UNSETTLED
        ]

    def state(self) -> dict[str, Any]:
        """For a checkpoint, between two steps."""
        return {"unconverged": self.unconverged, "moves": self.moves}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put it where `state` was taken; where the structure is, it sees itself."""
        self.unconverged = {name: (residual, note) for name, (residual, note) in state["unconverged"].items()}
        self.moves, self._before = dict(state["moves"]), {}

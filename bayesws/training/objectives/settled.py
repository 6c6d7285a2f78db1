"""Whether the structure of a network's layers has settled: what every layer says of its own, kept at its worst."""

from typing import Any

from torch import nn

from bayesws.layers.contract import declarations


class Settled:
    """The layers with structure of one network, looked at after every step on it.

    Attributes:
        has_structure: whether any layer has.
    """

    def __init__(self, net: nn.Module) -> None:
        self.layers = {name: d for name, (_, d) in declarations(net).items() if d.stack is not None}
        self.has_structure = bool(self.layers)
        self.worst: dict[str, tuple[float, int]] = {}  # by layer: its worst stack's residual and iterations

    def look(self) -> None:
        """Note the layers whose own iteration does not converge at present."""
        for name, declaration in self.layers.items():
            if (state := declaration.stack()).converged:
                continue
            found = (state.residual, state.iterations)
            self.worst[name] = max(found, self.worst.get(name, found))

    def notes(self) -> list[str]:
        """A line for each layer that did not converge."""
        return [
            f"layer {name!r}: Sinkhorn stopped after {iterations} iterations at residual {residual:.1e}; "
            "the stack was not quite doubly stochastic"
            for name, (residual, iterations) in self.worst.items()
        ]

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {name: list(worst) for name, worst in self.worst.items()}

    def restore(self, values: dict[str, Any]) -> None:
        """See `state`."""
        self.worst = {name: tuple(worst) for name, worst in values.items()}

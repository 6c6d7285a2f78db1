"""Layers whose scale the network does not see, as those before a normalisation: what is trained of them is a direction.

Where f(cθ) = f(θ) for all weights θ of a layer together, the evidence does not see c either: H becomes H / c², and
precisions δ / c² give it the value that δ gave before. But a prior's pull would shrink such weights, against nothing,
until every step of the optimiser is larger than they are. So they may keep the size that they start with, and the pull
turns them alone. Where many data are far from fitted such weights grow with every step instead, each step is then
smaller beside them, and they should be left to it: at a fixed size a high rate is a random walk.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from bayesws.evidence.networks import outputs_of
from bayesws.layers.contract import Pathway, called_with, evaluating, layers_of, named_pathways

SCALE = 2.0  # that a layer's weights are multiplied by
UNSEEN = 0.02  # how far outputs may move then, beside how far a random change of the same size moves them


class Directions:
    """The layers of a network whose scale it does not see, which keep their sizes while it is trained.

    Args:
        net: the network.
        few: inputs to look at it with; with None no layer is looked at.

    Attributes:
        layers: by layer the full names of its pathways.
        squares: by layer the sum of its weights' squares, which it keeps: of all its pathways, as the last `rebalance`
            divided nested ones. (Divided otherwise the same kernel has other squares, by a factor of at most κ.)
    """

    def __init__(self, net: nn.Module, few: Tensor | None) -> None:
        self.layers = {} if few is None else unscaled_layers(net, few)
        pathways = dict(named_pathways(net))
        self.squares = {layer: _squares(pathways, names) for layer, names in self.layers.items()}

    def pull(self, deltas: Mapping[str, float], squares: Mapping[str, Tensor]) -> Tensor | float:
        """Σ δ ‖θ‖² over all pathways, as it is, with a gradient along which these layers turn and do not shrink.

        Args:
            deltas: δ by pathway.
            squares: ‖θ‖² by pathway, differentiable.
        """
        turning = {name: layer for layer, names in self.layers.items() for name in names}
        sizes = {layer: torch.stack([squares[name] for name in names]).sum() for layer, names in self.layers.items()}
        total: Tensor | float = 0.0
        for name, square in squares.items():
            if (layer := turning.get(name)) is not None:
                square = square * (sizes[layer].detach() / sizes[layer])
            total = total + deltas[name] * square
        return total

    @torch.no_grad()
    def keep_sizes(self, pathways: Mapping[str, Pathway], log_precisions: Mapping[str, Tensor]) -> None:
        """Give every such layer its size, in place, and its precisions what they need for the same evidence."""
        for layer, names in self.layers.items():
            square = self.squares[layer] / _squares(pathways, names)
            for name in names:
                pathways[name].parameter.mul_(square**0.5)
                log_precisions[name].sub_(torch.as_tensor(square).log())

    def only(self, pathways: Mapping[str, Pathway]) -> None:
        """Go on with what is left of a network, at the sizes that it has."""
        left = {layer: [name for name in names if name in pathways] for layer, names in self.layers.items()}
        for layer, names in left.items():
            if len(names) < len(self.layers[layer]):
                self.squares[layer] = _squares(pathways, names)
        self.layers = left


@torch.no_grad()
def unscaled_layers(net: nn.Module, few: Tensor) -> dict[str, list[str]]:
    """The layers whose weights, all multiplied by one number, leave the outputs as they are, with their pathways.

    To 2 % of what a random change of the same size does: a normalisation adds a small number to the variance, and so
    is not quite free of scale. Where such a change does nothing either, nothing can be said.

    Args:
        net: the network, looked at in eval mode.
        few: inputs (batch, ...).
    """
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found, draws = {}, torch.Generator().manual_seed(0)
    with evaluating(net):
        before = outputs_of(net, few.clone())

        def moved(tensors: Mapping[str, Tensor]) -> float:
            return float((called_with(net, tensors, few.clone()) - before).norm())

        for layer in layers_of(net).values():
            weights = {names[id(p.parameter)]: p.parameter for p in layer.pathways.values()}
            if not weights:
                continue
            noise = {name: torch.randn(w.shape, generator=draws).to(w) for name, w in weights.items()}
            size = (SCALE - 1) * (_norm(weights.values()) / _norm(noise.values()))
            by_chance = moved({name: w + size * noise[name] for name, w in weights.items()})
            if moved({name: SCALE * w for name, w in weights.items()}) < UNSEEN * by_chance:
                found[layer.name] = [layer.full_name(name) for name in layer.pathways]
    return found


def _squares(pathways: Mapping[str, Pathway], names: Iterable[str]) -> float:
    return _norm(pathways[name].parameter.detach() for name in names) ** 2


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(torch.stack([tensor.double().norm() for tensor in tensors]).norm())

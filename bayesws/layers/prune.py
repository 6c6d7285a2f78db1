"""Taking branches out of a network: what the evidence has no use for costs no time any more."""

from collections.abc import Iterable, Mapping

from torch import nn

from bayesws.layers.branches import Branches


def pruned(net: nn.Module) -> list[str]:
    """The branches that were taken out of a network, such as "blocks.0.fc"."""
    layers = net.named_modules()
    return [_path(layer, name) for layer, module in layers if isinstance(module, Branches) for name in module.pruned]


def prune(net: nn.Module, branches: Iterable[str]) -> None:
    """Take branches out of a network, in place; those that are out already stay out.

    Raises:
        ValueError: no branch of that name, or the last one of its layer.
    """
    layers = {name: module for name, module in net.named_modules() if isinstance(module, Branches)}
    out = set(pruned(net))
    for path in branches:
        if path in out:
            continue
        layer, _, name = path.rpartition(".")
        if layer not in layers:
            raise ValueError(f"prune {path!r}: expected a branch of {', '.join(map(repr, layers)) or 'Branches'}")
        layers[layer].prune(name)
        out.add(path)


def effective_branches(net: nn.Module, effective: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """γ of every branch, the sum over its pathways, by layer; of layers with several branches.

    Args:
        net: the network.
        effective: γ by pathway.
    """
    found: dict[str, dict[str, float]] = {}
    for layer, module in net.named_modules():
        if isinstance(module, Branches):
            paths = [_path(layer, name) for name, _ in module.named_children()]
            if len(paths) > 1:
                found[layer] = {
                    path: sum(gamma for name, gamma in effective.items() if name.startswith(f"{path}."))
                    for path in paths
                }
    return found


def _path(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name

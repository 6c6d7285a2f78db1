"""What the layers of a network take in or give out for some images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayesws.io.arguments import first_line
from bayesws.layers.contract import evaluating


@torch.no_grad()
def layer_features(net: nn.Module, layers: Sequence[str], x: Tensor, *, inputs: bool = False) -> dict[str, Tensor]:
    """What every layer gives out for x, or takes in, by its name.

    Of a module that is called several times the last, of several tensors the first.

    Args:
        net: put in eval mode, and back.
        layers: names of modules; those that are not called are missing from the result.
        x: (batch, channels, height, width).
        inputs: whether their (first) inputs are wanted.

    Raises:
        ValueError: images that the network does not take, a layer without a tensor.
    """
    found: dict[str, Tensor] = {}
    modules = dict(net.named_modules())

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        return lambda module, taken, named, given: found.__setitem__(
            name, _first([*taken, *named.values()] if inputs else given)
        )

    handles = [modules[name].register_forward_hook(keep(name), with_kwargs=True) for name in layers]
    try:
        with evaluating(net):
            net(x)
    except (RuntimeError, AssertionError, TypeError, ValueError, LookupError) as error:  # whatever the network raises
        reason = first_line(error)
        raise ValueError(f"the network does not take images of shape {tuple(x.shape)}: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()
    if strange := next((name for name, maps in found.items() if not isinstance(maps, Tensor)), None):
        raise ValueError(f"layer {strange!r} gives a {type(found[strange]).__name__}: expected a tensor, or tensors")
    return found


def _first(given: Any) -> Any:
    """What is given, or the first of several, as of attention beside its weights."""
    while isinstance(given, Mapping | tuple | list) and given:
        given = next(iter(given.values() if isinstance(given, Mapping) else given))
    return given

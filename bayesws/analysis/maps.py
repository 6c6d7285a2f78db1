"""What the layers of a network take in or give out for some images."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bayesws.evidence.objective import evaluating


@torch.no_grad()
def layer_maps(net: nn.Module, layers: Sequence[str], x: Tensor, *, inputs: bool = False) -> dict[str, Tensor]:
    """What every layer gives out for x, or takes in, by its name; of a module that is called several times the last.

    Args:
        net: put in eval mode, and back.
        layers: names of modules; those that are not called are missing from the result.
        x: (batch, channels, height, width).
        inputs: whether their (first) inputs are wanted.

    Raises:
        ValueError: images that the network does not take.
    """
    found: dict[str, Tensor] = {}
    modules = dict(net.named_modules())

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, taken, given: found.__setitem__(name, taken[0] if inputs else given)

    handles = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        with evaluating(net):
            net(x)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the network does not take images of shape {tuple(x.shape)}: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()
    return found

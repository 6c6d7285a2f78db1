"""Where the stacks of a network start: at what the moments of its layers' inputs propose, or at random."""

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.layers.sharing_settings import PATHWAYS
from bayesws.layers.stack import SOFTNESS
from bayesws.layers.weight_sharing import WeightSharing
from bayesws.sharing.candidates import Candidates, candidates_of

BLOCKS = 200  # of the data: their differences tell sampling noise
START_SHARED = 4.0  # log β - log α, so that ρ = 0.98: a free pathway that is large at the start fits first
HARD = 1e-9  # softness of the stacks that the layers above are looked at through
CHANNELS = 8  # at most, of a layer's input: a symmetry moves all of them alike
WORK = 2e10  # multiplications that a layer's moments may take; fewer data are used where it would be more


@torch.no_grad()
def start_at_moments(net: nn.Module, x: Tensor, softness: float = SOFTNESS) -> dict[str, Candidates]:
    """Start every soft stack of a network at the permutations that its layer's input moments propose.

    Layer by layer from the input up: what a layer proposes follows from the stacks below it and from their canonical
    weights, which may be random. Precisions start where all layers share. The network is changed in place.

    Args:
        net: at its initial weights.
        x: inputs, (batch, ...); as many as possible are used.
        softness: see `RepresentationStack.start_at`.

    Returns: by layer, in the order in which the network calls them, what was found. A stack for whose size there is no
    group stays as it is.

    Raises:
        ValueError: fewer than two inputs.
    """
    if len(x) < 2:
        raise ValueError(f"{len(x)} inputs: expected two or more, to tell a symmetry from noise")
    found: dict[str, Candidates] = {}
    shared = _shared_alone(net)
    stacks = {name: m.stack for name, m in net.named_modules() if isinstance(m, WeightSharing)}
    for name, layer in _soft_layers(shared, x[:1]).items():
        stack = stacks[name]
        blocks, examples = _input_moments(shared, layer, x)
        found[name] = candidates_of(blocks, stack.support, stack.axis, examples=examples)
        group = found[name].of_size(stack.group_size, cyclic=stack.kind == "power")
        if group is not None:
            stack.start_at(group.permutations, softness)
            layer.stack.start_at(group.permutations, HARD)
    _start_shared(net)
    return found


def start_at_random(net: nn.Module, seed: int) -> None:
    """Draw every soft stack of a network anew, in place, and start shared (`RepresentationStack.start_at_random`)."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, WeightSharing):
            module.stack.start_at_random(generator)
    _start_shared(net)


def has_soft_stack(net: nn.Module) -> bool:
    """Whether there is anything to start: a layer with a stack to learn."""
    return any(isinstance(module, WeightSharing) and module.stack.is_soft for module in net.modules())


@torch.no_grad()
def _start_shared(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, WeightSharing) and module.stack.is_soft and set(PATHWAYS) <= set(module.pathway_names):
            module.log_precisions["free"].copy_(module.log_precisions["shared"] + START_SHARED)


def moments(patches: Float[Tensor, "batch channel d position"]) -> Float[Tensor, "2 d d"]:
    """E[x xᵀ] and E[x xᵀ · mean of x] of patches x, over data, channels and positions.

    The mean of a patch is left as it is by every permutation, so the second matrix is a contraction of the third moment
    that moves as the second moment does. It tells apart what no second moment can: that of any stationary field is
    symmetric under the half turn.
    """
    x = patches.transpose(1, 2).flatten(2).transpose(0, 1).flatten(1)
    return torch.stack([x @ x.T, (x * x.mean(0)) @ x.T]) / max(x.shape[1], 1)


def _shared_alone(net: nn.Module) -> nn.Module:
    """A copy in eval mode without its free pathways: these know nothing yet, and would blur every layer's symmetry."""
    copy = deepcopy(net).eval()
    for module in copy.modules():
        if isinstance(module, WeightSharing) and module.shared is not None and module.free is not None:
            module.free.zero_()
    return copy


def _soft_layers(net: nn.Module, x: Tensor) -> dict[str, WeightSharing]:
    """The layers with a stack to learn, in the order of their first call."""
    soft = {n: m for n, m in net.named_modules() if isinstance(m, WeightSharing) and m.stack.is_soft}
    called: list[str] = []
    hooks = [m.register_forward_pre_hook(lambda *_, name=n: called.append(name)) for n, m in soft.items()]
    net(x.to(next(net.parameters()).device))
    for hook in hooks:
        hook.remove()
    return {name: soft[name] for name in called}


def _input_moments(net: nn.Module, layer: WeightSharing, x: Tensor) -> tuple[Tensor, int]:
    """Moments of a layer's input by blocks of the data, (block, 2, d, d), and how many data they are of."""
    seen: list[Tensor] = []
    device = next(net.parameters()).device
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(_patches(layer, inputs[0])))
    net(x[:1].to(device))
    cost = 2 * seen.pop().numel() * layer.stack.size
    examples = min(len(x), max(2 * BLOCKS, int(WORK / cost)))
    blocks = []
    for part in x[:examples].tensor_split(min(BLOCKS, examples)):
        net(part.to(device))
        blocks.append(torch.stack([moments(patches) for patches in seen]).mean(0).cpu())
        seen.clear()
    hook.remove()
    return torch.stack(blocks).double(), examples


def _patches(layer: WeightSharing, x: Tensor) -> Tensor:
    return layer.patches(x).unflatten(1, (layer.in_channels, -1))[:, :CHANNELS]

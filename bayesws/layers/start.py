"""Where the stacks of a network start: at what its layers' inputs propose by their moments, known groups, at random."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bayesws.layers.cache import computed_once
from bayesws.layers.sharing_settings import PATHWAYS
from bayesws.layers.stack import SOFTNESS, RepresentationStack
from bayesws.layers.weight_sharing import WeightSharing
from bayesws.sharing.candidates import Candidates, are_powers, candidates_of
from bayesws.sharing.groups import known_groups

BLOCKS = 200  # of the data: their differences tell sampling noise
START_SHARED = 4.0  # log β - log α, so that ρ = 0.98: a free pathway that is large at the start fits first
HARD = 1e-9  # softness of the stacks that the layers above are looked at through
CHANNELS = 8  # at most, of a layer's input: a symmetry moves all of them alike
WORK = 2e10  # multiplications that a layer's moments may take; fewer data are used where it would be more


Permutations = Int64[Tensor, "group d"]


@dataclass(frozen=True)
class StackStart:
    """Where the soft stacks of a network may start.

    Attributes:
        what: in words.
        at: permutations (G, d) by layer; the others start at what the moments of their inputs then propose.
        is_first_choice: whether `start_at_moments` starts there of itself.
    """

    what: str
    at: dict[str, Permutations] = field(repr=False)
    is_first_choice: bool = False


@torch.no_grad()
def start_at_moments(
    net: nn.Module, x: Tensor, softness: float = SOFTNESS, at: Mapping[str, Permutations] | None = None
) -> dict[str, Candidates]:
    """Start every soft stack of a network at the permutations that its layer's input moments propose.

    Layer by layer from the input up: what a layer proposes follows from the stacks below it and from their canonical
    weights, which may be random. Precisions start where all layers share. The network is changed in place.

    Args:
        net: at its initial weights.
        x: inputs, (batch, ...); as many as possible are used.
        softness: see `RepresentationStack.start_at`.
        at: permutations by layer, for those that start there whatever their inputs are; nothing is found of them.

    Returns: by layer, in the order in which the network calls them, what was found. A stack for whose size there is no
    group stays as it is.

    Raises:
        ValueError: fewer than two inputs.
    """
    _check_enough(x)
    found: dict[str, Candidates] = {}
    shared = _shared_alone(net)
    stacks = {name: m.stack for name, m in net.named_modules() if isinstance(m, WeightSharing)}
    for name, layer in _soft_layers(shared, x[:1]).items():
        stack, permutations = stacks[name], (at or {}).get(name)
        if permutations is None:
            found[name] = _proposed(shared, layer, x)
            group = found[name].of_size(stack.group_size, cyclic=stack.kind == "power")
            permutations = None if group is None else group.permutations
        if permutations is not None:
            stack.start_at(permutations, softness)
            layer.stack.start_at(permutations, HARD)
    _start_shared(net)
    return found


@torch.no_grad()
def stack_starts(net: nn.Module, x: Tensor) -> list[StackStart]:
    """Where the soft stacks of a network may start, in the order in which to try them; none without a soft stack.

    Of the first soft layer that the network calls, the groups of its size that the moments of its input propose, and
    that the data do not contradict, best first; the layers above then follow their own moments. Next every known group
    of that size, in all soft layers whose kernel has one of that name. Last the proposals that the data contradict, by
    their misfit. No group of the first layer comes twice.

    Args:
        net: at its initial weights; it is left as it is.
        x: inputs, (batch, ...).

    Raises:
        ValueError: fewer than two inputs.
    """
    _check_enough(x)
    shared = _shared_alone(net)
    soft = _soft_layers(shared, x[:1])
    if not soft:
        return []
    first, layer = next(iter(soft.items()))
    stack = layer.stack
    proposed = _proposed(shared, layer, x).all_of_size(stack.group_size, cyclic=stack.kind == "power")
    moments = [
        StackStart(f"moments: {g.name or f'a group of {len(g.permutations)}'}", {first: g.permutations}, place == 0)
        for place, g in enumerate(proposed)
    ]
    known = {name: _known_permutations(layer.stack) for name, layer in soft.items()}
    everywhere = [
        StackStart(f"known group: {group}", {name: groups[group] for name, groups in known.items() if group in groups})
        for group in known[first]
    ]
    fitting = sum(g.fits for g in proposed)  # these come first
    ordered = [*moments[:fitting], *everywhere, *moments[fitting:]]
    return list({frozenset(map(tuple, s.at[first].tolist())): s for s in reversed(ordered)}.values())[::-1]


def _known_permutations(stack: RepresentationStack) -> dict[str, Permutations]:
    """The known groups that a stack can start at, by name."""
    sized = [g for g in known_groups(*stack.support) if g.size == stack.group_size]
    found = {g.name: (g.on_features() if stack.axis > 1 else g).permutations for g in sized}
    return {name: p for name, p in found.items() if stack.kind != "power" or are_powers(p)}


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


def _check_enough(x: Tensor) -> None:
    if len(x) < 2:
        raise ValueError(f"{len(x)} inputs: expected two or more, to tell a symmetry from noise")


def _proposed(net: nn.Module, layer: WeightSharing, x: Tensor) -> Candidates:
    """What the moments of a layer's input propose."""
    blocks, examples = _input_moments(net, layer, x)
    return candidates_of(blocks, layer.stack.support, layer.stack.axis, examples=examples)


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
    with computed_once(net):
        for part in x[:examples].tensor_split(min(BLOCKS, examples)):
            net(part.to(device))
            blocks.append(torch.stack([moments(patches) for patches in seen]).mean(0).cpu())
            seen.clear()
    hook.remove()
    return torch.stack(blocks).double(), examples


def _patches(layer: WeightSharing, x: Tensor) -> Tensor:
    return layer.patches(x).unflatten(1, (layer.in_channels, -1))[:, :CHANNELS]

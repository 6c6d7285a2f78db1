"""What follows from a layer's parameters, computed once for as long as they stay as they are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bayesws.sharing.doubly_stochastic import DoublyStochastic

T = TypeVar("T", Tensor, DoublyStochastic)


class Deriving(nn.Module):
    """A module with values that follow from its parameters and buffers alone, such as a kernel made from logits."""

    _derived: "_Derived | None" = None  # set by `computed_once`, and only within its block

    def derive(self, name: str, compute: Callable[[], T]) -> T:
        """compute(), or, within `computed_once`, what it gave before.

        Args:
            name: of the value, unique within the module.
            compute: makes it from the module's parameters and buffers, and from nothing else.

        Raises:
            RuntimeError: a parameter or buffer was written to since the value was computed.
        """
        return compute() if self._derived is None else self._derived.get(self, name, compute)


@contextmanager
def computed_once(net: nn.Module) -> Iterator[None]:
    """Within the block every layer's stack, free root and kernel are computed when first asked for, then reused.

        with computed_once(net):
            loss = negative_log_likelihood(net(x), y) + 0.1 * sum(map(normaliser, structure(net)))
            loss.backward()
        optimiser.step()

    They come with their autograd graph, so gradients are those without the block; several backward passes through that
    one graph need `retain_graph=True`. What was computed without gradients is not reused where gradients are asked for.
    While `torch.func.functional_call` puts other tensors in the place of parameters nothing is kept or reused. On
    leaving the block, by an exception too, everything is forgotten; of nested blocks the outermost one forgets.

    Args:
        net: any module; all sharing layers within it are meant.

    Raises:
        RuntimeError: from a layer that is asked again after one of its parameters was written to (an optimiser's step,
            `load_state_dict`): do that outside the block. Writing through `.data` is not noticed.
    """
    layers = [m for m in net.modules() if isinstance(m, Deriving) and m._derived is None]
    for layer in layers:
        layer._derived = _Derived(_sources(layer))
    try:
        yield
    finally:
        for layer in layers:
            layer._derived = None


@dataclass(frozen=True)
class Cut:
    """Where a network's values were cut from the parameters they follow from: for derivatives in two steps.

    Attributes:
        values: with their graph down to the parameters.
        leaves: what the network worked with in their place.
    """

    values: list[Tensor] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)


@contextmanager
def cut_from_parameters(net: nn.Module) -> Iterator[Cut]:
    """`computed_once`, with the values as leaves of their own: gradients stop at them, and can be summed there.

        with cut_from_parameters(net) as cut:
            for x, y in batches:
                found = torch.autograd.grad(loss(net(x), y), cut.leaves)  # and add them up
        torch.autograd.grad(cut.values, parameters, summed)  # through stacks and kernels once

    Only values that are asked for with gradients are cut, and listed as they are first asked for. Within
    `computed_once` what it holds is cut, and whole again on leaving.
    """
    cut = Cut()
    with computed_once(net):
        held = [m._derived for m in net.modules() if isinstance(m, Deriving) and m._derived is not None]
        for derived in held:
            derived.cut = cut
        try:
            yield cut
        finally:
            for derived in held:
                derived.cut = None
                derived.values = {name: replace(value, leaf=None) for name, value in derived.values.items()}


@dataclass(frozen=True)
class _Value:
    value: Any
    versions: list[int]
    differentiable: list[bool]
    leaf: Any = None


@dataclass
class _Derived:
    """The values of one module within one block, and what they follow from. A copy of the module starts without."""

    sources: list[Tensor]
    values: dict[str, _Value] = field(default_factory=dict)
    cut: Cut | None = None

    def get(self, module: nn.Module, name: str, compute: Callable[[], T]) -> T:
        sources = _sources(module)
        if len(sources) != len(self.sources) or any(a is not b for a, b in zip(sources, self.sources, strict=True)):
            return compute()  # under functional_call
        # a tensor made in inference mode has no version
        versions = [0 if t.is_inference() else t._version for t in sources]
        differentiable = [torch.is_grad_enabled() and t.requires_grad for t in sources]
        found = self.values.get(name)
        if found is not None and found.versions != versions:
            raise RuntimeError(
                f"a parameter of a {type(module).__name__} changed within computed_once, after its {name} had been "
                "computed: leave the block before the optimiser's step, and enter it again after it"
            )
        if found is None or (found.differentiable != differentiable and any(differentiable)):
            cut, self.cut = self.cut, None  # what a value is made from must not be cut: nothing would lead further down
            try:
                found = _Value(compute(), versions, differentiable)
            finally:
                self.cut = cut
            self.values[name] = found
        if found.differentiable != differentiable:
            return found.value.detach()
        if self.cut is None or not any(differentiable):
            return found.value
        if found.leaf is None:
            found = self.values[name] = replace(found, leaf=_leaf(found.value, self.cut))
        return found.leaf

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def _leaf(value: T, cut: Cut) -> T:
    """The value as a leaf, noted in the cut; itself if it has no graph."""
    tensor = value if isinstance(value, Tensor) else value.matrix
    if not tensor.requires_grad:
        return value
    leaf = tensor.detach().requires_grad_()
    cut.values.append(tensor)
    cut.leaves.append(leaf)
    return leaf if isinstance(value, Tensor) else replace(value, matrix=leaf)


def _sources(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]

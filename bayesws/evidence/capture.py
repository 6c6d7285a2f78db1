"""What flows through the declared layers of a network for one batch: patches in, output gradients back."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from bayesws.evidence.networks import PRECISE, outputs_of
from bayesws.layers.contract import Declaration, Pathway

Layers = dict[str, tuple[nn.Module, Declaration]]
CACHED = 2**20  # how many numbers of patches are made at once: what stays in a processor's cache


@dataclass
class LayerIO:
    """What went into a layer and came out of it, call by call; its calls lie side by side in positions.

    Attributes:
        inputs: a call's first argument.
        outputs: what it gave, before any hook of the network's own.
        sources: where in autograd's graph all of its arguments came from.
    """

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    sources: list[list[Node]] = field(default_factory=list)

    def detached(self) -> "LayerIO":
        """The same without what the inputs came from."""
        return LayerIO([x.detach() for x in self.inputs], self.outputs)

    def some(self, which: slice | Tensor) -> "LayerIO":
        """The inputs of some of the data."""
        return LayerIO([x[which] for x in self.inputs], self.outputs)

    def first(self) -> "LayerIO":
        """The inputs of the first datum."""
        return LayerIO([x[:1] for x in self.inputs], self.outputs)

    def split(self, size: int) -> Iterator["LayerIO"]:
        """The inputs of so many data at a time."""
        for start in range(0, len(self.inputs[0]), size):
            yield LayerIO([x[start : start + size] for x in self.inputs], self.outputs)

    def patches(self, declaration: Declaration) -> Tensor:
        """(batch, fan_in, positions), what the effective kernel is multiplied with."""
        return _side_by_side([declaration.patches(x) for x in self.inputs])

    def responses(self, declaration: Declaration, gradients: list[Tensor]) -> Tensor:
        """Gradients of the outputs, (columns, batch, ...) for every call, as (columns, batch, fan_out, positions)."""
        found = [declaration.responses(g.flatten(0, 1)).unflatten(0, g.shape[:2]) for g in gradients]
        return _side_by_side(found)


@dataclass(frozen=True)
class Forward:
    """One batch's way through the network.

    Attributes:
        outputs: of the network, (batch, ...).
        flat: the same, (batch, C).
        calls: by layer; only layers that were called.
    """

    outputs: Tensor
    flat: Tensor
    calls: dict[str, LayerIO]


def run_forward(net: nn.Module, layers: Layers, x: Tensor, copies: bool = True) -> Forward:
    """Run one batch, listening to the layers; the graph from their outputs on is kept.

    Args:
        copies: whether to hand on copies of the layers' outputs: an in-place activation must not overwrite what is
            differentiated by. Not needed where `overwrites` says so.

    Raises:
        ValueError: a layer that does not see the batch as its first dimension; a network that writes into what one saw.
    """
    with torch.enable_grad(), _listening(layers, copies) as (calls, versions):
        outputs = outputs_of(net, x)
        flat = outputs.reshape(len(x), -1)
    if written := next((name for name, tensor, version in versions if tensor._version != version), None):
        raise ValueError(
            f"the network writes into what its layer {written!r} was given or gave: expected it to stay as it was; use "
            "an operation that is not in place"
        )
    called = {name: heard for name, heard in calls.items() if heard.outputs}
    for name, heard in called.items():
        if wrong := next((i.shape for i in heard.inputs if i.ndim < 2 or len(i) != len(x)), None):
            raise ValueError(
                f"layer {name!r} sees inputs of shape {tuple(wrong)} for a batch of {len(x)}: expected the batch as "
                "its first dimension; keep positions in a dimension of their own"
            )
    return Forward(outputs, flat, called)


def output_gradients(
    forward: Forward, root: Tensor, create_graph: bool, columns: int, keep_graph: bool = False
) -> Iterator[dict[str, list[Tensor]]]:
    """Jᵀ S: gradients of the network's outputs with respect to every call's output, along a root's columns.

    Args:
        forward: of the batch.
        root: S (batch, C, K) with S Sᵀ the likelihood's Hessian.
        create_graph: whether they are to be differentiable in the network's structure.
        columns: how many columns go back at once.
        keep_graph: whether the way forward is needed afterwards.

    Yields: for some columns at a time, by layer and call, (columns, batch, ...).
    """
    probes = [output for heard in forward.calls.values() for output in heard.outputs]
    starts = range(0, root.shape[-1], columns)
    for start in starts:
        chunk = root[..., start : start + columns].movedim(-1, 0)
        several = len(chunk) > 1
        found = torch.autograd.grad(
            forward.flat,
            probes,
            grad_outputs=chunk if several else chunk[0],
            create_graph=create_graph,
            retain_graph=create_graph or keep_graph or start != starts[-1],
            allow_unused=True,
            is_grads_batched=several,
        )
        gradients = [
            p.new_zeros(()).expand(len(chunk), *p.shape) if g is None else g if several else g.unsqueeze(0)
            for g, p in zip(found, probes, strict=True)
        ]
        remaining = iter(gradients)
        yield {name: [next(remaining) for _ in heard.outputs] for name, heard in forward.calls.items()}


def jacobian_rows(pathway: Pathway, patches: Tensor, gradients: Tensor) -> Tensor:
    """Sᵀ J of one pathway, (columns, batch, parameters): exact, summed over positions and calls."""
    if pathway.acts == "bias":
        return pathway.pull_back(gradients.sum(-1))
    if pathway.acts == "scale":
        return pathway.pull_back((gradients * patches).sum(-1))
    return pathway.pull_back(kernel_gradients(pathway, gradients, patches.mT))


@dataclass(frozen=True)
class Signals:
    """Of one pathway, for some columns of a batch.

    Attributes:
        pathway: of a layer.
        patches: a (batch, fan_in, positions); for a bias, which needs none, anything.
        responses: g (columns, batch, fan_out, positions).
    """

    pathway: Pathway
    patches: Tensor
    responses: Tensor

    def of_columns(self, start: int, stop: int) -> "Signals":
        """Of fewer columns."""
        return replace(self, responses=self.responses[start:stop])

    def of_data(self, which: Tensor) -> "Signals":
        """Of some data, (batch,) true or false."""
        return Signals(self.pathway, self.patches[which], self.responses[:, which])

    def rows(self) -> Tensor:
        """Sᵀ J, (columns, batch, parameters)."""
        return jacobian_rows(self.pathway, self.patches, self.responses)


def kernel_gradients(pathway: Pathway, responses: Tensor, rows: Tensor) -> Tensor:
    """g aᵀ as `pull_back` takes it, (..., fan_out, fan_in), or its blocks, (..., blocks, rows, columns).

    Args:
        pathway: of a kernel.
        responses: g (..., fan_out, positions).
        rows: aᵀ (..., positions, fan_in).
    """
    if pathway.blocks == 1:
        return responses @ rows
    return responses.unflatten(-2, (pathway.blocks, -1)) @ rows.unflatten(-1, (pathway.blocks, -1)).movedim(-2, -3)


def _side_by_side(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def overwrites(net: nn.Module, layers: Layers, x: Tensor) -> tuple[bool, int]:
    """Whether the network writes into a layer's output, and how many numbers one datum's widest output is."""
    versions: list[tuple[Tensor, int]] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, output: versions.append((output, output._version)), prepend=True)
        for module, _ in layers.values()
    ]
    try:
        with torch.enable_grad():  # as in `run_forward`, so that what it derives from parameters serves there, too
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    widest = max((output[0].numel() for output, _ in versions if len(output)), default=0)
    return any(output._version != version for output, version in versions), widest


def _leaf(name: str, output: Tensor) -> Tensor:
    """An output that nothing is learned before, to be differentiated by."""
    try:
        return output.detach().requires_grad_()
    except RuntimeError as error:
        raise ValueError(
            f"layer {name!r} is called within torch.vmap or another transform of torch.func: expected calls on batches"
        ) from error


@contextmanager
def _listening(layers: Layers, copies: bool) -> Iterator[tuple[dict[str, LayerIO], list[tuple[str, Tensor, int]]]]:
    """What the layers' calls hear, and what the network must not write into from then on, by layer and version."""
    calls = {name: LayerIO() for name in layers}
    versions: list[tuple[str, Tensor, int]] = []
    handles = []
    for name, (module, declaration) in layers.items():
        needs_inputs = any(pathway.acts != "bias" for pathway in declaration.pathways)

        def hear(
            _m: nn.Module,
            inputs: tuple[Any, ...],
            options: dict[str, Any],
            output: Tensor,
            name: str = name,
            needs_inputs: bool = needs_inputs,
        ) -> Tensor:
            if output.dtype not in PRECISE:
                raise ValueError(
                    f"layer {name!r} gives {output.dtype}: expected float32 or float64; no autocast inside"
                )
            output = output if output.requires_grad else _leaf(name, output)
            heard, first = calls[name], next(iter((*inputs, *options.values())))  # layer(x), or layer(input=x)
            heard.inputs.append(first)
            heard.outputs.append(output)
            heard.sources.append(
                [x.grad_fn for x in (*inputs, *options.values()) if isinstance(x, Tensor) and x.grad_fn is not None]
            )
            kept = [first] * needs_inputs + [output] * (not copies)
            versions.extend((name, x, x._version) for x in kept if not x.is_inference())
            return output.clone() if copies or output.is_leaf else output

        # before the network's own hooks, which are then a part of the network like any other function
        handles.append(module.register_forward_hook(hear, prepend=True, with_kwargs=True))
    try:
        yield calls, versions
    finally:
        for handle in handles:
            handle.remove()

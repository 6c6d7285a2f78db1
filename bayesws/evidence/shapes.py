"""How large a layer's signals are, read off one datum: what memory and time follow from, before any of it is spent."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayesws.evidence.capture import Layers, run_forward
from bayesws.evidence.products import numbers_of_product
from bayesws.layers.cache import computed_once
from bayesws.layers.contract import evaluating


@dataclass(frozen=True)
class LayerShape:
    """One layer's signals for one datum, all of its calls together.

    Attributes:
        fan_in, fan_out: of its kernel.
        positions: how often the kernel is applied.
        inputs, outputs: how many numbers go in and come out.
    """

    fan_in: int
    fan_out: int
    positions: int
    inputs: int
    outputs: int


Shapes = Mapping[str, LayerShape]  # by layer; only layers that were called


def shapes_of(net: nn.Module, layers: Layers, x: Tensor) -> tuple[Shapes, Tensor]:
    """The shapes for the first datum of a batch, and the network's outputs for it, (1, ...)."""
    with evaluating(net), computed_once(net):
        forward = run_forward(net, layers, x[:1].clone())
    found = {}
    with torch.no_grad():
        for name, heard in forward.calls.items():
            declaration = layers[name][1]
            patches = heard.patches(declaration)
            responses = heard.responses(declaration, [y.unsqueeze(0) for y in heard.outputs])
            inputs, outputs = (sum(t.numel() for t in signals) for signals in (heard.inputs, heard.outputs))
            found[name] = LayerShape(patches.shape[1], responses.shape[2], responses.shape[3], inputs, outputs)
    return found, forward.outputs.detach()


def numbers_in_a_row(layers: Layers, shapes: Shapes) -> int:
    """How many numbers a row of Jacobians is held as in function space: P, less where layers have one position."""
    found = 0
    for name, (_, declaration) in layers.items():
        for p in declaration.pathways:
            shape = shapes.get(name)
            product = None if shape is None else numbers_of_product(p, shape.fan_in, shape.fan_out, shape.positions)
            found += p.numel if product is None else product
    return found


def multiplications_back(layers: Layers, shapes: Shapes) -> int:
    """Of one column through every kernel, a datum: Σ positions × weights; a forward pass takes as many."""
    return sum(
        shape.positions * p.numel
        for name, shape in shapes.items()
        for p in layers[name][1].pathways
        if p.acts == "kernel"
    )

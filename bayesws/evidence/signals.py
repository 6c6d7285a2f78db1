"""What flows through the declared layers of a network for one batch: patches in, output gradients back."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bayesws.evidence.likelihood import Categorical, Gaussian
from bayesws.layers.base import Declaration

Layers = dict[str, tuple[nn.Module, Declaration]]


@dataclass
class LayerSignals:
    """The signals of one layer for one batch; a layer called several times has its calls side by side in positions.

    Attributes:
        patches: (batch, positions, fan_in), what the effective kernel is multiplied with.
        gradients: (columns, batch, positions, fan_out), Jᵀ S: the gradients of the network's outputs with respect to
            the layer's output, weighted with the columns of a root S of the likelihood's Hessian.
    """

    patches: Tensor
    gradients: Tensor


@dataclass
class _Calls:
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


@contextmanager
def _listening(layers: Layers) -> Iterator[dict[str, _Calls]]:
    calls = {name: _Calls() for name in layers}
    handles = []
    for name, (module, _) in layers.items():

        def hear(_m: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, heard: _Calls = calls[name]) -> Tensor:
            output = output if output.requires_grad else output.detach().requires_grad_()
            heard.inputs.append(inputs[0])
            heard.outputs.append(output)
            return output.clone()  # an in-place activation must not overwrite what we differentiate by

        handles.append(module.register_forward_hook(hear))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def layer_signals(
    net: nn.Module, layers: Layers, x: Tensor, y: Tensor, likelihood: Categorical | Gaussian, create_graph: bool
) -> tuple[Tensor, dict[str, LayerSignals]]:
    """Run one batch forward and, for every column of the Hessian's root, backward to the layers' outputs.

    Args:
        net: the network, in eval mode.
        layers: its declarations.
        x, y: (batch, ...), inputs and targets.
        likelihood: gives the root.
        create_graph: whether the signals are to be differentiable in the network's structure.

    Returns: the outputs (batch, C) and the signals of every layer that was called.
    """
    with torch.enable_grad(), _listening(layers) as calls:
        outputs = net(x)
        likelihood.check(outputs, y)
        root = likelihood.hessian_root(outputs)
        flat = outputs.flatten(1)
        probes = [output for heard in calls.values() for output in heard.outputs]
        columns = [
            torch.autograd.grad(
                flat,
                probes,
                grad_outputs=root[..., column],
                create_graph=create_graph,
                retain_graph=True,
                allow_unused=True,
            )
            for column in range(root.shape[-1])
        ]
    signals: dict[str, LayerSignals] = {}
    start = 0
    for name, heard in calls.items():
        declaration = layers[name][1]
        if not heard.outputs:
            continue
        patches, gradients = [], []
        for call, (inputs, output) in enumerate(zip(heard.inputs, heard.outputs, strict=True)):
            found = [column[start + call] for column in columns]
            found = [torch.zeros_like(output) if g is None else g for g in found]
            gradients.append(torch.stack([declaration.responses(g) for g in found]))
            patches.append(declaration.patches(inputs))
            if len(patches[-1]) != len(x):
                raise ValueError(
                    f"layer {name!r} sees {len(patches[-1])} inputs for a batch of {len(x)}: expected the batch as its "
                    "first dimension; keep positions in a dimension of their own"
                )
        start += len(heard.outputs)
        signals[name] = LayerSignals(torch.cat(patches, 1), torch.cat(gradients, 2))
    if not create_graph:
        outputs = outputs.detach()
        signals = {n: LayerSignals(s.patches.detach(), s.gradients.detach()) for n, s in signals.items()}
    return outputs, signals

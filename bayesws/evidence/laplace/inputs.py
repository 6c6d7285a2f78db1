"""What laplace-torch hands over as x: a tensor, a mapping, or several examples in one row."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesws.layers.contract import declarations


def as_batch(net: nn.Module, x: Any, key: str) -> tuple[nn.Module, Tensor]:
    """A network of one tensor, and that tensor, with the data along its first dimension.

    A mapping is kept by the network, its batch is the tensor. A reward model takes the k examples of a comparison in
    one row, x (batch, k, ...), lays them one below the other, and gives their outputs (batch, k): its layers see
    batch · k rows. That is the network on x[:, 0], ..., x[:, k - 1], outputs side by side, which calls every layer k
    times with the batch as it should be.

    Args:
        net: the network.
        x: a tensor, or a mapping with one, (batch, ...).
        key: of the tensor in a mapping.

    Raises:
        ValueError: x of another kind, or without the key.
    """
    batch = x[key] if isinstance(x, Mapping) and key in x else x
    if not isinstance(batch, Tensor):
        keys = f" with {sorted(map(str, x))}" if isinstance(x, Mapping) else ""
        raise ValueError(
            f"inputs of type {type(x).__name__}{keys}: expected a tensor, or a mapping with one at dict_key_x={key!r}"
        )
    examples, whole = _examples_a_row(net, x, batch)
    if examples > 1:
        several = _Fed(net, [_example(x, batch.shape[:2], which) for which in range(examples)])
        with torch.no_grad():
            parts = several(batch)
        if parts.shape == whole.shape and torch.allclose(parts, whole, rtol=SAME, atol=SAME * float(whole.abs().max())):
            return several, batch
    return (net, x) if batch is x else (_Fed(net, [x]), batch)


SAME = 1e-4  # relative: outputs of examples by themselves and in one row


class _Fed(nn.Module):
    """A network on inputs that it holds, outputs side by side."""

    def __init__(self, net: nn.Module, inputs: list[Any]) -> None:
        super().__init__()
        self.net, self.inputs = net, inputs

    def forward(self, batch: Tensor) -> Tensor:
        outputs = [self.net(x) for x in self.inputs]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


def _examples_a_row(net: nn.Module, x: Any, batch: Tensor) -> tuple[int, Tensor]:
    """k and the outputs where x is (batch, k, ...), these are (batch, k), and a layer sees batch · k rows; else 1."""
    examples = batch.shape[1] if batch.ndim > 2 else 1
    if examples == 1 or getattr(net, "output_size", examples) != examples:  # laplace-torch tells a network its outputs
        return 1, batch
    rows: list[int] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, output: rows.append(len(output)))
        for module, _ in declarations(net).values()
    ]
    try:
        with torch.enable_grad():  # so that what it derives from parameters serves where gradients are asked for
            outputs = net(x).detach()
    finally:
        for handle in handles:
            handle.remove()
    several = len(batch) * examples in rows and outputs.shape == batch.shape[:2]
    return examples if several else 1, outputs


def _example(x: Any, leading: torch.Size, which: int) -> Any:
    """x[:, which], or a mapping with that of everything that has the leading dimensions."""
    if isinstance(x, Tensor):
        return x[:, which]
    fits = {name: isinstance(value, Tensor) and value.shape[:2] == leading for name, value in x.items()}
    return type(x)({name: value[:, which] if fits[name] else value for name, value in x.items()})

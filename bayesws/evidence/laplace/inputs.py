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
    examples = _examples_a_row(net, x, batch)
    if examples > 1:
        several = _Fed(net, [_part(x, batch.shape[:2], (slice(None), j)) for j in range(examples)])
        with torch.no_grad():
            whole, parts = net(x), several(batch)
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


def _examples_a_row(net: nn.Module, x: Any, batch: Tensor) -> int:
    """How many rows its layers make of one datum (1, k, ...) with k outputs, if k; else one."""
    if batch.ndim < 3 or batch.shape[1] == 1:
        return 1
    rows: list[int] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, output: rows.append(len(output)))
        for module, _ in declarations(net).values()
    ]
    try:
        with torch.enable_grad():  # so that what it derives from parameters serves where gradients are asked for
            outputs = net(_part(x, batch.shape[:1], (slice(1),)))
    finally:
        for handle in handles:
            handle.remove()
    examples = batch.shape[1]
    return examples if examples in rows and outputs.shape == (1, examples) else 1


def _part(x: Any, leading: torch.Size, index: tuple[slice | int, ...]) -> Any:
    """x[index], or a mapping with that of everything that has the leading dimensions."""
    if isinstance(x, Tensor):
        return x[index]
    fits = {name: isinstance(value, Tensor) and value.shape[: len(leading)] == leading for name, value in x.items()}
    return type(x)({name: value[index] if fits[name] else value for name, value in x.items()})

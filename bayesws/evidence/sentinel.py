"""Beside a walk through the data: what the first check of a network could not show is still caught, batch by batch."""

import torch
from torch import Tensor, nn

from bayesws.evidence.capture import Forward, Layers, run_forward
from bayesws.evidence.checks import (
    check_reached,
    check_uses,
    differ,
    differ_alone,
    gradients_of,
    random_probe,
    reach_beside,
    refuse_mixing,
    refuse_unexplained,
    unexplained,
)

SHARE = 16  # one datum of so many of a batch is looked at, and at least so many data
ALONE = 4  # so many of them by themselves, too


class Sentinel:
    """Looks at some data of one of a walk's batches a second time, beside others, and along one random probe.

    What a datum gives, and what its layers are given, must be as in its batch; the gradient of the probe must be the
    one that the layers' calls explain. In autograd's graph of every batch the parameters stand behind these calls
    alone. What is found is read back once, at the end: on a device a look does not wait.

    Args:
        seed: of the batch, its data and the probe.
        batches: about how many the walk has.
        thorough: whether to look at the first, second, fourth, ... batch, too, and at a few data by themselves.
    """

    def __init__(self, net: nn.Module, layers: Layers, seed: int, batches: int, thorough: bool) -> None:
        self._net, self._layers, self._thorough = net, layers, thorough
        self._generator = torch.Generator().manual_seed(seed)
        self._turn = int(torch.randint(max(1, batches), (), generator=self._generator))
        self._batch = -1  # the one that is on its way
        self._beside: Tensor | None = None  # a datum of an earlier batch
        self._mixed: list[Tensor] = []
        self._unexplained: dict[str, list[Tensor]] = {}

    def pick(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Which rows of a batch to look at, and copies of them and of one datum more; None where it is not their turn.

        Before the batch goes through the network, which may write into it.
        """
        self._batch += 1
        if self._batch != self._turn and not (self._thorough and self._batch & (self._batch - 1) == 0):
            return None
        count = len(x) if len(x) <= 2 else min(max(SHARE, len(x) // SHARE), len(x) - 1)
        rows = torch.randperm(len(x), generator=self._generator)[:count].to(x.device)
        some, beside = x[rows], self._beside
        self._beside = some[:1].clone()
        if beside is None or beside.shape[1:] != some.shape[1:]:
            return rows, some
        return rows, torch.cat([some, beside])

    def look(self, forward: Forward, picked: tuple[Tensor, Tensor] | None) -> None:
        """Compare a batch's way forward with that of the data that were picked from it."""
        check_uses(forward, self._layers)
        if picked is None:
            return
        rows, some = picked
        if self._thorough and self._batch == 0:
            self._mixed += reach_beside(forward, self._layers, rows, self._generator)
        if self._thorough and len(forward.outputs) > 1:
            lone = rows[:ALONE]
            self._mixed.append(differ_alone(self._net, some[: len(lone)], forward.outputs.detach()[lone]))
        again = run_forward(self._net, self._layers, some)
        pairs = [(again.flat, forward.flat)]
        for name, heard in forward.calls.items():
            if name in again.calls:
                pairs += zip(again.calls[name].inputs, heard.inputs, strict=False)  # as long as there are calls in both
        for found, whole in pairs:
            if found.shape[1:] == whole.shape[1:]:  # a batch may be padded as its longest datum asks for
                self._mixed.append(differ(found[: len(rows)].detach(), whole.detach()[rows]))
        by_call, truths = gradients_of(again, self._layers, random_probe(again.flat, self._generator))
        check_reached(self._net, self._layers, some, again, by_call)
        for name, wrong in unexplained(again, self._layers, by_call, truths).items():
            self._unexplained.setdefault(name, []).append(wrong)

    def tell(self) -> None:
        """Raise for what was found.

        Raises:
            ValueError: outputs that depend on other data, a gradient that the layers' calls do not explain.
        """
        if self._mixed and torch.stack(self._mixed).any():
            refuse_mixing(self._net)
        if self._unexplained:
            found = torch.stack([torch.stack(wrong).any() for wrong in self._unexplained.values()]).tolist()
            if name := next((name for name, wrong in zip(self._unexplained, found, strict=True) if wrong), None):
                refuse_unexplained(self._layers, name)

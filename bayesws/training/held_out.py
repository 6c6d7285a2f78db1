"""Choosing by held-out data: every value is trained with on a part of the data, and scored on the rest."""

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from bayesws.evidence.batches import Batches
from bayesws.training.checkpoint import Checkpoint
from bayesws.training.loop import Loop
from bayesws.training.objectives.objective import Setting, Work
from bayesws.training.starts import Begun

Watching = AbstractContextManager[Callable[[], object]]  # gives what to call after every epoch


class Split:
    """The held-out split of one fit; see `HeldOut`. No value is trained with twice.

    Args:
        setting: of the fit; nothing in it is changed.
        watching: makes what is told of each training, from a line about it.
        checkpoint: where to go on from, and to write to.
    """

    def __init__(
        self, setting: Setting, watching: Callable[[str], Watching], checkpoint: Checkpoint | None = None
    ) -> None:
        self.setting, self.watching, self.checkpoint = setting, watching, checkpoint
        self.losses = {} if checkpoint is None else checkpoint.losses()  # by the values' repr, or the start's name
        self.seconds: dict[str, float] = {}  # of those that this call trained

    def best(self, tried: list[Any], begin: Callable[[Setting, Any], Work], share: float) -> Any:
        """The value with the smallest held-out negative log likelihood; of one there is nothing to choose.

        Raises:
            ValueError: too few data to hold a share of them out.
        """
        if len(tried) == 1:
            return tried[0]
        for place, value in enumerate(tried, 1):
            told = f"choosing, {place} of {len(tried)}"
            self._try(repr(value), told, self.setting, value, begin, share)
        return min(tried, key=lambda value: self.losses[repr(value)])

    def of_start(
        self, begun: Begun, of: int, chosen: Any, begin: Callable[[Setting, Any], Work], share: float
    ) -> tuple[float, float | None]:
        """Of one of several starts, trained like a value: its held-out loss, nats per datum, and the seconds it took.

        These are None where an earlier call trained it. Start 0 with what was chosen may have been trained before.

        Args:
            begun: the start; it is left as it is.
            of: how many there are.
            chosen: the value to train with.
            begin, share: as for `best`.
        """
        number = begun.number
        name = repr(chosen) if number == 0 else f"start {number}, held out"
        self._try(name, f"start {number + 1} of {of}, choosing", begun.setting, chosen, begin, share)
        return self.losses[name] / len(self._parts(share)[1]), self.seconds.get(name)

    def _try(
        self, name: str, told: str, setting: Setting, value: Any, begin: Callable[[Setting, Any], Work], share: float
    ) -> None:
        """Train one network on a part and score it on the rest, unless that was done; keep its loss under a name."""
        if name in self.losses:
            return
        began = time.perf_counter()
        self.losses[name] = self._loss(name, told, setting, value, begin, share)
        self.seconds[name] = time.perf_counter() - began
        if self.checkpoint is not None:
            self.checkpoint.keep_losses(self.losses)

    def _loss(
        self, name: str, told: str, setting: Setting, value: Any, begin: Callable[[Setting, Any], Work], share: float
    ) -> float:
        kept, held = self._parts(share)
        net, likelihood = copy.deepcopy(setting.net), copy.deepcopy(setting.likelihood)
        trial = replace(setting, net=net, likelihood=likelihood, data=kept)
        place = next(net.parameters()).device
        with torch.random.fork_rng([place] if place.type == "cuda" else []):  # one draw of dropout for all values
            loop = Loop(trial, begin(trial, value))
            loop.train(self.watching(told), self.checkpoint, name)
        net.eval()
        with torch.no_grad():
            return -sum(float(likelihood.log_prob(net(x), y)) for x, y in held)

    def _parts(self, share: float) -> tuple[Batches, Batches]:
        return self.setting.data.split(share, torch.Generator().manual_seed(self.setting.seed))

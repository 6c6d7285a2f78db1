"""Choosing by held-out data: every value is trained with on a part of the data, and scored on the rest."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from bayesws.training.checkpoint import Checkpoint
from bayesws.training.loop import Loop
from bayesws.training.objectives.objective import Setting, Work

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
        self.losses = {} if checkpoint is None else checkpoint.losses()  # by the values' repr

    def best(self, tried: list[Any], begin: Callable[[Setting, Any], Work], share: float) -> Any:
        """The value with the smallest held-out negative log likelihood; of one there is nothing to choose.

        Raises:
            ValueError: too few data to hold a share of them out.
        """
        if len(tried) == 1:
            return tried[0]
        for place, value in enumerate(tried, 1):
            if repr(value) not in self.losses:
                told = self.watching(f"choosing, {place} of {len(tried)}")
                self.losses[repr(value)] = self._loss(value, begin, share, told)
                if self.checkpoint is not None:
                    self.checkpoint.keep_losses(self.losses)
        return min(tried, key=lambda value: self.losses[repr(value)])

    def _loss(self, value: Any, begin: Callable[[Setting, Any], Work], share: float, watching: Watching) -> float:
        kept, held = self.setting.data.split(share, torch.Generator().manual_seed(self.setting.seed))
        net, likelihood = copy.deepcopy(self.setting.net), copy.deepcopy(self.setting.likelihood)
        trial = replace(self.setting, net=net, likelihood=likelihood, data=kept)
        place = next(net.parameters()).device
        with torch.random.fork_rng([place] if place.type == "cuda" else []):  # one draw of dropout for all values
            loop = Loop(trial, begin(trial, value))
            loop.train(watching, self.checkpoint, repr(value))
        net.eval()
        with torch.no_grad():
            return -sum(float(likelihood.log_prob(net(x), y)) for x, y in held)

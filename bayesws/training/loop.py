"""The loop: epochs of steps on the weights, and in between what the objective does of its own."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bayesws.layers.cache import computed_once
from bayesws.layers.contract import frozen, named_pathways
from bayesws.layers.prune import prune, pruned
from bayesws.training.checkpoint import Checkpoint
from bayesws.training.objectives.objective import Setting, Work
from bayesws.training.optimiser import forget, optimiser_state, restore_optimiser

Record = dict[str, float]


class Loop:
    """One training of one network, and all that its coming epochs depend on.

    Attributes:
        setting: the network, the data, the likelihood, the schedule.
        work: the objective at work.
        history: one record an epoch.
        seconds: wall time of these epochs, in all calls that trained them.
        out: the branches without which the optimiser goes on.
    """

    def __init__(self, setting: Setting, work: Work) -> None:
        self.setting, self.work = setting, work
        self.order = torch.Generator().manual_seed(setting.seed)
        self.history: list[Record] = []
        self.out = pruned(setting.net)
        self.seconds = 0.0
        groups: list[dict[str, Any]] = [
            {"params": [p.parameter], "pathway": name} for name, p in named_pathways(setting.net)
        ]
        groups += work.further_groups()
        self.optimiser = torch.optim.Adam(groups, lr=setting.schedule.learning_rate, betas=(0.9, 0.99))

    def train(
        self,
        watching: Any,
        checkpoint: Checkpoint | None = None,
        what: str = "",
        watch: Callable[[Record], object] = lambda record: None,
    ) -> None:
        """All epochs.

        Args:
            watching: a context that gives what to call after every epoch.
            checkpoint: where to go on from, and to write to.
            what: the training's name in it.
            watch: called with every new record of the history.

        Raises:
            FloatingPointError: a loss that is not finite, naming the epoch.
        """
        plan = self.setting.schedule
        done = 0 if checkpoint is None else checkpoint.resume(self, what)
        with torch.enable_grad(), watching as advance:  # whoever calls may be within no_grad
            for _ in range(done):
                advance()
            for epoch in range(done + 1, plan.epochs + 1):
                began = time.perf_counter()
                self.history.append(self._epoch(epoch))
                self.seconds += time.perf_counter() - began
                watch(self.history[-1])
                if checkpoint is not None:
                    checkpoint.after_epoch(self, what, epoch)
                advance()
        if checkpoint is not None and plan.starts > 1 and done < plan.epochs:
            checkpoint.keep(self, what, plan.epochs)  # of several starts the best is taken up again from here
        self.work.finish()

    def _epoch(self, epoch: int) -> Record:
        setting, work = self.setting, self.work
        setting.net.train()
        work.before_epoch()
        loss: Tensor | float = 0.0
        with frozen(work.at_rest(epoch)):
            for step, (x, y) in enumerate(setting.data.shuffled(self.order), 1):
                self._set_rates(epoch, step)
                loss = loss + self._step(x, y)
                work.after_step(epoch, step)
        record = {"epoch": float(epoch), "loss": float(loss) / len(setting.data)}
        if not math.isfinite(record["loss"]):
            raise FloatingPointError(
                f"the loss is not finite in epoch {epoch} of {setting.schedule.epochs}: lower the learning rate "
                f"(now {setting.schedule.learning_rate:g}) or check the data's scale"
            )
        record |= work.after_epoch(epoch)
        self._follow_network()
        return record

    def _follow_network(self) -> None:
        """Leave out what was taken out of the network, if anything was."""
        net = self.setting.net
        if pruned(net) != self.out:
            self.out = pruned(net)
            forget(self.optimiser, [*net.parameters(), *self.setting.likelihood.hyperparameters()])

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step on the weights; the batch's negative log likelihood, nats."""
        self.optimiser.zero_grad()
        with computed_once(self.setting.net):
            loss, nll = self.work.loss(x, y)
            loss.backward()
        self.optimiser.step()
        return nll.detach()

    def _set_rates(self, epoch: int, step: int) -> None:
        """Warm-up and cosine, and every group's share of them."""
        plan = self.setting.schedule
        an_epoch = math.ceil(len(self.setting.data) / plan.batch_size)
        taken, total = (epoch - 1) * an_epoch + step - 1, plan.epochs * an_epoch
        descent = max(0.0, taken / total - plan.steady) / (1 - plan.steady)
        rate = plan.learning_rate * 0.5 * (1 + math.cos(math.pi * descent))
        rate *= min(1.0, (taken + 1) / max(plan.warm_up, 1))
        for group in self.optimiser.param_groups:
            share = self.work.rate(group["pathway"]) if "pathway" in group else group.get("share", 1.0)
            group["lr"] = rate * share

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the coming epochs depend on, between two of them: tensors by name, and plain values."""
        tensors = {f"net.{name}": tensor for name, tensor in self.setting.net.state_dict().items()}
        tensors |= {f"noise.{i}": tensor for i, tensor in enumerate(self.setting.likelihood.hyperparameters())}
        tensors |= {"order": self.order.get_state(), "torch": torch.get_rng_state()}  # the latter is for dropout
        tensors |= optimiser_state("weights", self.optimiser)
        own, values = self.work.state()
        plain = {"history": self.history, "seconds": self.seconds, "objective": values}
        return tensors | own, plain | {"pruned": pruned(self.setting.net)}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Put a new loop where `state` was taken."""
        if out := values.get("pruned"):  # earlier versions took nothing out
            prune(self.setting.net, out)
            self.work.follow_network()
            self._follow_network()
        net = {name[4:]: tensor for name, tensor in tensors.items() if name.startswith("net.")}
        self.setting.net.load_state_dict(net)
        for index, tensor in enumerate(self.setting.likelihood.hyperparameters()):
            tensor.copy_(tensors[f"noise.{index}"])
        self.order.set_state(tensors["order"])
        torch.set_rng_state(tensors["torch"])
        restore_optimiser("weights", self.optimiser, tensors)
        self.work.restore(tensors, values["objective"])
        self.history, self.seconds = values["history"], values.get("seconds", 0.0)  # earlier versions told none

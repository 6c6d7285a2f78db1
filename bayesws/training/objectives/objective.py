"""What an objective is: a value with all of its settings, and what it does while a network is trained by it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from bayesws.evidence.batches import Batches
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.likelihood import Likelihood
from bayesws.evidence.objective import LaplacePass
from bayesws.io.arguments import shown
from bayesws.training.schedule import Schedule

# A further term of the loss, nats per datum, from (network, x, y, outputs): a function of a module, or a value whose
# repr tells it.
LossTerm = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def check_terms(terms: Any) -> None:
    """Raise ValueError for what are no further terms of a loss."""
    if not isinstance(terms, tuple) or not all(callable(term) for term in terms):
        raise ValueError(f"terms={shown(terms)}: expected functions of (network, x, y, outputs), in a tuple")


@dataclass(frozen=True)
class Setting:
    """What one training is about.

    Attributes:
        net: the network that is trained, in place.
        data: to train on.
        likelihood: with the noise that is learned, in place.
        schedule: how long and how fast.
        curvature: of the evidence.
        seed: of the order of the data.
        few: inputs to look at the network with; None where nobody has.
        apart: whether nested pathways start at equal precisions, and not shared.
    """

    net: nn.Module
    data: Batches
    likelihood: Likelihood
    schedule: Schedule
    curvature: Curvature
    seed: int
    few: Tensor | None = None
    apart: bool = False


class HeldOut(Protocol):
    """A part of the training data that nothing is trained on, to choose settings by."""

    def best(self, tried: list[Any], begin: Callable[[Setting, Any], "Work"], share: float) -> Any:
        """The value of `tried` with the smallest negative log likelihood on the held-out share of the data.

        Every value is tried by a training of its own on the rest; of one value there is nothing to choose.
        """
        ...


class Objective(Protocol):
    """A value: what a network is trained by, with the whole of its settings; its repr tells it from all others."""

    name: ClassVar[str]

    def check(self, setting: Setting) -> None:
        """Raise ValueError where the network has nothing that the settings are about; before anything is trained."""
        ...

    def choose(self, setting: Setting, held_out: HeldOut) -> Any:
        """What is chosen before the training; a value, None where there is nothing to choose."""
        ...

    def begin(self, setting: Setting, chosen: Any) -> "Work":
        """Start to train a network by it, with what was chosen."""
        ...

    def chosen_settings(self, chosen: Any) -> dict[str, Any]:
        """What was chosen, by name, as JSON has it."""
        ...


class Work(Protocol):
    """An objective at work on one network: its loss, its own steps, and all of its state.

    Attributes:
        log_precisions: log δ by pathway, as far as it is known.
    """

    log_precisions: dict[str, Tensor]

    def further_groups(self) -> list[dict[str, Any]]:
        """Groups of the weights' optimiser beside those of the pathways: what else descends on the loss.

        Each may have "share", its learning rate as a share of the weights'.
        """
        ...

    def rate(self, pathway: str) -> float:
        """The learning rate of a pathway, as a share of the weights'."""
        ...

    def at_rest(self, epoch: int) -> list[nn.Parameter]:
        """What takes no gradient in an epoch, counted from 1."""
        ...

    def before_epoch(self) -> None:
        """Called before the first step of every epoch."""
        ...

    def loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Of one batch: what the weights descend on, nats per datum; the negative log likelihood, summed."""
        ...

    def after_step(self, epoch: int, step: int) -> None:
        """Called after every step on the weights; steps are counted from 1 within their epoch."""
        ...

    def after_epoch(self, epoch: int) -> dict[str, float]:
        """Called after the last step of every epoch; what its record in the history has beside epoch and loss."""
        ...

    def follow_network(self) -> None:
        """Called where a new work goes on with a network from which branches were taken out (`layers.prune`)."""
        ...

    def finish(self) -> None:
        """Called once, after the last epoch."""
        ...

    def settle(self, done: LaplacePass) -> None:
        """Set the precisions that no training has set, from the last pass over the data."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All of its own that the coming epochs depend on: tensors by name, and plain values."""
        ...

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Put a new one where `state` was taken."""
        ...

    def notes(self, history: list[dict[str, float]]) -> list[str]:
        """What did not converge, a line each."""
        ...

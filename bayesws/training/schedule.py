"""How long and how fast to train, and from where: plain values, checked once."""

import math
from dataclasses import dataclass, replace

from bayesws.io.arguments import positive, share, shown, whole

OFTEN, RARELY = 10_000, 10  # data, and the most epochs, between two steps on the hyperparameters
STARTS = (None, "moments", "random")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; the same for every objective.

    Attributes:
        epochs: passes over the data.
        batch_size: examples a step.
        learning_rate: of Adam, in the weights.
        warm_up: steps of its linear warm-up.
        steady: share of the steps at the full rate, the warm-up included; after it the rate goes down a cosine.
        burn_in: share of the epochs before the first step on the hyperparameters; None lets the run decide (`BurnIn`).
        every: epochs between steps on the hyperparameters where no structure is learned; None is as many as take about
            10 000 data, from one to ten: a step costs as much as some thousands of data whatever their number.
        structure_steps: steps on structure, precisions and noise in every epoch, where the evidence learns a structure.
        start: of the soft stacks: "moments", at the groups that the moments of each layer's input propose, from the
            input up (`layers.start`); "random", drawn anew from the seed; None leaves them as they are.
        starts: how many starts are trained; the best is kept, and all are told (`training.starts`, `best_start`).

    Raises:
        ValueError: values out of range.
    """

    epochs: int = 300
    batch_size: int = 100
    learning_rate: float = 0.03
    warm_up: int = 100
    steady: float = 0.7
    burn_in: float | None = None
    every: int | None = None
    structure_steps: int = 1
    start: str | None = None
    starts: int = 1

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_size", "structure_steps", "starts", *["every"] * (self.every is not None))
        for name, least in [*((name, 1) for name in counts), ("warm_up", 0)]:
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        object.__setattr__(self, "learning_rate", positive("learning_rate", self.learning_rate))
        for name in ("burn_in", "steady"):
            if (given := getattr(self, name)) is not None or name != "burn_in":
                object.__setattr__(self, name, share(name, given, "a share of the run, in [0, 1)", zero=True))
        if not isinstance(self.start, str | None) or self.start not in STARTS:
            raise ValueError(f"start={shown(self.start)}: expected 'moments', 'random' or None")

    @property
    def wait(self) -> int:
        """`every`, or, before it is known for how many data, the most that it may be."""
        return RARELY if self.every is None else self.every

    def for_data(self, count: int) -> "Schedule":
        """The same, with `every` for so many data; -1 where nobody knows.

        >>> [Schedule().for_data(count).every for count in (500, 3000, 60_000, -1)]
        [10, 4, 1, 10]
        """
        if self.every is not None:
            return self
        return replace(self, every=min(RARELY, math.ceil(OFTEN / count)) if count > 0 else RARELY)


def steps_due(plan: Schedule, examples: int) -> set[int]:
    """The steps on the weights, counted from 1 in their epoch, after which a step on the structure is due.

    The last of an epoch's steps on the structure comes after its last step on the weights.
    """
    an_epoch = math.ceil(examples / plan.batch_size)
    return {an_epoch * (i + 1) // plan.structure_steps for i in range(plan.structure_steps)}

"""Shared and free weights told apart by a ratio of their precisions that is set by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from bayesws.io.arguments import positive
from bayesws.layers.contract import named_pathways
from bayesws.training.objectives.objective import Setting
from bayesws.training.objectives.task_loss import Penalties, TaskLoss


@dataclass(frozen=True, kw_only=True)
class FixedRatio(TaskLoss):
    """Residual pathway priors (arXiv 2112.01388): free weights have r times the weight decay of the shared ones.

    Attributes:
        ratio: r, how many times as precise the prior of the free weights is, in every layer.

    Raises:
        ValueError: a ratio that is not positive; as `TaskLoss`.
    """

    ratio: float = 100.0
    name: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(ratio=self.ratio)

    def check(self, setting: Setting) -> None:
        """Raise ValueError for a network without free weights beside shared ones."""
        super().check(setting)
        check_free(self.name, setting)

    def start(self, free: Sequence[str]) -> Penalties:
        """The ratio, in every layer."""
        return replace(super().start(free), ratios=dict.fromkeys(free, self.ratio))


def check_free(name: str, setting: Setting) -> None:
    """Raise ValueError where no pathway of a network breaks a layer's sharing."""
    if not any(pathway.breaks_sharing for _, pathway in named_pathways(setting.net)):
        raise ValueError(
            f"objective={name!r} is about free weights beside shared ones: this network has none; "
            "use 'task' or 'evidence'"
        )


def check_positive(**given: float | tuple[float, ...]) -> None:
    """Raise ValueError for a number, or an empty or other tuple of numbers, that is not positive and finite."""
    for name, value in given.items():
        values = value if isinstance(value, tuple) else (value,)
        if not values:
            raise ValueError(f"{name}={value!r}: expected positive numbers")
        for each in values:
            positive(name, each, "positive numbers")

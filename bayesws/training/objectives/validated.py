"""Shared and free weights told apart by ratios of their precisions that a held-out split chooses, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from bayesws.training.objectives.fixed_ratio import check_free, check_positive
from bayesws.training.objectives.objective import Setting
from bayesws.training.objectives.task_loss import Axis, Penalties, TaskLoss


@dataclass(frozen=True, kw_only=True)
class Validated(TaskLoss):
    """A ratio for every layer, chosen on the held-out split, layer by layer from the first.

    In the spirit of sharing discovery by a validation split (Yeh et al., AISTATS 2022), over this library's precisions:
    no hypergradient, but every ratio trained and tested.

    Attributes:
        ratios: what is tried; the search starts with the first in all layers.

    Raises:
        ValueError: no ratio, or one that is not positive; as `TaskLoss`.
    """

    ratios: tuple[float, ...] = (100.0, 1.0, 10.0, 1000.0)
    name: ClassVar[str] = "validated"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(ratios=self.ratios)

    def check(self, setting: Setting) -> None:
        """Raise ValueError for a network without free weights beside shared ones."""
        super().check(setting)
        check_free(self.name, setting)

    def start(self, free: Sequence[str]) -> Penalties:
        """The first ratio, in every layer."""
        return replace(super().start(free), ratios=dict.fromkeys(free, self.ratios[0]))

    def axes(self, free: Sequence[str]) -> list[Axis]:
        """One a layer."""

        def of(name: str) -> Axis:
            return lambda best: [replace(best, ratios={**best.ratios, name: ratio}) for ratio in self.ratios]

        return [of(name) for name in free]

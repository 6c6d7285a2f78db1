"""How long and how fast to train, and what the task loss is penalised with: plain values, checked once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bayesws.evidence.gradient import WAYS


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; the same for every objective.

    Attributes:
        epochs: passes over the data.
        batch_size: examples a step.
        learning_rate: of Adam, in the weights.
        warm_up: steps of its linear warm-up.
        steady: share of the steps at the full rate, the warm-up included; after it the rate goes down a cosine.
        burn_in: share of the epochs before the first step on the hyperparameters.
        every: epochs between steps on the hyperparameters where no structure is learned.
        structure_steps: steps on structure, precisions and noise in every epoch, where a structure is learned.
        fixed_point_steps: MacKay steps on the precisions for one curvature pass.
        damping: of a MacKay step.
        structure_rate: Adam's learning rate for logits and noise where the evidence learns a structure.
        task_structure_rate: that of the logits under the task loss, with the weights' warm-up and cosine; None is the
            weights' own.
        rest_structure: whether the task loss, too, lets the logits rest in the burn-in, as the evidence always does.
            As published they move from the first step.
        structure_way: how their gradient is taken, "once", "twice" (constant memory) or "local"; see
            `evidence.gradient`.
    """

    epochs: int = 300
    batch_size: int = 100
    learning_rate: float = 0.03
    warm_up: int = 100
    steady: float = 0.7
    burn_in: float = 0.1
    every: int = 10
    structure_steps: int = 1
    fixed_point_steps: int = 10
    damping: float = 0.2
    structure_rate: float = 0.1
    structure_way: str = "once"
    task_structure_rate: float | None = None
    rest_structure: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "every", "structure_steps", "fixed_point_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("learning_rate", "structure_rate", "task_structure_rate"):
            rate = getattr(self, name)
            if rate is not None and not (rate > 0 and math.isfinite(rate)):
                raise ValueError(f"{name}={rate}: expected a positive number")
        for name in ("burn_in", "steady"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a share of the run, in [0, 1)")
        if self.structure_way not in WAYS:
            raise ValueError(f"structure_way={self.structure_way!r}: expected one of {', '.join(WAYS)}")
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping={self.damping}: expected a number in (0, 1]")


@dataclass(frozen=True)
class Penalties:
    """What is added to the mean negative log likelihood where the evidence does not decide: see `fit` and `rivals`.

    Attributes:
        weight_decay: λ of ½ λ Σ_p r_p ‖θ_p‖², per datum.
        normaliser, entropy: weights of the soft stacks' regularisers.
        ratios: r_p by pathway, 1 for those that are not named.
        slack: s of the constrained free weights; None does not constrain them.
    """

    weight_decay: float = 0.0
    normaliser: float = 0.0
    entropy: float = 0.0
    ratios: Mapping[str, float] = field(default_factory=dict)
    slack: float | None = None

    def __post_init__(self) -> None:
        for name in ("normaliser", "entropy"):
            weight = getattr(self, name)
            if not (weight >= 0 and math.isfinite(weight)):
                raise ValueError(f"{name}={weight}: expected a weight of at least 0")


def check_weight_decays(grid: Sequence[float]) -> None:
    """Raise ValueError for a grid that no weight decay can be chosen from."""
    if not grid or not all(math.isfinite(w) and w >= 0 for w in grid):
        raise ValueError(f"weight_decays={grid!r}: expected one or more numbers, none negative")


def with_changes(plan: Schedule, changes: dict[str, Any]) -> Schedule:
    """The schedule with single fields changed.

    Raises:
        ValueError: a name that is no field; a value that a field may not have.
    """
    known = asdict(plan)
    if unknown := next((name for name in changes if name not in known), None):
        raise ValueError(f"unknown argument {unknown!r}: expected one of {', '.join(known)}")
    return Schedule(**(known | changes))

"""The objectives by their short names, and single settings of one by name."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from bayesws.io.arguments import shown
from bayesws.training.objectives.by_evidence import ByEvidence
from bayesws.training.objectives.constrained import Constrained
from bayesws.training.objectives.fixed_ratio import FixedRatio
from bayesws.training.objectives.objective import Objective
from bayesws.training.objectives.task_loss import TaskLoss
from bayesws.training.objectives.validated import Validated
from bayesws.training.schedule import Schedule

KINDS: dict[str, type[Any]] = {kind.name: kind for kind in (ByEvidence, TaskLoss, FixedRatio, Validated, Constrained)}
OBJECTIVES = tuple(KINDS)


def objective_named(objective: str | Objective) -> Objective:
    """An objective by its short name, with its default settings, or as it is.

    Raises:
        ValueError: an unknown name, or a class in the place of a value.

    >>> objective_named("fixed")
    FixedRatio(...ratio=100.0)
    """
    if isinstance(objective, str) and objective in KINDS:
        return KINDS[objective]()
    if isinstance(objective, str | type) or not hasattr(objective, "begin"):
        raise ValueError(
            f"objective={shown(objective)}: expected one of {', '.join(OBJECTIVES)}, or a value such as "
            "objectives.TaskLoss(weight_decays=(0.0, 1e-3))"
        )
    return objective


def with_settings(schedule: Schedule, objective: Objective, settings: Mapping[str, Any]) -> tuple[Schedule, Objective]:
    """A schedule and an objective with single settings changed, each where it belongs.

    Raises:
        ValueError: a name that neither has; a value that its setting may not have.
    """
    of_schedule, of_objective = setting_names(schedule), setting_names(objective)
    if unknown := next((name for name in settings if name not in of_schedule | of_objective), None):
        others = [kind.__name__ for kind in KINDS.values() if unknown in setting_names(kind)]
        elsewhere = f"; it belongs to {', '.join(others)}" if others else ""
        raise ValueError(
            f"unknown argument {shown(unknown)}: expected one of {', '.join(sorted(of_schedule))} (Schedule) or "
            f"{', '.join(sorted(of_objective))} ({type(objective).__name__}){elsewhere}"
        )
    mine = {name: value for name, value in settings.items() if name in of_schedule}
    its = {name: _as_tuple(value) for name, value in settings.items() if name in of_objective}
    return replace(schedule, **mine), replace(objective, **its) if its else objective  # type: ignore[type-var]


def settings_for(objective: Objective, settings: Mapping[str, Any], others: Iterable[Objective]) -> dict[str, Any]:
    """Of settings meant for several objectives together, those that one of them or the schedule has.

    What none of `others` has either stays, for `with_settings` to refuse by name.
    """
    foreign = set().union(*(setting_names(other) for other in others)) - setting_names(objective)
    return {name: value for name, value in settings.items() if name not in foreign - setting_names(Schedule)}


def setting_names(of: Any) -> set[str]:
    """The names of a value's settings; none for an objective that is no dataclass."""
    return {field.name for field in fields(of)} if hasattr(of, "__dataclass_fields__") else set()


def _as_tuple(value: Any) -> Any:
    """A list as JSON has it as the tuple that a setting is."""
    return tuple(value) if isinstance(value, list) else value

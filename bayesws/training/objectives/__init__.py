"""What a network is trained by: values with the whole of their settings. A new one is one file; see `Objective`."""

from bayesws.training.objectives.by_evidence import ByEvidence
from bayesws.training.objectives.constrained import Constrained
from bayesws.training.objectives.fixed_ratio import FixedRatio
from bayesws.training.objectives.names import OBJECTIVES, objective_named
from bayesws.training.objectives.objective import HeldOut, LossTerm, Objective, Setting, Work
from bayesws.training.objectives.task_loss import Penalties, TaskLoss
from bayesws.training.objectives.validated import Validated

__all__ = [
    "OBJECTIVES",
    "ByEvidence",
    "Constrained",
    "FixedRatio",
    "HeldOut",
    "LossTerm",
    "Objective",
    "Penalties",
    "Setting",
    "TaskLoss",
    "Validated",
    "Work",
    "objective_named",
]

"""How a fit was made, and where it comes from: all that is needed to make it again."""

from dataclasses import dataclass, field
from typing import Any

from bayesws.evidence.curvature import Curvature
from bayesws.io.json_files import Seconds


@dataclass(frozen=True)
class Recipe:
    """How a fit was made.

    Attributes:
        objective: its name, such as "evidence".
        settings: the objective's, as JSON has them.
        chosen: what it chose on held-out data, such as "weight_decay" (per datum), "ratios" or "slack".
        schedule: the fields of its `Schedule`.
        curvature: that was asked for; the evidence that is reported knows its own.
        seed: of the order of the data, and of the held-out split.
    """

    objective: str
    settings: dict[str, Any]
    chosen: dict[str, Any]
    schedule: dict[str, Any]
    curvature: Curvature
    seed: int

    @property
    def weight_decay(self) -> float | None:
        """What was chosen for the task loss or a relative, per datum; None under the evidence."""
        return self.chosen.get("weight_decay")


@dataclass(frozen=True)
class Provenance:
    """Where a fit comes from.

    Attributes:
        versions: of this package, torch, numpy and Python.
        data: SHA-256 of the training data; None for a DataLoader, which draws its order where nobody else can.
        device: where it was trained.
        seconds: wall time of the fit.
        training_seconds: that of the epochs of the one training that was kept: without the choice of settings, other
            starts, and the evidence, judges and posterior at the end.
        more: what the caller knows, such as "command", "task" or "test" scores; JSON values.
    """

    versions: dict[str, str]
    data: str | None
    device: str
    seconds: Seconds
    training_seconds: Seconds
    more: dict[str, Any] = field(default_factory=dict)

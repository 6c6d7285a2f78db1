"""One fit and how it did: a row of a comparison or of a study."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bayesws.io.json_files import Fraction, Measured, Seconds, of_kind
from bayesws.training.result import FitResult
from bayesws.training.summaries import SharingRow
from bayesws.trials.comparable import MEANING
from bayesws.trials.doubt import doubts
from bayesws.trials.scores import Scores


@dataclass(frozen=True)
class Trial:
    """One fit and how it did on the test data.

    Attributes:
        task: what the data was made into, such as "turned".
        seed: of split, initial weights and order.
        pathways: "both", "shared" or "free": what the network of a comparison has; empty elsewhere.
        objective: the objective's name, such as "evidence".
        accuracy: test accuracy at the MAP weights in [0, 1]; nan for a regression.
        nll: mean test negative log likelihood at the MAP weights, nats per datum.
        train_nll: the same on the training data.
        log_evidence: nats, summed over the training data.
        sharing: a row per layer.
        weight_decay: chosen for the task loss or a relative; None for the evidence.
        seconds: wall time of the fit, the choice of its settings included.
        training_seconds: that of the one training that was kept, without its end.
        notes: what did not converge, and what is to be doubted (see `doubt`).
        calibration_error: expected, on the test data, in [0, 1]: see `Scores`.
        brier: on the test data, in [0, 2]: see `Scores`.
        elsewhere: scores on the test data of other tasks, by task.
        chosen: what else was chosen on held-out data, such as ratios or a slack.
        data: SHA-256 of the training data; None for a DataLoader, and in files of older versions.
        meaning: the `MEANING` that the numbers were computed by; None in files of older versions.
    """

    task: str
    seed: int
    pathways: str
    objective: str
    accuracy: Fraction
    nll: Measured
    train_nll: Measured
    log_evidence: Measured
    sharing: list[SharingRow]
    weight_decay: float | None
    seconds: Seconds
    training_seconds: Seconds
    notes: list[str]
    calibration_error: Fraction = math.nan
    brier: Measured = math.nan
    elsewhere: dict[str, Scores] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    meaning: int | None = None

    @property
    def gap(self) -> float:
        """Generalisation gap: test less training negative log likelihood, nats per datum."""
        return self.nll - self.train_nll

    @classmethod
    def of(
        cls,
        fit: FitResult,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        task: str,
        seed: int,
        pathways: str = "both",
        elsewhere: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> "Trial":
        """Test a fit on (x, y) tensors; `elsewhere` has those of other tasks."""
        scores = Scores.of(fit, *test)
        return cls(
            task,
            seed,
            pathways,
            fit.recipe.objective,
            scores.accuracy,
            scores.nll,
            fit.nll(*train, kind="map"),
            fit.log_evidence,
            fit.sharing,
            fit.recipe.weight_decay,
            fit.provenance.seconds,
            fit.provenance.training_seconds,
            [*fit.notes, *doubts(fit, fit.evidence, *test)],
            scores.calibration_error,
            scores.brier,
            {name: Scores.of(fit, *other) for name, other in (elsewhere or {}).items()},
            {name: value for name, value in fit.recipe.chosen.items() if name != "weight_decay"},
            fit.provenance.data,
            MEANING,
        )

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Trial":
        """From what `dataclasses.asdict` made of one, as JSON brings it back; keys that are no fields are left out.

        Raises:
            ValueError: a record of something else.
        """
        found = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        return of_kind(found, cls, "the record of a trial", "remove its file, and it is run again")

"""Trials of several objectives and structures, paired over seeds: their table and their file."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from rich.table import Table

from bayesws.files import write_whole
from bayesws.result import FitResult, SharingRow

STRUCTURES = {"chosen": ("shared", "free"), "shared": ("shared",), "free": ("free",)}


@dataclass(frozen=True)
class Trial:
    """One fit and how it did on the test data.

    Attributes:
        task: what the data was made into, such as "turned".
        seed: of split, initial weights and order.
        structure: "chosen" (both pathways), "shared" or "free".
        objective: "evidence" or "task".
        accuracy: test accuracy at the MAP weights in [0, 1]; nan for a regression.
        nll: mean test negative log likelihood at the MAP weights, nats per datum.
        train_nll: the same on the training data.
        log_evidence: nats, summed over the training data.
        sharing: a row per weight-sharing layer.
        weight_decay: chosen for the task loss; None for the evidence.
        seconds: wall time of the fit, the choice of weight decay included.
        training_seconds: that of its last training alone.
        notes: what did not converge.
    """

    task: str
    seed: int
    structure: str
    objective: str
    accuracy: float
    nll: float
    train_nll: float
    log_evidence: float
    sharing: list[SharingRow]
    weight_decay: float | None
    seconds: float
    training_seconds: float
    notes: list[str]

    @classmethod
    def of(cls, fit: FitResult, train: tuple, test: tuple, task: str, seed: int, structure: str = "chosen") -> "Trial":
        """Test a fit on (x, y) tensors."""
        x, y = test
        hits = math.nan
        if fit.likelihood.name == "classification":
            hits = float((fit.predict(x, kind="map").argmax(-1).cpu() == y.cpu()).double().mean())
        return cls(
            task,
            seed,
            structure,
            fit.objective,
            hits,
            fit.nll(x, y, kind="map"),
            fit.nll(train[0], train[1], kind="map"),
            fit.log_evidence,
            fit.sharing,
            fit.weight_decay,
            fit.seconds,
            fit.training_seconds,
            fit.notes,
        )


@dataclass(frozen=True)
class Summary:
    """Mean and standard error over seeds (nan for a single one)."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: list[float]) -> "Summary":
        """Of one value a seed."""
        error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(mean(values), error)

    def show(self, digits: int, scale: float = 1.0) -> str:
        """`mean ± error`, or the mean alone."""
        text = f"{self.mean * scale:.{digits}f}"
        return text if math.isnan(self.error) else f"{text} ± {self.error * scale:.{digits}f}"


@dataclass(frozen=True)
class Comparison:
    """Trials, and what was the same for all of them.

    Attributes:
        trials: in the order they are shown.
        settings: data set, epochs, versions, command: whatever is needed to run them again.
    """

    trials: list[Trial]
    settings: dict[str, Any] = field(default_factory=dict)

    def cells(self) -> dict[tuple[str, str, str], list[Trial]]:
        """Trials by (task, structure, objective), each with one trial a seed."""
        found: dict[tuple[str, str, str], list[Trial]] = {}
        for trial in self.trials:
            found.setdefault((trial.task, trial.structure, trial.objective), []).append(trial)
        return found

    def table(self) -> Table:
        """Test accuracy, test NLL and evidence of every cell, mean ± standard error over seeds."""
        table = Table(title="How well: mean ± standard error over seeds", title_justify="left")
        for name in ("task", "structure", "objective"):
            table.add_column(name)
        for name in ("accuracy %", "test NLL", "train NLL", "log evidence", "seconds"):
            table.add_column(name, justify="right", no_wrap=True)
        for (task, structure, objective), trials in self.cells().items():
            columns: list[tuple[Callable[[Trial], float], int, float]] = [
                (lambda t: t.accuracy, 1, 100.0),
                (lambda t: t.nll, 3, 1.0),
                (lambda t: t.train_nll, 3, 1.0),
                (lambda t: t.log_evidence, 0, 1.0),
                (lambda t: t.seconds, 0, 1.0),
            ]
            shown = [Summary.of([get(t) for t in trials]).show(n, scale) for get, n, scale in columns]
            table.add_row(task, structure, objective, *shown)
        return table

    def sharing_table(self) -> Table:
        """Sharing strength and effective parameters of every layer of the networks with both pathways."""
        table = Table(title="How much is shared, layer by layer: mean over seeds", title_justify="left")
        for name in ("task", "objective", "layer"):
            table.add_column(name)
        for name in ("ρ", "ρ by seed", "γ shared", "γ free", "of free"):
            table.add_column(name, justify="right", no_wrap=True)
        for (task, structure, objective), trials in self.cells().items():
            if structure != "chosen":
                continue
            for index, first in enumerate(trials[0].sharing):
                rows = [t.sharing[index] for t in trials]
                strengths = [r.strength for r in rows]
                table.add_row(
                    task,
                    objective,
                    first.name,
                    f"{mean(strengths):.2f}",
                    " ".join(f"{s:.2f}" for s in strengths),
                    *(f"{mean(r.effective.get(p, 0.0) for r in rows):.1f}" for p in ("shared", "free")),
                    str(first.parameters.get("free", 0)),
                )
        return table

    def cost(self) -> float:
        """How many times as long training by the evidence took as by the task loss, the same number of epochs.

        The median over pairs of equal task, structure and seed, of the last training alone (the task loss's choice of
        a weight decay is left out); nan where there is no pair.
        """
        seconds = {(t.task, t.structure, t.seed, t.objective): t.training_seconds for t in self.trials}
        ratios = [
            value / seconds[task, structure, seed, "task"]
            for (task, structure, seed, objective), value in seconds.items()
            if objective == "evidence" and (task, structure, seed, "task") in seconds
        ]
        return median(ratios) if ratios else math.nan

    def save(self, path: str | Path) -> None:
        """Write everything as JSON, whole or not at all."""
        record = {"settings": self.settings, "trials": [asdict(t) for t in self.trials]}
        text = json.dumps(record, indent=1)
        write_whole(Path(path), lambda draft: draft.write_text(text))

    @classmethod
    def load(cls, path: str | Path) -> "Comparison":
        """Read what `save` wrote.

        Raises:
            ValueError: a file that is missing or is not a comparison.
        """
        try:
            record = json.loads(Path(path).read_text())
            trials = [Trial(**(t | {"sharing": [SharingRow(**row) for row in t["sharing"]]})) for t in record["trials"]]
            return cls(trials, record["settings"])
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from error
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a comparison written by bayesws") from error

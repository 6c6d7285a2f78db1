"""Trials of several objectives and pathways, paired over seeds: their table and their file."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bayesws.io.files import without_nan, write_whole
from bayesws.io.json_files import read_json, sealed
from bayesws.trials.by_layer import in_use, mean_strength, of_strength, rows_by_layer
from bayesws.trials.comparable import check_same_data, check_same_meaning, doubt
from bayesws.trials.records import Trial
from bayesws.trials.statistics import Difference
from bayesws.trials.summary import trials_in

PATHWAYS = {"both": ("shared", "free"), "shared": ("shared",), "free": ("free",)}


@dataclass(frozen=True)
class Metric:
    """A number of a trial, as tables show it: the value times `scale`, with so many digits."""

    name: str
    of: Callable[[Trial], float]
    digits: int
    scale: float = 1.0
    higher_is_better: bool = False


METRICS = (
    Metric("accuracy %", lambda t: t.accuracy, 1, 100.0, higher_is_better=True),
    Metric("NLL", lambda t: t.nll, 3),
    Metric("gap", lambda t: t.gap, 3),
    Metric("ECE %", lambda t: t.calibration_error, 1, 100.0),
    Metric("Brier", lambda t: t.brier, 3),
    Metric("log evidence", lambda t: t.log_evidence, 0, higher_is_better=True),
    Metric("seconds", lambda t: t.seconds, 0),
)
PAIRED_METRICS = tuple(m for m in METRICS if m.name != "log evidence")  # whose precisions objectives set by other rules
TESTED_METRICS = tuple(m for m in PAIRED_METRICS if m.name not in ("gap", "seconds"))


@dataclass(frozen=True)
class Summary:
    """Mean and standard error over seeds (nan for a single one)."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: list[float]) -> "Summary":
        """Of one value a seed; nan where one of them is.

        >>> Summary.of([1.0, 2.0, 3.0]).show(2)  # 2 ± 1 / √3
        '2.00 ± 0.58'
        """
        if any(math.isnan(value) for value in values):  # statistics.stdev fails on it
            return cls(math.nan, math.nan)
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

    def __post_init__(self) -> None:
        """Refuse trials that cannot be held against each other.

        Raises:
            ValueError: numbers of different meanings; trials of one task and seed that were trained on different data.
        """
        named = [(f"trial {t.task}-{t.pathways}-{t.objective}-{t.seed}", t) for t in self.trials]
        check_same_meaning(named)
        paired: dict[tuple[str, int], list[tuple[str, Trial]]] = {}
        for name, trial in named:
            paired.setdefault((trial.task, trial.seed), []).append((name, trial))
        for trials in paired.values():
            check_same_data(trials)

    @property
    def doubt(self) -> str | None:
        """One line where nobody can tell whether its trials saw the same data; None where that is known."""
        return doubt(self.trials)

    def cells(self) -> dict[tuple[str, str, str], list[Trial]]:
        """Trials by (task, pathways, objective), each with one trial a seed."""
        found: dict[tuple[str, str, str], list[Trial]] = {}
        for trial in self.trials:
            found.setdefault((trial.task, trial.pathways, trial.objective), []).append(trial)
        return found

    def table(self) -> Table:
        """How every cell did on test data, mean ± standard error over seeds; NLL in nats per datum."""
        table = Table(title="How well: mean ± standard error over seeds", title_justify="left", box=SIMPLE_HEAD)
        return self._of_metrics(table, ("accuracy %", "NLL", "log evidence", "seconds"))

    def calibration_table(self) -> Table:
        """How far every cell's probabilities can be believed on test data, mean ± standard error over seeds.

        ECE: expected calibration error; gap: the NLL above that of the training data, nats per datum.
        """
        table = Table(title="How calibrated: mean ± standard error over seeds", title_justify="left", box=SIMPLE_HEAD)
        return self._of_metrics(table, ("ECE %", "Brier", "gap"))

    def _of_metrics(self, table: Table, names: tuple[str, ...]) -> Table:
        for name in self._labels(("task", "pathways", "objective")):
            table.add_column(name, no_wrap=True)
        metrics = [metric for metric in METRICS if metric.name in names]
        for metric in metrics:
            table.add_column(metric.name, justify="right")
        for labels, trials in self.cells().items():
            shown = [Summary.of([m.of(t) for t in trials]).show(m.digits, m.scale) for m in metrics]
            table.add_row(*self._labels(labels), *shown)
        return table

    def differences(self, first: str = "evidence") -> dict[tuple[str, str, str], dict[str, Difference]]:
        """One objective less every other, paired over the seeds that both have: by (task, pathways, other), by metric.

        The log evidence is not among them: two objectives set the precisions by different rules, and what evidences at
        such precisions differ by is no Bayes factor.

        Args:
            first: the objective that is held against the others.

        Raises:
            ValueError: an objective that no trial has.
        """
        if first not in (known := dict.fromkeys(t.objective for t in self.trials)):
            raise ValueError(f"no trial by {first!r}: expected one of {', '.join(known)}")
        cells = self.cells()
        found = {}
        for (task, pathways, other), trials in cells.items():
            mine = {t.seed: t for t in cells.get((task, pathways, first), [])}
            pairs = [(mine[t.seed], t) for t in trials if t.seed in mine]
            if other == first or not pairs:
                continue
            found[task, pathways, other] = {
                m.name: Difference.of([m.of(a) for a, _ in pairs], [m.of(b) for _, b in pairs], m.higher_is_better)
                for m in PAIRED_METRICS
            }
        return found

    def difference_table(self, first: str = "evidence") -> Table:
        """`differences`: the mean with its 95 % interval, the paired t-test's p-value and the seeds won.

        A plus is more of it: good for the accuracy, bad for the others. No p-value is corrected for their number.
        """
        table = Table(
            title=f"{first} less the others, by seed: mean, 95 % interval; p, seeds won",
            title_justify="left",
            box=SIMPLE_HEAD,
        )
        for name in self._labels(("task", "pathways", "against")):
            table.add_column(name, no_wrap=True)
        for metric in TESTED_METRICS:
            table.add_column(metric.name, justify="right")
        for labels, by_metric in self.differences(first).items():
            shown = []
            for metric in TESTED_METRICS:
                found = by_metric[metric.name]
                won = f"{found.wins}/{found.pairs}"
                p = "" if math.isnan(found.p_value) else f"p = {found.p_value:.2g}, "
                shown.append(f"{found.show(metric.digits, metric.scale)}\n{p}{won}")
            table.add_row(*self._labels(labels), *shown)
        return table

    def elsewhere_table(self) -> Table:
        """Every cell on the test data of other tasks, mean ± standard error over seeds."""
        table = Table(title="Trained on one task, tested on another", title_justify="left", box=SIMPLE_HEAD)
        for name in (*self._labels(("trained on", "pathways", "objective")), "tested on"):
            table.add_column(name, no_wrap=True)
        for name in ("accuracy %", "NLL", "ECE %"):
            table.add_column(name, justify="right", no_wrap=True)
        for labels, trials in self.cells().items():
            for other in trials[0].elsewhere:
                scores = [t.elsewhere[other] for t in trials]
                table.add_row(
                    *self._labels(labels),
                    other,
                    Summary.of([s.accuracy for s in scores]).show(1, 100.0),
                    Summary.of([s.nll for s in scores]).show(3),
                    Summary.of([s.calibration_error for s in scores]).show(1, 100.0),
                )
        return table

    def _labels(self, labels: tuple[str, str, str]) -> tuple[str, ...]:
        """Task, pathways and objective; without the pathways where all trials have the same."""
        return labels if len({t.pathways for t in self.trials}) > 1 else (labels[0], labels[2])

    def sharing_table(self) -> Table:
        """Sharing strength and effective parameters of every layer of the networks whose sharing is not set by hand."""
        table = Table(title="How much is shared, by layer: mean over seeds", title_justify="left", box=SIMPLE_HEAD)
        for name in ("task", "objective", "layer"):
            table.add_column(name, no_wrap=True)
        for name in ("ρ", "ρ by seed", "γ"):
            table.add_column(name, justify="right")
        for (task, pathways, objective), trials in self.cells().items():
            if pathways != "both":
                continue
            for name, rows in rows_by_layer(trials).items():
                strengths = " ".join(of_strength(row.strength) for row in rows)
                table.add_row(task, objective, name, of_strength(mean_strength(rows)), strengths, in_use(rows))
        return table

    def cost(self) -> float:
        """How many times as long training by the evidence took as by the task loss, the same number of epochs.

        The median over pairs of equal task, pathways and seed, of one training each, the one that was kept: the task
        loss's choice of a weight decay is left out, and of both the evidence at the end. nan where there is no pair.
        """
        seconds = {(t.task, t.pathways, t.seed, t.objective): t.training_seconds for t in self.trials}
        ratios = [
            value / seconds[task, pathways, seed, "task"]
            for (task, pathways, seed, objective), value in seconds.items()
            if objective == "evidence" and (task, pathways, seed, "task") in seconds
        ]
        return median(ratios) if ratios else math.nan

    def as_json(self) -> str:
        """Settings, trials and, where there is the evidence to hold against the others, the paired differences."""
        record: dict[str, Any] = {"settings": self.settings, "trials": [asdict(t) for t in self.trials]}
        if any(t.objective == "evidence" for t in self.trials):
            record["differences"] = [
                {"task": task, "pathways": pathways, "first": "evidence", "second": other}
                | {name: asdict(difference) for name, difference in by_metric.items()}
                for (task, pathways, other), by_metric in self.differences().items()
            ]
        return json.dumps(sealed(without_nan(record)), indent=1, allow_nan=False)

    def save(self, path: str | Path) -> None:
        """Write everything as JSON, whole or not at all."""
        text = self.as_json()
        write_whole(Path(path), lambda draft: draft.write_text(text))

    @classmethod
    def load(cls, path: str | Path) -> "Comparison":
        """Read what `save` wrote, or its summary.

        Raises:
            ValueError: a file that is missing or is not a comparison, or whose trials cannot be compared.
        """
        record = read_json(path, ComparisonFile, "run bayesws compare again")
        if record.cells is None:
            return cls(record.trials, record.settings)
        return cls([Trial.from_record(trial) for trial in trials_in({"cells": record.cells})], record.settings)


@dataclass(frozen=True)
class ComparisonFile:
    """What comparison.json holds, or its summary, which has cells in place of trials."""

    settings: dict[str, Any]
    trials: list[Trial] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)
    cells: list[dict[str, Any]] | None = None
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)

"""A study: a table of methods on the same data, trial by trial; what is finished is kept, and never run twice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from bayesws.evidence.curvature import Curvature
from bayesws.trials import engine
from bayesws.trials.comparable import Origin, check_same_data
from bayesws.trials.plan import read_plan
from bayesws.trials.spec import TrialSpec

RECORD_FIELDS = {"accuracy", "nll", "log_evidence", "seconds", "stack_parameters", "groups"}
LONGEST_NAME = 200  # bytes of a trial's name: with what a draft adds it must fit into a file's, 255


@dataclass(frozen=True)
class Study:
    """What is to be run.

    Attributes:
        cells: all trials, in the order of the table.
    """

    cells: list[TrialSpec] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, device: str = "cpu", seeds: int | None = None) -> "Study":
        """A study from its JSON file: every method on every task, number of training images and seed.

            {"data": {"name": "mnist", "side": 14},                         arguments of data.load, "$VARIABLE" in a
                                                                            name is filled in; "fresh": true draws the
                                                                            task's motions anew in every epoch
             "tasks": ["turned"], "train_sizes": [300, 1000], "seeds": 3,
             "epochs": {"300": 200, "1000": 60},                            by train size, or one number
             "methods": {"evidence": {"model": "WSCNN", "network": {...}, "fit": {...}, "curvature": {...}}}}

        A method may have "seeds" and "train_sizes" of its own; "seed" of the study is the first of the seeds, else 0.
        "judge" of the study has the fields of a Curvature, by which the evidences of all methods are computed at the
        end; without it every network's is as exact as it affords, and what two afford may differ.

        Args:
            path: the file.
            device: where to train.
            seeds: how many, instead of those of the file.

        Raises:
            ValueError: a file that cannot be read, anything in it that no trial could be run with, and names of methods
                that make one file of two trials.
        """
        plan = read_plan(path)
        judge = Curvature(**plan["judge"]) if plan.get("judge") is not None else None
        cells, first = [], plan.get("seed", 0)
        for task in plan["tasks"]:
            for size in plan["train_sizes"]:
                for name, method in plan["methods"].items():
                    if size not in method.get("train_sizes", [size]):
                        continue
                    settings = dict(method.get("fit", {}))
                    objective = settings.pop("objective", "evidence")
                    if "epochs" not in settings:
                        epochs = plan["epochs"]
                        settings = {"epochs": epochs[str(size)] if isinstance(epochs, dict) else epochs} | settings
                    cells += [
                        TrialSpec(
                            task,
                            plan["data"] | {"train_size": size},
                            seed,
                            method["model"],
                            method.get("network", {}),
                            objective,
                            settings,
                            Curvature(**method["curvature"]) if method.get("curvature") is not None else None,
                            judge,
                            {"train_size": size, "method": name},
                            device=device,
                        )
                        for seed in range(first, first + (seeds or method.get("seeds", plan["seeds"])))
                    ]
        _check_files(cells, path)
        return cls(cells)

    def run(
        self,
        folder: Path,
        processes: int,
        advance: Callable[[str], object] = lambda name: None,
        begin: Callable[[list[TrialSpec]], object] = lambda left: None,
    ) -> list[dict[str, Any]]:
        """Run what `folder` does not hold yet, longest first, and return all records in the order of the cells.

        Every finished trial is a file of its own, so an interrupted study goes on where it stopped.

        Raises:
            ValueError: a trial in the folder that is damaged or was run with other settings, data that cannot be
                loaded, or was another when trials in the folder were run, and what `TrialSpec.run` raises.
        """

        def before(left: list[TrialSpec]) -> None:
            _check_data(left)
            begin(left)

        records = engine.run(self.cells, folder, processes, RECORD_FIELDS, advance, attrgetter("cost"), before)
        paired: dict[tuple[Any, ...], list[tuple[str, Origin]]] = {}
        for cell, record in zip(self.cells, records, strict=True):
            origin = Origin(record.get("data"), record.get("meaning"))
            place = (cell.task, cell.labels["train_size"], cell.seed)
            paired.setdefault(place, []).append((f"trial {cell.name}", origin))
        for trials in paired.values():
            check_same_data(trials)
        return records


def _check_files(cells: Sequence[TrialSpec], path: Path) -> None:
    """Raise ValueError where two trials would be one file, or one has no name that a file may have."""
    seen: dict[str, TrialSpec] = {}
    for cell in cells:
        method, other = str(cell.labels["method"]), seen.setdefault(cell.name, cell)
        if other is not cell:
            raise ValueError(
                f"study {path}: methods {other.labels['method']!r} and {method!r} would both be kept in "
                f"{cell.name}.json: rename one"
            )
        if len(cell.name.encode()) > LONGEST_NAME:
            raise ValueError(
                f"study {path}: method {method!r}: a name of {len(method)} characters is too long for a file's: "
                "shorten it"
            )


def _check_data(cells: Sequence[TrialSpec]) -> None:
    """Raise ValueError, before any training, where the data of some task cannot be loaded."""
    for cell in {cell.task: cell for cell in sorted(cells, key=lambda cell: cell.labels["train_size"])}.values():
        try:
            cell.images()
        except ValueError as error:
            raise ValueError(f"trial {cell.name}: {error}") from error

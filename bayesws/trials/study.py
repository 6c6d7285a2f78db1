"""A study: a table of methods on the same data, trial by trial; what is finished is kept, and never run twice."""

import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bayesws import data as data_sets
from bayesws.evidence.curvature import Curvature
from bayesws.layers.contract import named_pathways, structure
from bayesws.layers.identify import identify_groups
from bayesws.layers.weight_sharing import WeightSharing
from bayesws.models import known_models
from bayesws.training.fit import fit
from bayesws.trials.compare import SAMPLED
from bayesws.trials.plan import network_arguments, read_plan
from bayesws.trials.records import Trial
from bayesws.trials.store import run_kept

OF_RECORD = {"settings", "accuracy", "nll", "log_evidence", "seconds", "stack_parameters", "groups"}
LONGEST = 200  # bytes of a trial's name: with what a draft adds it must fit into a file's, 255


@dataclass(frozen=True)
class Cell:
    """One trial to be run: a method on one draw of the data.

    Attributes:
        task, train_size, seed: which data; the seed is of the draw, of the initial weights and of the order, too.
        method: its name in the study.
        data: further arguments of `data.load`.
        model, network: which of `models`, and its arguments but channels and classes.
        fit: arguments of `fit`, curvature: of `Curvature`; None is one sampled Kronecker column.
    """

    task: str
    train_size: int
    method: str
    seed: int
    data: dict[str, Any]
    model: str
    network: dict[str, Any]
    fit: dict[str, Any]
    curvature: dict[str, Any] | None = None
    device: str = "cpu"

    @property
    def name(self) -> str:
        """The trial's file, without its ending."""
        return f"{self.task}-{self.train_size}-{self.method}-{self.seed}".replace(":", "_")

    @property
    def settings(self) -> dict[str, Any]:
        """All but the device, as it comes back from JSON."""
        return json.loads(json.dumps({k: v for k, v in asdict(self).items() if k != "device"}))

    def run(self) -> dict[str, Any]:
        """Load the data, build the network, fit, test: a record for the trial's file.

        Raises:
            ValueError, FloatingPointError: what went wrong, and in which trial.
        """
        try:
            return self._run()
        except FloatingPointError as error:
            raise FloatingPointError(f"trial {self.name}: {error}") from error
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"trial {self.name}: {error}") from error

    def images(self, **changes: Any) -> data_sets.ImageData:
        """The trial's images, or with other arguments of `data.load`."""
        given = {k: v for k, v in self.data.items() if k != "fresh"}
        given |= {"name": os.path.expandvars(given["name"]), "task": self.task, "seed": self.seed}
        return data_sets.load(**given | {"train_size": self.train_size} | changes)

    def _run(self) -> dict[str, Any]:
        images = self.images()
        train: Any = images.train
        settings = dict(self.fit)
        if self.data.get("fresh", False):
            train = data_sets.moving(self.images(task="upright"), self.task, settings.get("batch_size", 100), self.seed)
        torch.manual_seed(self.seed)
        channels, classes = images.image_shape[0], images.num_classes
        net = known_models()[self.model](in_channels=channels, num_classes=classes, **network_arguments(self.network))
        curvature = SAMPLED if self.curvature is None else Curvature(**self.curvature)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the fit's notes are kept
            result = fit(
                net,
                train,
                curvature=curvature,
                seed=self.seed,
                device=self.device,
                progress=False,
                keep_posterior=False,
                **settings,
            )
        trial = asdict(Trial.of(result, images.train, images.test, self.task, self.seed, self.method))
        sharing = [m for m in result.model.modules() if isinstance(m, WeightSharing) and m.shared is not None]
        may_be_groups = bool(sharing) and all(m.stack.constraint == "doubly" for m in sharing)
        groups = identify_groups(result) if may_be_groups else {}
        return trial | {
            "settings": self.settings,
            "parameters": sum(p.numel for _, p in named_pathways(result.model) if not p.of_prior_only),
            "stack_parameters": sum(p.numel() for p in structure(result.model)),
            "start": [asdict(row) for row in result.start],
            "groups": {
                name: {"name": g.name, "reason": g.reason, "closure_error": g.closure_error, "entropy": g.entropy}
                for name, g in groups.items()
            },
            "history": result.history,
        }


@dataclass(frozen=True)
class Study:
    """What is to be run.

    Attributes:
        cells: all trials, in the order of the table.
    """

    cells: list[Cell] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, device: str = "cpu", seeds: int | None = None) -> "Study":
        """A study from its JSON file: every method on every task, number of training images and seed.

            {"data": {"name": "mnist", "side": 14},                         arguments of data.load, "$VARIABLE" in a
                                                                            name is filled in; "fresh": true draws the
                                                                            task's motions anew in every epoch
             "tasks": ["turned"], "train_sizes": [300, 1000], "seeds": 3,
             "epochs": {"300": 200, "1000": 60},                            by train size, or one number
             "methods": {"evidence": {"model": "WSCNN", "network": {...}, "fit": {...}, "curvature": {...}}}}

        A method may have "seeds" and "train_sizes" of its own.

        Args:
            path: the file.
            device: where to train.
            seeds: how many, instead of those of the file.

        Raises:
            ValueError: a file that cannot be read, anything in it that no trial could be run with, and names of methods
                that make one file of two trials.
        """
        plan = read_plan(path)
        cells = []
        for task in plan["tasks"]:
            for size in plan["train_sizes"]:
                for name, method in plan["methods"].items():
                    if size not in method.get("train_sizes", [size]):
                        continue
                    settings = dict(method.get("fit", {}))
                    if "epochs" not in settings:
                        epochs = plan["epochs"]
                        settings = {"epochs": epochs[str(size)] if isinstance(epochs, dict) else epochs} | settings
                    cells += [
                        Cell(
                            task,
                            size,
                            name,
                            seed,
                            plan["data"],
                            method["model"],
                            method.get("network", {}),
                            settings,
                            method.get("curvature"),
                            device,
                        )
                        for seed in range(seeds or method.get("seeds", plan["seeds"]))
                    ]
        _check_files(cells, path)
        return cls(cells)

    def run(
        self, folder: Path, processes: int, advance: Callable[[str], object] = lambda name: None
    ) -> list[dict[str, Any]]:
        """Run what `folder` does not hold yet, longest first, and return all records in the order of the cells.

        Every finished trial is a file of its own, so an interrupted study goes on where it stopped.

        Raises:
            ValueError: a trial in the folder that is damaged or was run with other settings, data that cannot be
                loaded, and what `Cell.run` raises.
        """
        return run_kept(self.cells, folder, processes, OF_RECORD, advance, _cost, _check_data)


def _check_files(cells: Sequence[Cell], path: Path) -> None:
    """Raise ValueError where two trials would be one file, or one has no name that a file may have."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(cell.name, cell)
        if other is not cell:
            raise ValueError(
                f"study {path}: methods {other.method!r} and {cell.method!r} would both be kept in {cell.name}.json: "
                "rename one"
            )
        if len(cell.name.encode()) > LONGEST:
            raise ValueError(
                f"study {path}: method {cell.method!r}: a name of {len(cell.method)} characters is too long for a "
                "file's: shorten it"
            )


def _check_data(cells: Sequence[Cell]) -> None:
    """Raise ValueError, before any training, where the data of some task cannot be loaded."""
    for cell in {cell.task: cell for cell in sorted(cells, key=lambda cell: cell.train_size)}.values():
        try:
            cell.images()
        except ValueError as error:
            raise ValueError(f"trial {cell.name}: {error}") from error


def _cost(cell: Cell) -> float:
    """Roughly how long a trial takes: images seen, the choice of a weight decay included."""
    trainings = 1 + len(cell.fit.get("weight_decays", range(6))) * (cell.fit.get("objective") == "task")
    return cell.train_size * cell.fit["epochs"] * trainings * math.sqrt(1 + ("start" in cell.fit))

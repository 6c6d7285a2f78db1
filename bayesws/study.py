"""A study: a table of methods on the same data, trial by trial; what is finished is kept, and never run twice."""

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bayesws import data as data_sets
from bayesws.analysis.comparison import Trial
from bayesws.analysis.groups import identify_groups
from bayesws.compare import SAMPLED, in_processes
from bayesws.evidence.curvature import Curvature
from bayesws.files import write_whole
from bayesws.fit import fit
from bayesws.layers.base import named_pathways, structure
from bayesws.layers.weight_sharing import WeightSharing
from bayesws.models import known_models

FIELDS = {"data", "tasks", "train_sizes", "seeds", "epochs", "methods"}
METHOD_FIELDS = {"model", "network", "fit", "curvature", "seeds", "train_sizes"}


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
        """Load the data, build the network, fit, test: a record for the trial's file."""
        arguments = dict(self.data)
        fresh = arguments.pop("fresh", False)
        arguments["name"] = os.path.expandvars(arguments["name"])
        images = data_sets.load(**arguments, task=self.task, seed=self.seed, train_size=self.train_size)
        train: Any = images.train
        settings = dict(self.fit)
        if fresh:
            upright = data_sets.load(**arguments, seed=self.seed, train_size=self.train_size)
            train = data_sets.moving(upright, self.task, settings.get("batch_size", 100), self.seed)
        torch.manual_seed(self.seed)
        channels, classes = images.image_shape[0], images.num_classes
        net = known_models()[self.model](in_channels=channels, num_classes=classes, **_network(self.network))
        curvature = SAMPLED if self.curvature is None else Curvature(**self.curvature)
        if "weight_decays" in settings:
            settings["weight_decays"] = tuple(settings["weight_decays"])
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


def _network(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}


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
            ValueError: a file that cannot be read, unknown or missing fields, an unknown model.
        """
        try:
            plan = json.loads(path.read_text())
        except OSError as error:
            raise ValueError(f"study {path} cannot be read: {error.strerror}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"study {path} is not JSON: {error}") from error
        _check_fields(plan, FIELDS, f"study {path}")
        cells = []
        for task in plan["tasks"]:
            for size in plan["train_sizes"]:
                epochs = plan["epochs"] if isinstance(plan["epochs"], int) else plan["epochs"].get(str(size))
                if epochs is None:
                    raise ValueError(f"study {path}: no epochs for {size} training images")
                for name, method in plan["methods"].items():
                    _check_fields(method, METHOD_FIELDS, f"study {path}, method {name!r}", required={"model"})
                    if method["model"] not in known_models():
                        known = ", ".join(known_models())
                        raise ValueError(f"method {name!r}: model {method['model']!r}: expected one of {known}")
                    if size not in method.get("train_sizes", [size]):
                        continue
                    settings = {"epochs": epochs} | method.get("fit", {})
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
        return cls(cells)

    def run(self, folder: Path, processes: int, advance: Callable[[], object] = lambda: None) -> list[dict[str, Any]]:
        """Run what `folder` does not hold yet, longest first, and return all records in the order of the cells.

        Every finished trial is a file of its own, so an interrupted study goes on where it stopped.

        Raises:
            ValueError: a trial in the folder that was run with other settings.
        """
        found = {cell.name: record for cell in self.cells if (record := _kept(folder, cell)) is not None}
        for _ in found:
            advance()
        left = sorted((c for c in self.cells if c.name not in found), key=_cost, reverse=True)
        for index, record in in_processes(left, processes):
            name = left[index].name
            write_whole(folder / "trials" / f"{name}.json", partial(_write, json.dumps(record) + "\n"))
            found[name] = record
            advance()
        return [found[cell.name] for cell in self.cells]


def rows(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, int, str, list[dict[str, Any]]]]:
    """Records by task, number of training images and method: (task, size, method, one record a seed)."""
    cells: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for record in records:
        settings = record["settings"]
        cells.setdefault((settings["task"], settings["train_size"], settings["method"]), []).append(record)
    for (task, size, method), found in cells.items():
        yield task, size, method, found


def _kept(folder: Path, cell: Cell) -> dict[str, Any] | None:
    path = folder / "trials" / f"{cell.name}.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    if record["settings"] != cell.settings:
        raise ValueError(f"{path} was run with other settings: choose another --out, or remove it")
    return record


def _write(text: str, path: Path) -> None:
    path.write_text(text)


def _cost(cell: Cell) -> float:
    """Roughly how long a trial takes: images seen, the choice of a weight decay included."""
    trainings = 1 + len(cell.fit.get("weight_decays", range(6))) * (cell.fit.get("objective") == "task")
    return cell.train_size * cell.fit["epochs"] * trainings * math.sqrt(1 + ("start" in cell.fit))


def _check_fields(given: Any, known: set[str], what: str, required: set[str] | None = None) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{what}: expected an object with {', '.join(sorted(known))}")
    if unknown := sorted(set(given) - known):
        raise ValueError(f"{what}: unknown {', '.join(unknown)}; expected {', '.join(sorted(known))}")
    if missing := sorted((known if required is None else required) - set(given)):
        raise ValueError(f"{what}: {', '.join(missing)} missing")

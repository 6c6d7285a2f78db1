"""A trial as a value: what to train, on what, how it is scored. It runs itself, in any process, to the same numbers."""

import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayesws import data as data_sets
from bayesws.evidence.batches import digest_of
from bayesws.evidence.curvature import Curvature
from bayesws.io.provenance import versions
from bayesws.layers.contract import named_pathways, structure
from bayesws.layers.identify import identify_groups
from bayesws.layers.weight_sharing import WeightSharing
from bayesws.models import known_models
from bayesws.training.fit import fit
from bayesws.training.result import FitResult
from bayesws.training.schedule import Schedule
from bayesws.trials.comparable import MEANING
from bayesws.trials.judged import judged
from bayesws.trials.records import Trial

WEIGHT_DECAYS = 6  # that the task loss chooses from
TRAININGS = {"evidence": 1, "validated": 22, "constrained": 9}  # of an objective, roughly; 7 of the others
IDLE_FIELDS = ("device", "fits", "labels")  # no number depends on these


@dataclass(frozen=True)
class TrialSpec:
    """One network on one draw of the data, as JSON can say it.

    Attributes:
        task: what the data is made into.
        data: further arguments of `bayesws.data.load`, but the seed; an environment variable in the name is filled in.
            With "fresh" the task's motions are drawn anew in every epoch.
        seed: of the draw of the data, of the initial weights and of the order.
        model, network: which of `bayesws.models`, and its arguments but channels and classes.
        objective: its short name.
        fit: further arguments of `bayesws.fit`: fields of the schedule, settings of the objective.
        curvature: as for `fit`.
        judge: the curvature that the evidence is by, at the weights and precisions that the fit ends with; None is the
            fit's own, which networks of other sizes afford another of.
        labels: what tables call it, by column. Task, labels and seed name its file.
        elsewhere: other tasks with the same labels, to test on.
        device: where to train.
        fits: the folder in which the fit is kept, with its posterior; None keeps none.
    """

    task: str
    data: dict[str, Any]
    seed: int = 0
    model: str = "WSCNN"
    network: dict[str, Any] = field(default_factory=dict)
    objective: str = "evidence"
    fit: dict[str, Any] = field(default_factory=dict)
    curvature: Curvature | None = None
    judge: Curvature | None = None
    labels: dict[str, str | int] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()
    device: str = "cpu"
    fits: str | None = None

    @property
    def name(self) -> str:
        """The trial's file, without its ending."""
        return "-".join(map(str, (self.task, *self.labels.values(), self.seed))).replace(":", "_")

    @property
    def settings(self) -> dict[str, Any]:
        """All that the numbers depend on, the labels and what the numbers mean, as it comes back from JSON."""
        given = {name: value for name, value in asdict(self).items() if name not in IDLE_FIELDS}
        settings: dict[str, Any] = json.loads(json.dumps(given | self.labels | {"meaning": MEANING}))
        return settings

    @property
    def cost(self) -> float:
        """Roughly how long it takes: images seen, the choice of an objective's settings and all starts included."""
        trainings = TRAININGS.get(self.objective, 1 + WEIGHT_DECAYS)
        if self.objective != "evidence":
            trainings += len(self.fit.get("weight_decays", WEIGHT_DECAYS * [0])) - WEIGHT_DECAYS
            trainings += len(self.fit.get("learning_rates", []))
        trainings += self.fit.get("starts", 1) - 1
        epochs = self.fit.get("epochs", Schedule().epochs)
        started = math.sqrt(1 + ("start" in self.fit))
        return float((self.data.get("train_size") or 1) * epochs * trainings * started)

    def images(self, **changes: Any) -> data_sets.ImageData:
        """The trial's images, or with other arguments of `bayesws.data.load`.

        Raises:
            ValueError: as `bayesws.data.load`.
        """
        given = {name: value for name, value in self.data.items() if name != "fresh"}
        given |= {"name": os.path.expandvars(given["name"]), "task": self.task, "seed": self.seed}
        return data_sets.load(**given | changes)

    def run(self) -> dict[str, Any]:
        """Load the data, build the network, fit, test.

        Returns: the fields of a `Trial`, and beside them the "version" of bayesws, the digest of the "test_data",
            "parameters", "stack_parameters", the "groups" of the layers, what their
            "start" was, what all "starts" have come to, and the "history".

        Raises:
            ValueError, FloatingPointError: what went wrong, and in which trial.
        """
        try:
            result, trial, tested_on = self._trained()
            if self.fits is not None:
                scores = {"accuracy": trial.accuracy, "nll": trial.nll}
                result.with_provenance(test=scores).save(Path(self.fits) / self.name)
            came_from = {"version": versions()["bayesws"], "test_data": tested_on}
            return asdict(trial) | came_from | _network_record(result)
        except FloatingPointError as error:
            raise FloatingPointError(f"trial {self.name}: {error}") from error
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"trial {self.name}: {error}") from error

    def _trained(self) -> tuple[FitResult, Trial, str]:
        """The fit, how it did, and a digest of the test data."""
        images = self.images()
        train: Any = images.train
        if self.data.get("fresh", False):
            size = self.fit.get("batch_size", Schedule().batch_size)
            train = data_sets.moving(self.images(task="upright"), self.task, size, self.seed)
        others = {task: self.images(task=task).test for task in self.elsewhere}
        torch.manual_seed(self.seed)
        channels, classes = images.image_shape[0], images.num_classes
        net = known_models()[self.model](in_channels=channels, num_classes=classes, **network_arguments(self.network))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the fit's notes are stored, and shown at the end
            result, trial = train_and_score(
                net,
                train,
                images.test,
                task=self.task,
                pathways=str(self.labels.get("pathways", "")),
                seed=self.seed,
                seen=images.train,
                elsewhere=others,
                objective=self.objective,
                curvature=self.curvature,
                judge=self.judge,
                device=self.device,
                progress=False,
                keep_posterior=self.fits is not None,
                **self.fit,
            )
        return result, trial, digest_of("data", images.test)


def train_and_score(
    net: nn.Module,
    train: Any,
    test: tuple[Tensor, Tensor],
    *,
    seed: int,
    task: str = "data",
    pathways: str = "both",
    seen: tuple[Tensor, Tensor] | None = None,
    elsewhere: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    judge: Curvature | None = None,
    **settings: Any,
) -> tuple[FitResult, Trial]:
    """Train a network and test what it has become.

    Args:
        net: at its initial weights.
        train: as for `fit`.
        test: held-out (x, y).
        seed: as for `fit`.
        task, pathways: what the trial calls them.
        seen: the (x, y) whose training loss is told; None is `train`, which then is such a pair.
        elsewhere: test data of other tasks with the same labels, by name.
        judge: the curvature that the evidence is by; None is the fit's own.
        settings: further arguments of `fit`.

    Raises:
        ValueError, FloatingPointError: as `fit`.
    """
    result = fit(net, train, seed=seed, **settings)
    if judge is not None:
        result = judged(result, train, judge)
    return result, Trial.of(result, train if seen is None else seen, test, task, seed, pathways, elsewhere)


def network_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a network from JSON, which has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _network_record(result: FitResult) -> dict[str, Any]:
    """What the network is, where it started, what its stacks became, and how it was trained."""
    sharing = [m for m in result.model.modules() if isinstance(m, WeightSharing) and m.shared is not None]
    may_be_groups = bool(sharing) and all(m.stack.constraint == "doubly" for m in sharing)
    groups = identify_groups(result) if may_be_groups else {}
    return {
        "parameters": sum(p.numel for _, p in named_pathways(result.model) if not p.of_prior_only),
        "stack_parameters": sum(p.numel() for p in structure(result.model)),
        "start": [asdict(row) for row in result.start],
        "starts": [asdict(row) for row in result.starts],
        "groups": {
            name: {"name": g.name, "reason": g.reason, "closure_error": g.closure_error, "entropy": g.entropy}
            for name, g in groups.items()
        },
        "history": result.history,
    }

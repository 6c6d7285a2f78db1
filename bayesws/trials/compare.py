"""Running a comparison: the same network, data and schedule under several objectives and structures, paired by seed."""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayesws import data as data_sets
from bayesws.evidence.batches import as_tensors
from bayesws.evidence.curvature import Curvature, curvature_named
from bayesws.models import WSCNN
from bayesws.training.fit import fit
from bayesws.training.objectives.names import objective_named, settings_for
from bayesws.training.objectives.objective import Objective
from bayesws.trials.comparison import STRUCTURES, Comparison
from bayesws.trials.records import Trial

SAMPLED = Curvature("kron", samples=1)
COMPARED = ("evidence", "task")


def compare(
    make_net: Callable[[], nn.Module],
    train: Any,
    test: Any,
    seeds: int = 5,
    objectives: tuple[str | Objective, ...] = COMPARED,
    likelihood: str = "classification",
    curvature: str | Curvature = SAMPLED,
    elsewhere: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    **settings: Any,
) -> Comparison:
    """Evidence against task loss, and its rivals, on one data set, paired over seeds.

    Args:
        make_net: builds the network; called with torch's seed set, so that every objective starts from equal weights.
        train, test: pairs of tensors (x, y), Datasets or DataLoaders.
        seeds: how many, 0 to seeds - 1.
        objectives: as `fit` knows them.
        likelihood: as for `fit`.
        curvature: as for `fit`; steps on one sampled column a datum cost little and end at the same structures.
        elsewhere: test data of other tasks with the same labels, by name: how does each objective do out of its
            training distribution?
        settings: further arguments of `fit`, such as `epochs`.

    Raises:
        ValueError: as `fit`; fewer than one seed.
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: expected at least 1")
    compared = [objective_named(objective) for objective in objectives]
    train, test = as_tensors(train), as_tensors(test)
    trials = []
    for objective in compared:
        mine = settings_for(objective, settings, compared)
        for seed in range(seeds):
            torch.manual_seed(seed)
            result = fit(make_net(), train, likelihood, objective, curvature, seed=seed, keep_posterior=False, **mine)
            trials.append(Trial.of(result, train, test, "data", seed, elsewhere=elsewhere))
    same = {k: v for k, v in settings.items() if k != "progress"}
    return Comparison(trials, {"seeds": seeds, "curvature": asdict(curvature_named(curvature)), **same})


def network_for(images: data_sets.ImageData, structure: str, **network: Any) -> WSCNN:
    """The `WSCNN` of some images' channels and classes, with the pathways of a structure of the comparison."""
    channels, pathways = images.train[0].shape[1], STRUCTURES[structure]
    return WSCNN(in_channels=channels, num_classes=images.num_classes, pathways=pathways, **network)


@dataclass(frozen=True)
class Job:
    """One trial of the command line's comparison, small enough to send to another process.

    Attributes:
        data: arguments of `bayesws.data.load` but task and seed.
        task, seed, structure, objective: see `Trial`.
        network: arguments of `WSCNN` but channels, classes and pathways.
        fit: further arguments of `fit`.
        curvature: as for `fit`.
        elsewhere: other tasks to test on.
        device: where to train.
        fits: the folder in which the fit is kept, with its posterior; None keeps none.
    """

    data: dict[str, Any]
    task: str
    seed: int
    structure: str
    objective: str
    network: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    curvature: Curvature = SAMPLED
    elsewhere: tuple[str, ...] = ()
    device: str = "cpu"
    fits: str | None = None

    @property
    def name(self) -> str:
        """The trial's file, without its ending."""
        return f"{self.task}-{self.structure}-{self.objective}-{self.seed}".replace(":", "_")

    @property
    def settings(self) -> dict[str, Any]:
        """All that the numbers depend on, as it comes back from JSON."""
        return json.loads(json.dumps({k: v for k, v in asdict(self).items() if k not in ("device", "fits")}))

    def run(self) -> dict[str, Any]:
        """Load the data, build the network, fit, test: a record for the trial's file.

        Raises:
            ValueError, FloatingPointError: what went wrong, and in which trial.
        """
        try:
            return asdict(self._run()) | {"settings": self.settings}
        except (ValueError, FloatingPointError) as error:
            raise type(error)(f"trial {self.name}: {error}") from error

    def images(self, task: str | None = None) -> data_sets.ImageData:
        """The trial's images, or the same made into another task."""
        return data_sets.load(**self.data, task=task or self.task, seed=self.seed)

    def _run(self) -> Trial:
        images = self.images()
        others = {task: self.images(task).test for task in self.elsewhere}
        torch.manual_seed(self.seed)
        net = network_for(images, self.structure, **self.network)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the fit's notes are kept in the trial and shown at the end
            result = fit(
                net,
                images.train,
                objective=self.objective,
                curvature=self.curvature,
                seed=self.seed,
                device=self.device,
                progress=False,
                keep_posterior=self.fits is not None,
                **self.fit,
            )
        trial = Trial.of(result, images.train, images.test, self.task, self.seed, self.structure, others)
        if self.fits is not None:
            result = result.with_provenance(test={"accuracy": trial.accuracy, "nll": trial.nll})
            result.save(Path(self.fits) / self.name)
        return trial

"""Running a comparison: the same network, data and schedule under several objectives and structures, paired by seed."""

import multiprocessing
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from bayesws import data as data_sets
from bayesws.analysis.comparison import STRUCTURES, Comparison, Trial
from bayesws.evidence.batches import as_tensors
from bayesws.evidence.curvature import Curvature, curvature_named
from bayesws.fit import fit
from bayesws.models import WSCNN
from bayesws.rivals import OBJECTIVES

SAMPLED = Curvature("kron", samples=1)


def compare(
    make_net: Callable[[], nn.Module],
    train: Any,
    test: Any,
    seeds: int = 5,
    objectives: tuple[str, ...] = OBJECTIVES,
    likelihood: str = "classification",
    curvature: str | Curvature = SAMPLED,
    **settings: Any,
) -> Comparison:
    """Evidence against task loss on one data set, paired over seeds.

    Args:
        make_net: builds the network; called with torch's seed set, so that every objective starts from equal weights.
        train, test: pairs of tensors (x, y), Datasets or DataLoaders.
        seeds: how many, 0 to seeds - 1.
        objectives: among "evidence" and "task".
        likelihood: as for `fit`.
        curvature: as for `fit`; steps on one sampled column a datum cost little and end at the same structures.
        settings: further arguments of `fit`, such as `epochs`.

    Raises:
        ValueError: as `fit`; fewer than one seed.
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: expected at least 1")
    train, test = as_tensors(train), as_tensors(test)
    trials = []
    for objective in objectives:
        for seed in range(seeds):
            torch.manual_seed(seed)
            result = fit(
                make_net(), train, likelihood, objective, curvature, seed=seed, keep_posterior=False, **settings
            )
            trials.append(Trial.of(result, train, test, "data", seed))
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
        settings: further arguments of `fit`.
        curvature: as for `fit`.
    """

    data: dict[str, Any]
    task: str
    seed: int
    structure: str
    objective: str
    network: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    curvature: Curvature = SAMPLED

    def run(self) -> Trial:
        """Load the data, build the network, fit, test."""
        images = data_sets.load(**self.data, task=self.task, seed=self.seed)
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
                progress=False,
                keep_posterior=False,
                **self.settings,
            )
        return Trial.of(result, images.train, images.test, self.task, self.seed, self.structure)


def run_jobs(jobs: list[Job], processes: int) -> Iterator[tuple[int, Trial]]:
    """`in_processes` for the trials of a comparison."""
    yield from in_processes(jobs, processes)


def in_processes(jobs: Sequence[Any], processes: int) -> Iterator[tuple[int, Any]]:
    """Run jobs, each on one thread of a pool of processes; yields index and result as they finish.

    One thread a fit makes every number reproducible to the last bit, whatever the number of processes. An error, or
    Ctrl-C, ends the jobs that are still running.

    Args:
        jobs: with a method `run`, small enough to send to another process.
        processes: how many at once.
    """
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    with _interrupts_ignored():  # as the processes then do from their start: Ctrl-C is this one's alone to tell of
        pool = context.Pool(min(processes, len(jobs)), initializer=_one_thread)
    with pool:
        yield from pool.imap_unordered(_run_numbered, list(enumerate(jobs)))


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run_numbered(numbered: tuple[int, Any]) -> tuple[int, Any]:
    index, job = numbered
    return index, job.run()


def _one_thread() -> None:
    torch.set_num_threads(1)

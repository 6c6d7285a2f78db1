"""The best of several starts: each is trained, and the evidence, or what was held out, says which is kept."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bayesws.evidence.curvature import Curvature
from bayesws.training.checkpoint import Checkpoint
from bayesws.training.held_out import Split, Watching
from bayesws.training.loop import Loop, Record
from bayesws.training.objectives.objective import Objective, Work
from bayesws.training.outcome import final_evidence, judge, judging_curvature
from bayesws.training.starts import Begun, Starts
from bayesws.training.summaries import EvidenceSummary, Start, best_of

NOT_EXACT = "no memory holds the exact evidence, or too few rows: the starts were compared by {0.kind!r}, {0.bound}"
TOO_HIGH = "the evidence of start {0} is by too few sampled rows and too high: another is kept where there is one"


@dataclass(frozen=True)
class Trained:
    """A start at the end of its training.

    Attributes:
        begun: where it started; its network is trained now.
        work: the objective, at work on it.
        loop: with the history.
        evidence: that the fit reports.
    """

    begun: Begun
    work: Work
    loop: Loop
    evidence: EvidenceSummary


@dataclass(frozen=True)
class Trainer:
    """Trains the starts of one fit by one objective.

    Attributes:
        starts: of the fit.
        objective, chosen: what to train by, and what it chose beforehand, at start 0, for all.
        watching: makes what is told of each training, from a line about it.
        kept: where to go on from, and to write to.
        watch: called with every new record of the history, which knows its "start" where there are several.
    """

    starts: Starts
    objective: Objective
    chosen: Any
    watching: Callable[[str], Watching]
    kept: Checkpoint | None
    watch: Callable[[Record], object]

    def train(self, begun: Begun) -> Trained:
        """Train a start on all data.

        Raises:
            FloatingPointError: a loss that is not finite, naming the start and the epoch.
        """
        of, number = len(self.starts), begun.number
        told = f"start {number + 1} of {of}" if of > 1 else ""
        with self.starts.own_draws(number):
            loop = self._loop(begun)
            try:
                loop.train(self.watching(told), self.kept, _name(begun), self._watched(number))
            except FloatingPointError as error:
                raise FloatingPointError(f"{told}: {error}" if told else str(error)) from error
            return self._ended(begun, loop)

    def restored(self, kept: Checkpoint, start: Start, begun: Begun) -> Trained:
        """A start that an earlier call has trained and kept.

        Raises:
            ValueError: a file that is missing, damaged or of another fit.
        """
        with self.starts.own_draws(begun.number):
            loop = self._loop(begun)
            kept.restore_start(loop, start, _name(begun))
            loop.work.finish()
            return self._ended(begun, loop)

    def _loop(self, begun: Begun) -> Loop:
        return Loop(begun.setting, self.objective.begin(begun.setting, self.chosen))

    @staticmethod
    def _ended(begun: Begun, loop: Loop) -> Trained:
        return Trained(begun, loop.work, loop, EvidenceSummary.of(final_evidence(begun.setting, loop.work)))

    def _watched(self, number: int) -> Callable[[Record], object]:
        if len(self.starts) == 1:
            return self.watch
        return lambda record: self.watch(record | {"start": float(number)})


def best_start(trainer: Trainer, first: Begun, split: Split) -> tuple[Trained, tuple[Start, ...], list[str]]:
    """The start that is kept, what all have come to (nothing where there is one), and notes.

    An objective with a share `held_out` of the data, as the task loss has, chooses a start as it chooses its settings,
    and so is as fair a rival with starts as without: every start is trained on the rest, with what was chosen at start
    0, and the one with the smallest held-out negative log likelihood is trained on all data. Under any other every
    start is trained on all data, and the one with the highest log evidence by `judging_curvature` is kept; by Kronecker
    factors where its sampled rows are too few for start 0.

    Args:
        trainer: of this fit.
        first: start 0.
        split: the held-out split of this fit.
    """
    if len(trainer.starts) == 1:
        return trainer.train(first), (), []
    share = getattr(trainer.objective, "held_out", None)
    trained, starts, notes = (
        _by_evidence(trainer, first) if share is None else _by_held_out(trainer, first, split, share)
    )
    number = trained.begun.number
    return trained, tuple(replace(start, kept=start.number == number) for start in starts), notes


def _by_evidence(trainer: Trainer, first: Begun) -> tuple[Trained, list[Start], list[str]]:
    kept, starts = trainer.kept, trainer.starts
    found = list(kept.starts()) if kept is not None else []
    best, curvature = None, found[0].curvature if found else None
    for number in range(len(found), len(starts)):
        began = time.perf_counter()
        begun = first if number == 0 else starts.begun(number)
        trained = trainer.train(begun)
        judged, saturated = _judged(trained, curvature or judging_curvature(begun.setting))
        if curvature is None and saturated:
            judged, saturated = _judged(trained, Curvature("kron"))
        curvature, score = judged.curvature, judged.log_evidence
        seconds = time.perf_counter() - began
        found.append(Start(number, begun.what, score, None, curvature, seconds, saturated=saturated))
        if best_of(found).number == number:
            best = trained
        if kept is not None:
            kept.keep_starts(found)
    if best is None:
        assert kept is not None
        start = best_of(found)
        best = trainer.restored(kept, start, first if start.number == 0 else starts.begun(start.number))
    assert curvature is not None
    notes = [] if curvature.kind == "full" else [NOT_EXACT.format(curvature)]
    return best, found, notes + [TOO_HIGH.format(start.number + 1) for start in found if start.saturated]


def _judged(trained: Trained, curvature: Curvature) -> tuple[EvidenceSummary, bool]:
    """A start's evidence by a curvature, and whether it is too high; the one that it reports never is."""
    if curvature == trained.evidence.curvature:
        return trained.evidence, False
    found = judge(trained.begun.setting, trained.work, curvature)
    return EvidenceSummary.of(found), found.saturated


def _by_held_out(trainer: Trainer, first: Begun, split: Split, share: float) -> tuple[Trained, list[Start], list[str]]:
    starts, objective = trainer.starts, trainer.objective
    found: list[Start] = []
    best = first
    for number in range(len(starts)):
        begun = first if number == 0 else starts.begun(number)
        with starts.own_draws(number):
            loss, seconds = split.of_start(begun, len(starts), trainer.chosen, objective.begin, share)
        found.append(Start(number, begun.what, None, loss, None, seconds))
        best = begun if best_of(found).number == number else best
    return trainer.train(best), found, []


def _name(begun: Begun) -> str:
    """Of its training on all data, in a checkpoint."""
    return f"start {begun.number}" if begun.number else ""

"""Progress: a bar on a terminal; in a pipe nothing, or a plain line for what takes minutes."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def epoch_bar(total: int, what: str, show: bool | None = None) -> Iterator[Callable[[], None]]:
    """A bar over `total` steps with the time left; yields what to call after each step.

    Args:
        total: number of steps.
        what: shown beside the bar.
        show: None shows it where standard error is a terminal.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


class TimeLeft:
    """About how long trials take that are still to be run, several at a time, from what each is said to cost.

    As fast as so far: the finished ones and half of each that is under way, over the time since the first began.

    Args:
        costs: by name, in the order in which they are run, in any unit.
        processes: how many at a time.
    """

    def __init__(self, costs: Mapping[str, float], processes: int) -> None:
        self.costs, self.processes = dict(costs), processes
        self.left = dict(costs)
        self.started = time.monotonic()

    def done(self, name: str) -> None:
        """One of them is finished; others are not looked at."""
        self.left.pop(name, None)

    def seconds(self) -> float:
        """Until the last is finished; nan before the first is."""
        under_way = list(self.left.values())[: self.processes - 1]  # the process that has just finished begins anew
        rest = sum(self.left.values()) - sum(under_way) / 2
        finished = sum(self.costs.values()) - rest
        if len(self.left) == len(self.costs) or finished <= 0:
            return math.nan
        return (time.monotonic() - self.started) * rest / finished


class TrialBar:
    """What is told of trials: see `trial_bar`."""

    def __init__(self, total: int, processes: int, bar: Progress | None) -> None:
        self.total, self.processes, self.bar = total, processes, bar
        self.count, self.told, self.time = 0, time.monotonic(), TimeLeft({}, processes)
        self.task = None if bar is None else bar.add_task("trials", total=total, left="")

    def begin(self, left: Sequence[Any]) -> None:
        """These are about to be run, in this order; they may have a `cost`. Those advanced so far were there before."""
        self.time = TimeLeft({trial.name: getattr(trial, "cost", 1.0) for trial in left}, self.processes)

    def advance(self, name: str) -> None:
        """One more is there."""
        self.count += 1
        self.time.done(name)
        seconds = self.time.seconds()
        left = "" if math.isnan(seconds) else f"about {seconds / 60:.0f} minutes left"
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, advance=1, left=left)
            return
        now = time.monotonic()
        if self.time.costs and (self.count == self.total or now - self.told >= SECONDS_BETWEEN_LINES):
            self.told = now
            told = f"{self.count} of {self.total} trials, {name}"
            sys.stderr.write("; ".join(part for part in (told, left) if part) + "\n")
            sys.stderr.flush()


@contextmanager
def trial_bar(total: int, processes: int = 1) -> Iterator[TrialBar]:
    """A bar over trials with the time left; in a pipe a line now and then, and one for the last.

    Args:
        total: how many, those that are there already included.
        processes: how many are run at a time.
    """
    if not sys.stderr.isatty():
        yield TrialBar(total, processes, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield TrialBar(total, processes, bar)

"""Progress: a bar on a terminal; in a pipe nothing, or a plain line for what takes minutes."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def trial_bar(total: int) -> Iterator[Callable[[str], None]]:
    """A bar over trials with the time left; in a pipe a plain line now and then, and one for the last.

    Yields what to call after each, with its name.
    """
    if sys.stderr.isatty():
        with epoch_bar(total, "trials", show=True) as advance:
            yield lambda name: advance()
        return
    started = told = time.monotonic()
    done = 0

    def tell(name: str) -> None:
        nonlocal done, told
        done, now = done + 1, time.monotonic()
        if done < total and now - told < SECONDS_BETWEEN_LINES:
            return
        told, left = now, (now - started) / done * (total - done)
        sys.stderr.write(f"{done} of {total} trials, {name}; about {left / 60:.0f} minutes left\n")
        sys.stderr.flush()

    yield tell

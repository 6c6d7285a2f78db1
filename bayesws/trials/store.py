"""Trials that are kept as files: an interrupted run goes on where it stopped, and nothing finished is run twice."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from bayesws.io.files import write_whole
from bayesws.trials.pool import in_processes


class Keepable(Protocol):
    """A trial to be run, small enough to send to another process."""

    @property
    def name(self) -> str:
        """Its file, without the ending."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """All that its numbers depend on, as it comes back from JSON."""
        ...

    def run(self) -> dict[str, Any]:
        """What is kept of it, with its `settings`."""
        ...


def run_kept(
    trials: Sequence[Keepable],
    folder: Path,
    processes: int,
    required: Iterable[str] = (),
    advance: Callable[[str], object] = lambda name: None,
    cost: Callable[[Any], float] = lambda trial: 0.0,
    before: Callable[[list[Any]], object] = lambda left: None,
) -> list[dict[str, Any]]:
    """Run what `folder` does not hold yet, and return all records in the order of the trials.

    Args:
        trials: with different names.
        folder: a finished trial is the file trials/<name>.json in it.
        processes: how many at once.
        required: keys that a record must have beside its settings.
        advance: called with the name of every trial that is found or finished.
        cost: the dearest are run first.
        before: called with what is left to be run, before anything is.

    Raises:
        ValueError: a file that is damaged or was made with other settings; what a trial's `run` raises.
    """
    found = {t.name: r for t in trials if (r := _kept(folder, t, {"settings", *required})) is not None}
    for name in found:
        advance(name)
    left = sorted((t for t in trials if t.name not in found), key=cost, reverse=True)
    before(left)
    for index, record in in_processes(left, processes):
        name = left[index].name
        write_whole(_file(folder, left[index]), partial(_write, json.dumps(record) + "\n"))
        found[name] = record
        advance(name)
    return [found[trial.name] for trial in trials]


def how_many_kept(trials: Sequence[Keepable], folder: Path) -> int:
    """How many of the trials `folder` holds."""
    return sum(_file(folder, trial).exists() for trial in trials)


def told_when_stopped(trials: Sequence[Keepable], folder: Path) -> str:
    """What Ctrl-C left, and how to go on; empty where it left nothing."""
    kept = how_many_kept(trials, folder)
    if not kept:
        return ""
    return f"{kept} of {len(trials)} trials are kept in {folder / 'trials'}: the same command goes on from there"


def _file(folder: Path, trial: Keepable) -> Path:
    return folder / "trials" / f"{trial.name}.json"


def _kept(folder: Path, trial: Keepable, required: set[str]) -> dict[str, Any] | None:
    path = _file(folder, trial)
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError:
        record = None
    if not isinstance(record, dict) or not set(record) >= required:
        raise ValueError(f"{path} is damaged: remove it, and the trial is run again")
    if record["settings"] != trial.settings:
        raise ValueError(f"{path} was run with other settings: choose another --out, or remove it")
    return record


def _write(text: str, path: Path) -> None:
    path.write_text(text)

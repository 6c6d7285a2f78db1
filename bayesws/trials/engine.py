"""The engine of all trials: what a folder does not hold yet is run, the dearest first, and stored as it finishes."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from bayesws.io.only_writer import only_writer
from bayesws.trials.pool import check_imported_main, in_processes
from bayesws.trials.store import TrialLike, store, stored


def run(
    trials: Sequence[TrialLike],
    folder: str | Path,
    processes: int = 1,
    required: Iterable[str] = (),
    advance: Callable[[str], object] = lambda name: None,
    cost: Callable[[Any], float] = lambda trial: 0.0,
    before: Callable[[list[Any]], object] = lambda left: None,
) -> list[dict[str, Any]]:
    """Run what `folder` does not hold yet, and return all records in the order of the trials.

    Every finished trial is a file of its own, so an interrupted run goes on where it stopped. Each runs on one thread
    of a process of its own: its numbers are the same to the last bit, whatever the number of processes.

    Args:
        trials: values with a `name`, `settings` and `run()` (see `TrialLike`), such as `TrialSpec`; they are sent to
            other processes, so their class is importable, and a script that calls this does so below
            ``if __name__ == "__main__"``.
        folder: a finished trial is the file trials/<name>.json in it.
        processes: how many at once.
        required: keys that a record must have beside its settings.
        advance: called with the name of every trial that is found or finished.
        cost: the dearest are run first.
        before: called with what is left to be run, before anything is.

    Raises:
        ValueError: two trials of one name, fewer than one process; a folder that another process writes into; a file
            that is damaged or was made with other settings; what a trial's `run` raises; a process that was killed; a
            script without ``if __name__ == "__main__"``.
    """
    check_imported_main()
    folder, names = Path(folder), [trial.name for trial in trials]
    if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
        raise ValueError(f"two trials would both be kept in {twice}.json: expected different names")
    if processes < 1:
        raise ValueError(f"processes={processes}: expected at least 1")
    with only_writer(folder / "trials"):
        found = {t.name: r for t in trials if (r := stored(t, folder, set(required))) is not None}
        for name in found:
            advance(name)
        left = sorted((t for t in trials if t.name not in found), key=cost, reverse=True)
        before(left)
        with closing(in_processes(left, processes)) as finished:  # none is left running, whatever is raised within
            for index, record in finished:
                found[left[index].name] = store(left[index], record, folder)
                advance(left[index].name)
    return [found[name] for name in names]

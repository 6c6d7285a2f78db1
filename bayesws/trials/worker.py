"""A process that runs jobs for another, and lives no longer than it: what `pool.py` starts, as a script by its path.

As a script, so that it listens to its parent before it imports anything large: jobs come on standard input as pickles,
outcomes go back on standard output, and when the input ends, since the parent has ended or wants no more, so does this
process, in whatever it is doing.
"""

import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.spawn import prepare
from queue import SimpleQueue
from typing import Any, BinaryIO


def main() -> None:
    """Answer jobs until the parent is gone."""
    stops = (signal.SIGINT, signal.SIGTERM)  # sent to a whole group of processes they are the parent's to tell of
    for stop in stops:
        signal.signal(stop, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)  # the parent held them back until here
    outcomes = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a job prints is no outcome
    messages: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, messages), daemon=True).start()
    told = messages.get()
    _answer(lambda: _prepare(told), outcomes)
    while True:
        job = messages.get()
        _answer(lambda job=job: pickle.loads(job).run(), outcomes)  # type: ignore[misc]


def _listen(parent: BinaryIO, messages: "SimpleQueue[bytes]") -> None:
    """Take messages, each its length in eight bytes and then itself; end this process where they end."""
    while len(header := parent.read(8)) == 8:
        messages.put(parent.read(int.from_bytes(header, "big")))
    os._exit(0)


def _prepare(told: bytes) -> None:
    """Import as the parent does, with its main module; and compute on one thread."""
    prepare(pickle.loads(told))
    import torch

    torch.set_num_threads(1)


def _answer(job: Callable[[], Any], outcomes: BinaryIO) -> None:
    """Send what a job gives and None, or None and what it raises."""
    try:
        outcome = pickle.dumps((job(), None))
    except Exception as error:
        error.add_note(traceback.format_exc())
        outcome = _pickled(error)
    outcomes.write(outcome)
    outcomes.flush()


def _pickled(error: Exception) -> bytes:
    """What a job raises; one that no pickle holds as its words."""
    try:
        pickle.loads(outcome := pickle.dumps((None, error)))
        return outcome
    except Exception:  # of somebody's own class, in whatever way
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))


if __name__ == "__main__":
    main()

"""Jobs in a pool of processes: one thread each, reproducible to the last bit, ended by Ctrl-C."""

import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


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
        pool.close()
        pool.join()  # processes that end by themselves leave nothing behind


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

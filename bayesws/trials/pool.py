"""Jobs in several processes: one thread each, reproducible to the last bit; none outlives this one."""

import pickle
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.spawn import get_preparation_data
from pathlib import Path
from queue import SimpleQueue
from typing import Any

WORKER = Path(__file__).with_name("worker.py")


def in_processes(jobs: Sequence[Any], processes: int) -> Generator[tuple[int, Any], None, None]:
    """Run jobs, each on one thread of one of several processes; yields index and result as they finish.

    One thread a fit makes every number reproducible to the last bit, whatever the number of processes. An error,
    Ctrl-C or the end of this process, however it comes, ends the jobs that are still running.

    Args:
        jobs: with a method `run`, small enough to send to another process.
        processes: how many at once.

    Raises:
        ValueError: a process that was killed.
    """
    if not jobs:
        return
    workers: list[_Worker] = []
    idle: SimpleQueue[_Worker] = SimpleQueue()

    def run(job: Any) -> Any:
        worker = idle.get()
        try:
            return worker.run(job)
        finally:
            idle.put(worker)

    count = min(processes, len(jobs))
    threads = ThreadPoolExecutor(count)  # each waits for one process
    try:
        for _ in range(count):
            workers.append(_Worker())
            idle.put(workers[-1])
        running = {threads.submit(run, job): index for index, job in enumerate(jobs)}
        for done in as_completed(running):
            yield running.pop(done), done.result()
    finally:
        for worker in workers:
            worker.kill()
        threads.shutdown(cancel_futures=True)


def check_imported_main() -> None:
    """Raise ValueError where a process that is to run jobs imports a script that starts them itself, without end."""
    if getattr(sys.modules["__main__"], "__file__", None) == str(WORKER):
        raise ValueError(
            "the processes that run trials import this script first: start trials below if __name__ == '__main__'"
        )


class _Worker:
    """A process of `worker.py`: it has ended as soon as our end of its input is closed, if only by our own end."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", str(WORKER)]  # -P: its folder is no place to import from
        with _held_back(signal.SIGINT, signal.SIGTERM):  # until it ignores them: they are this process's to tell of
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.prepared = False

    def run(self, job: Any) -> Any:
        """What the job's `run` gives, or raises."""
        if not self.prepared:
            told = get_preparation_data("worker")
            told.pop("authkey")  # is not for a pipe
            self._answer(told)
            self.prepared = True
        return self._answer(job)

    def _answer(self, message: Any) -> Any:
        pickled = pickle.dumps(message)
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(len(pickled).to_bytes(8, "big") + pickled)
            self.process.stdin.flush()
            result, error = pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as ended:
            raise ValueError(
                f"a process that ran trials was ended from outside (exit status {self.process.wait()}), as happens "
                "when memory runs out: run fewer at once; the same command goes on from what is kept"
            ) from ended
        if error is not None:
            raise error
        return result

    def kill(self) -> None:
        """End it, in whatever it is doing."""
        self.process.kill()
        self.process.wait()


@contextmanager
def _held_back(*signals: signal.Signals) -> Iterator[None]:
    """Signals come after it, not within; a process that is started within gets them once it asks for them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

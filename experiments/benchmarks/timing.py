"""Times of jobs that share a machine with others, in turns and compared turn by turn; what memory was taken."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def interleaved(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every job, `repeats` times: each once to warm up, then all of them in turns."""
    for job in jobs.values():
        job()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """The median of a_i / b_i over turns i, then its lower and upper quartile."""
    pairs = [x / y for x, y in zip(a, b, strict=True)]
    if len(pairs) == 1:
        return pairs[0], pairs[0], pairs[0]
    lower, median, upper = statistics.quantiles(pairs, n=4, method="inclusive")
    return median, lower, upper


def largest_resident_size() -> int:
    """KiB, of this process since it was last reset (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

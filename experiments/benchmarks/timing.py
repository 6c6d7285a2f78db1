"""Times of jobs that are compared with each other on a machine that is not quiet."""

import statistics
import time
from collections.abc import Callable, Sequence


def interleaved(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every job, run in turns, so that what slows the machine down slows down all of them.

    Args:
        jobs: by name; each is run once before the clock starts.
        repeats: rounds.
    """
    for job in jobs.values():
        job()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of a_i / b_i over the rounds of `interleaved`."""
    quotients = [x / y for x, y in zip(a, b, strict=True)]
    lower, median, upper = statistics.quantiles(quotients, n=4, method="inclusive")
    return {"median": median, "lower_quartile": lower, "upper_quartile": upper}

"""How much longer the log evidence needs to settle: a geometric sequence through the steps of a fit, walked on."""

import math
from collections.abc import Sequence
from statistics import fmean

SETTLED = 0.01  # of the log evidence: a rest that is smaller is settled; so is one of a nat
RATES = tuple(percent / 100 for percent in range(1, 96))  # a slower one cannot be told from what never settles
DIGITS = 2  # of the epochs that are told


def steps_to_settle(evidences: Sequence[float]) -> int:
    """Further steps on the hyperparameters until the log evidence is within 1 % (or a nat) of where it goes.

    e_t = a + b q^t by least squares through all n steps, q from `RATES`: every step draws its curvature anew, and
    single differences are mostly that. After s more steps |b| q^(n - 1 + s) is left. It is a guess: an evidence that
    creeps on below the scatter of its draws is not seen.

    Args:
        evidences: log evidences, nats, three or more, a step each.

    Returns: 0 where the curve has settled, so that what still moves is the draws.

    >>> steps_to_settle([-300.0, -200.0, -150.0])  # towards -100: left are 25, 12.5, 6.25, 3.125, 1.5625, 0.78 (≤ 1.5)
    6
    """
    (_, slope), rate = min((_fitted(evidences, rate), rate) for rate in RATES)
    left, small = abs(slope) * rate ** (len(evidences) - 1), max(SETTLED * abs(evidences[-1]), 1.0)
    return math.ceil(math.log(left / small) / -math.log(rate)) if left > small else 0


def _fitted(evidences: Sequence[float], rate: float) -> tuple[float, float]:
    """The sum of squares that e_t = a + b q^t leaves, and b."""
    powers = [rate**t for t in range(len(evidences))]
    x, y = ([value - fmean(values) for value in values] for values in (powers, evidences))
    slope = sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x)
    return sum((b - slope * a) ** 2 for a, b in zip(x, y, strict=True)), slope


def epochs_to_settle(history: Sequence[dict[str, float]]) -> tuple[int, int]:
    """About how many more epochs a fit needs, in two digits, and how many that makes in all; see `steps_to_settle`.

    None more where the log evidence has settled but for its draws.

    Args:
        history: a record an epoch, three or more of them with a "log_evidence".
    """
    steps = [record for record in history if "log_evidence" in record]
    apart = (steps[-1]["epoch"] - steps[0]["epoch"]) / (len(steps) - 1)
    more = _rounded_up(steps_to_settle([record["log_evidence"] for record in steps]) * apart)
    return more, len(history) + more


def _rounded_up(number: float) -> int:
    """To two digits, upwards.

    >>> [_rounded_up(n) for n in (0, 7.2, 120, 121, 1484)]
    [0, 8, 120, 130, 1500]
    """
    unit = 10 ** max(0, math.floor(math.log10(max(number, 1.0))) + 1 - DIGITS)
    return math.ceil(number / unit) * unit

"""How much longer the log evidence needs to settle: the steps of a fit, taken for a geometric sequence."""

import math
from collections.abc import Sequence
from statistics import mean

SETTLED = 0.01  # of the log evidence: a rest that is smaller is settled; so is one of a nat
SLOWEST = 0.95  # rate that is still believed: a slower one cannot be told from a sequence that does not settle
DIGITS = 2  # of the epochs that are told


def steps_to_settle(evidences: Sequence[float]) -> int:
    """Further steps on the hyperparameters until the log evidence changes by less than 1 % (or a nat) in all to come.

    The last half of the steps, in three blocks of n each, has the means m_1, m_2, m_3: with d_1 = m_2 - m_1, d_2 = m_3
    - m_2 and the rate q = |d_2 / d_1|^(1/n) a step, at most 0.95, what is to come s steps after the middle of the last
    block is |d_2| q^s q^n / (1 - q^n). Blocks, as each step draws its curvature anew.

    Args:
        evidences: log evidences, nats, three or more, a step each.

    >>> steps_to_settle([-300.0, -200.0, -150.0])  # to come: 50, 25, 12.5, 6.25, 3.125, 1.5625 (over 1.5), ...
    6
    """
    n = max(1, len(evidences) // 6)
    last = [mean(evidences[len(evidences) - n * back : len(evidences) - n * (back - 1)]) for back in (3, 2, 1)]
    before, now = last[1] - last[0], last[2] - last[1]
    block = min(abs(now / before), SLOWEST**n) if before else SLOWEST**n
    small = max(SETTLED * abs(evidences[-1]), 1.0)
    if not block or not now:
        return 0
    steps = math.log(abs(now) * block / (1 - block) / small) / -math.log(block) * n
    return max(0, math.ceil(steps - (n - 1) / 2))


def epochs_to_settle(history: Sequence[dict[str, float]]) -> tuple[int, int]:
    """About how many more epochs a fit needs, in two digits, and how many that makes in all; see `steps_to_settle`.

    Args:
        history: a record an epoch, three or more of them with a "log_evidence".
    """
    steps = [record for record in history if "log_evidence" in record]
    apart = (steps[-1]["epoch"] - steps[0]["epoch"]) / (len(steps) - 1)
    more = _rounded_up(max(1, steps_to_settle([record["log_evidence"] for record in steps])) * apart)
    return more, len(history) + more


def _rounded_up(number: float) -> int:
    """To two digits, upwards.

    >>> [_rounded_up(n) for n in (7.2, 120, 121, 1484)]
    [8, 120, 130, 1500]
    """
    unit = 10 ** max(0, math.floor(math.log10(number)) + 1 - DIGITS)
    return math.ceil(number / unit) * unit

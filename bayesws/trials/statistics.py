"""Differences between two ways of training on the same draws: paired over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from scipy.stats import ttest_rel

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """One list of numbers less another, paired.

    Attributes:
        mean: of the differences.
        low, high: of Student's 95 % interval of that mean; nan for a single pair.
        p_value: of the paired t-test of no difference, two-sided; not corrected for how many are made.
        wins: pairs in which the first is better.
        pairs: how many.
    """

    mean: float
    low: float
    high: float
    p_value: float
    wins: int
    pairs: int

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float], higher_is_better: bool) -> "Difference":
        """Of equally long lists, entry by entry.

        Raises:
            ValueError: lists of different lengths, or empty ones.

        >>> found = Difference.of([3.0, 4.0, 6.0], [2.0, 2.0, 3.0], higher_is_better=True)
        >>> f"{found.mean:.2f} in [{found.low:.2f}, {found.high:.2f}], {found.wins} of {found.pairs}"
        '2.00 in [-0.48, 4.48], 3 of 3'
        """
        if len(first) != len(second) or not first:
            raise ValueError(f"{len(first)} and {len(second)} numbers: expected as many of both, at least one")
        gains = [a - b for a, b in zip(first, second, strict=True)]
        wins = sum(gain > 0 if higher_is_better else gain < 0 for gain in gains)
        if len(gains) == 1:
            return cls(gains[0], math.nan, math.nan, math.nan, wins, 1)
        if len(set(gains)) == 1:  # no spread: the t-test divides by zero
            return cls(gains[0], gains[0], gains[0], 1.0 if gains[0] == 0 else 0.0, wins, len(gains))
        test = ttest_rel(first, second)
        interval = test.confidence_interval(LEVEL)
        return cls(mean(gains), float(interval.low), float(interval.high), float(test.pvalue), wins, len(gains))

    def show(self, digits: int, scale: float = 1.0) -> str:
        """`mean [low, high]`, or the mean alone."""
        text = f"{scale * self.mean:+.{digits}f}"
        if math.isnan(self.low):
            return text
        return f"{text} [{scale * self.low:+.{digits}f}, {scale * self.high:+.{digits}f}]"

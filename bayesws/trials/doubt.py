"""When not to believe an evidence: where held-out data are predicted worse than it says of the training data."""

import math
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

from bayesws.training.result import FitResult
from bayesws.training.summaries import EvidenceSummary

GROUPS = 20  # of the test data, whose means tell how far off the mean of all may be
ERRORS = 2.0  # standard errors that a doubt takes


def doubts(fit: FitResult, evidence: EvidenceSummary, x: Any, y: Any) -> list[str]:
    """A note where the log evidence per datum is above the log likelihood of held-out data by two standard errors.

    log p(D) = Σ_n log p(y_n | x_n, D_<n), the mean over predictions from no data to all but one; those from all of them
    are no worse in the mean. Where the Laplace approximation says more, it is too high: most often at weights that fit
    every datum, where the curvature of the likelihood vanishes, and the Occam factor with it. Both means are of data
    that were drawn, N and M, so that with s² / M, what the groups of the test data say, they differ by s² (1/M + 1/N).

    Args:
        fit: predicts by its MAP weights.
        evidence: of its training data; its own, or by another curvature.
        x, y: held-out data from the same source, as `FitResult.nll` takes them, that can be sliced.
    """
    groups = min(GROUPS, len(y))
    if groups < 2:
        return []
    bounds = [len(y) * i // groups for i in range(groups + 1)]
    nll = [fit.nll(x[a:b], y[a:b], kind="map") for a, b in pairwise(bounds)]
    error = stdev(nll) * math.sqrt((1 + len(y) / evidence.examples) / groups)
    said, held_out = evidence.log_evidence / evidence.examples, -mean(nll)
    if not said > held_out + ERRORS * error:
        return []
    return [
        f"the log evidence, {said:.3f} nats per datum, is above the log likelihood of the test data, {held_out:.3f}: "
        "an evidence is the mean over predictions from fewer data, so the Laplace approximation is too high at these "
        "weights; do not compare by it"
    ]

"""When not to believe an evidence: where held-out data are predicted worse than it says of the training data."""

import math


def doubts(log_evidence: float, examples: int, nll: float) -> list[str]:
    """A note where the log evidence per datum is above the log likelihood of held-out data.

    log p(D) = Σ_n log p(y_n | x_n, D_<n), the mean over predictions from no data to all but one; those from all of them
    are no worse in the mean. Where the Laplace approximation says more, it is too high: most often at weights that fit
    every datum, where the curvature of the likelihood vanishes, and the Occam factor with it.

    Args:
        log_evidence: nats, summed.
        examples: how many data it is of.
        nll: mean negative log likelihood of held-out data from the same source, nats per datum.

    >>> doubts(-500.0, 1000, 0.4)
    []
    >>> doubts(-233.0, 1000, 0.571)[0].partition(":")[0]
    'the log evidence, -0.233 nats per datum, is above the log likelihood of the test data, -0.571'
    """
    mean = log_evidence / examples
    if not (math.isfinite(mean) and mean > -nll):
        return []
    return [
        f"the log evidence, {mean:.3f} nats per datum, is above the log likelihood of the test data, {-nll:.3f}: an "
        "evidence is the mean over predictions from fewer data, so the Laplace approximation is too high at these "
        "weights; do not compare by it"
    ]

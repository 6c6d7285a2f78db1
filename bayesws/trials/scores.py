"""How good predictions are on data: accuracy, negative log likelihood, calibration, Brier score."""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import one_hot

from bayesws.io.json_files import Fraction, Measured
from bayesws.training.result import FitResult

BINS = 15  # of the confidence, for the expected calibration error


@dataclass(frozen=True)
class Scores:
    """Of the MAP weights' predictions; nan for what a regression does not have.

    Attributes:
        accuracy: in [0, 1].
        nll: mean negative log likelihood, nats per datum.
        calibration_error: expected, in [0, 1]: the mean of |accuracy - confidence| over 15 bins of equal width of the
            predicted class's probability, weighted by how many fall into each (Guo et al. 2017, arXiv 1706.04599).
        brier: mean over the data of Σ_c (p_c - 1[y = c])², in [0, 2] (Brier 1950).
    """

    accuracy: Fraction
    nll: Measured
    calibration_error: Fraction
    brier: Measured

    @classmethod
    def of(cls, fit: FitResult, x: Tensor, y: Tensor) -> "Scores":
        """Of a fit on (x, y)."""
        nll = fit.nll(x, y, kind="map")
        if fit.likelihood.name != "classification":
            return cls(math.nan, nll, math.nan, math.nan)
        # takes two seconds to import: `import bayesws` should not
        from torchmetrics.functional.classification import multiclass_calibration_error

        probabilities, y = fit.predict(x, kind="map").cpu().double(), y.cpu()
        classes = probabilities.shape[-1]
        hits = (probabilities.argmax(-1) == y).double().mean()
        squares = (probabilities - one_hot(y, classes)).square().sum(-1).mean()
        error = multiclass_calibration_error(probabilities, y, classes, n_bins=BINS, norm="l1")
        return cls(float(hits), nll, float(error), float(squares))

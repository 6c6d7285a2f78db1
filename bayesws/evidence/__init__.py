"""HOW MUCH is shared: the Laplace evidence of any network whose layers declare what they have."""

from bayesws.evidence.curvature import Curvature
from bayesws.evidence.gradient import evidence_gradient
from bayesws.evidence.likelihood import Categorical, Gaussian, Likelihood
from bayesws.evidence.objective import Evidence, log_evidence

__all__ = ["Categorical", "Curvature", "Evidence", "Gaussian", "Likelihood", "evidence_gradient", "log_evidence"]

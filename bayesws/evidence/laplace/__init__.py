"""The door to laplace-torch: our curvature as its backend, and its posteriors; nothing else imports it."""

from bayesws.evidence.laplace.backend import (
    PathwayGGN,
    ReducedPathwayGGN,
    frozen_hyperparameters,
    posterior,
    prior_precisions,
)

__all__ = ["PathwayGGN", "ReducedPathwayGGN", "frozen_hyperparameters", "posterior", "prior_precisions"]

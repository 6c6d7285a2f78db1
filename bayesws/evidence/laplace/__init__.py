"""The door to laplace-torch: our curvature as its backend, and its posteriors; nothing else imports it."""

from bayesws.evidence.laplace.backend import (
    PathwayGGN,
    ReducedPathwayGGN,
    as_held,
    curvature_tensors,
    frozen_hyperparameters,
    output_moments,
    posterior,
    prior_precisions,
    restored,
)

__all__ = [
    "PathwayGGN",
    "ReducedPathwayGGN",
    "as_held",
    "curvature_tensors",
    "frozen_hyperparameters",
    "output_moments",
    "posterior",
    "prior_precisions",
    "restored",
]

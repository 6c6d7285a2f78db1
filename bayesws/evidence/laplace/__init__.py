"""The door to laplace-torch: our curvature as its backend, and its posteriors; nothing else imports it."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # its dependencies script functions as they are imported
    from bayesws.evidence.laplace.backend import PathwayGGN, ReducedPathwayGGN
    from bayesws.evidence.laplace.kron import PathwayKron, PathwayKronDecomposed
    from bayesws.evidence.laplace.posterior import (
        as_held,
        curvature_tensors,
        fitted_posterior,
        frozen_hyperparameters,
        kind_of,
        output_moments,
        prior_precisions,
        restored_posterior,
    )

__all__ = [
    "PathwayGGN",
    "PathwayKron",
    "PathwayKronDecomposed",
    "ReducedPathwayGGN",
    "as_held",
    "curvature_tensors",
    "fitted_posterior",
    "frozen_hyperparameters",
    "kind_of",
    "output_moments",
    "prior_precisions",
    "restored_posterior",
]

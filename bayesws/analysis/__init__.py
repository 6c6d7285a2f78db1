"""Measurements of trained networks and of data: what they share, how symmetric they are, how sure that is.

Reads results, and never trains.
"""

from bayesws.analysis.annealing import AnnealedEvidence, annealed_evidence
from bayesws.analysis.calibration import Agreement, Calibration, calibrate, linear_gaussian_evidence, rank_agreement
from bayesws.analysis.data_symmetries import candidates
from bayesws.analysis.decomposition import (
    OrbitDecomposition,
    best_decomposition,
    decomposition_table,
    orbit_decomposition,
    orbit_decompositions,
)
from bayesws.analysis.equivariance import EquivarianceError, equivariance_error, equivariance_errors, error_table
from bayesws.analysis.strength import LayerStrength, SharingStrength, sharing_strength

__all__ = [
    "Agreement",
    "AnnealedEvidence",
    "Calibration",
    "EquivarianceError",
    "LayerStrength",
    "OrbitDecomposition",
    "SharingStrength",
    "annealed_evidence",
    "best_decomposition",
    "calibrate",
    "candidates",
    "decomposition_table",
    "equivariance_error",
    "equivariance_errors",
    "error_table",
    "linear_gaussian_evidence",
    "orbit_decomposition",
    "orbit_decompositions",
    "rank_agreement",
    "sharing_strength",
]

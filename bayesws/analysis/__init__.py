"""Reading results: comparison tables, groups, rankings and pictures. Never trains."""

from bayesws.analysis.annealing import AnnealedEvidence, annealed_evidence
from bayesws.analysis.calibration import Agreement, Calibration, calibrate, linear_gaussian_evidence, rank_agreement
from bayesws.analysis.comparison import Comparison
from bayesws.analysis.decomposition import (
    OrbitDecomposition,
    best_decomposition,
    decomposition_table,
    orbit_decomposition,
    orbit_decompositions,
)
from bayesws.analysis.equivariance import EquivarianceError, equivariance_error, equivariance_errors, error_table
from bayesws.analysis.groups import Identified, Match, identify_group, identify_groups
from bayesws.analysis.ranking import Candidate, LayerRanking, Ranking
from bayesws.analysis.report import write_report
from bayesws.analysis.strength import LayerStrength, SharingStrength, sharing_strength
from bayesws.analysis.trial import Trial

__all__ = [
    "Agreement",
    "AnnealedEvidence",
    "Calibration",
    "Candidate",
    "Comparison",
    "EquivarianceError",
    "Identified",
    "LayerRanking",
    "LayerStrength",
    "Match",
    "OrbitDecomposition",
    "Ranking",
    "SharingStrength",
    "Trial",
    "annealed_evidence",
    "best_decomposition",
    "calibrate",
    "decomposition_table",
    "equivariance_error",
    "equivariance_errors",
    "error_table",
    "identify_group",
    "identify_groups",
    "linear_gaussian_evidence",
    "orbit_decomposition",
    "orbit_decompositions",
    "rank_agreement",
    "sharing_strength",
    "write_report",
]

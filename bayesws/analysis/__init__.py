"""Reading results: comparison tables, groups, rankings and pictures. Never trains."""

from bayesws.analysis.annealing import AnnealedEvidence, annealed_evidence
from bayesws.analysis.calibration import Agreement, Calibration, calibrate, linear_gaussian_evidence, rank_agreement
from bayesws.analysis.comparison import Comparison, Trial
from bayesws.analysis.equivariance import EquivarianceError, equivariance_error, equivariance_errors, error_table
from bayesws.analysis.groups import Identified, Match, identify_group, identify_groups
from bayesws.analysis.ranking import Candidate, LayerRanking, Ranking
from bayesws.analysis.strength import LayerStrength, SharingStrength, sharing_strength

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
    "Ranking",
    "SharingStrength",
    "Trial",
    "annealed_evidence",
    "calibrate",
    "equivariance_error",
    "equivariance_errors",
    "error_table",
    "identify_group",
    "identify_groups",
    "linear_gaussian_evidence",
    "rank_agreement",
    "sharing_strength",
]

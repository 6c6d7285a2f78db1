"""bayesws: how much of its weights may each layer share? The evidence decides."""

from bayesws import data, layers, models, rivals, sharing
from bayesws.analysis.annealing import AnnealedEvidence, annealed_evidence
from bayesws.analysis.calibration import Calibration, calibrate, linear_gaussian_evidence, rank_agreement
from bayesws.analysis.comparison import Comparison
from bayesws.analysis.decomposition import OrbitDecomposition, orbit_decomposition, orbit_decompositions
from bayesws.analysis.equivariance import EquivarianceError, equivariance_error, equivariance_errors
from bayesws.analysis.groups import Identified, identify_group, identify_groups
from bayesws.analysis.ranking import Candidate, LayerRanking, Ranking
from bayesws.analysis.report import write_report
from bayesws.analysis.strength import SharingStrength, sharing_strength
from bayesws.analysis.trial import Trial
from bayesws.candidates import candidates
from bayesws.compare import compare
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.gradient import evidence_gradient
from bayesws.evidence.likelihood import Categorical, Gaussian
from bayesws.evidence.objective import Evidence, log_evidence
from bayesws.fit import Schedule, fit
from bayesws.layers import harden, share
from bayesws.result import FitResult
from bayesws.select import select
from bayesws.select_layers import select_layers

__version__ = "0.1.0"

__all__ = [
    "AnnealedEvidence",
    "Calibration",
    "Candidate",
    "Categorical",
    "Comparison",
    "Curvature",
    "EquivarianceError",
    "Evidence",
    "FitResult",
    "Gaussian",
    "Identified",
    "LayerRanking",
    "OrbitDecomposition",
    "Ranking",
    "Schedule",
    "SharingStrength",
    "Trial",
    "annealed_evidence",
    "calibrate",
    "candidates",
    "compare",
    "data",
    "equivariance_error",
    "equivariance_errors",
    "evidence_gradient",
    "fit",
    "harden",
    "identify_group",
    "identify_groups",
    "layers",
    "linear_gaussian_evidence",
    "log_evidence",
    "models",
    "orbit_decomposition",
    "orbit_decompositions",
    "rank_agreement",
    "rivals",
    "select",
    "select_layers",
    "share",
    "sharing",
    "sharing_strength",
    "write_report",
]

"""bayesws: how much of its weights may each layer share? The evidence decides."""

from bayesws import analysis, data, evidence, layers, models, report, sharing, training, trials
from bayesws.analysis.annealing import annealed_evidence
from bayesws.analysis.calibration import calibrate
from bayesws.analysis.data_symmetries import candidates
from bayesws.analysis.decomposition import orbit_decomposition
from bayesws.analysis.equivariance import equivariance_error, equivariance_errors
from bayesws.analysis.strength import sharing_strength
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.forecast import forecast
from bayesws.evidence.gradient import evidence_gradient
from bayesws.evidence.likelihood import Categorical, Gaussian
from bayesws.evidence.objective import log_evidence
from bayesws.layers.convert import share
from bayesws.layers.export import harden
from bayesws.layers.identify import identify_group, identify_groups
from bayesws.layers.sharing_settings import Sharing
from bayesws.report import write_report
from bayesws.training import objectives
from bayesws.training.fit import fit
from bayesws.training.result import FitResult
from bayesws.training.schedule import Schedule
from bayesws.trials.compare import compare
from bayesws.trials.select import select
from bayesws.trials.select_layers import select_layers

__version__ = "0.1.0"

__all__ = [
    "Categorical",
    "Curvature",
    "FitResult",
    "Gaussian",
    "Schedule",
    "Sharing",
    "analysis",
    "annealed_evidence",
    "calibrate",
    "candidates",
    "compare",
    "data",
    "equivariance_error",
    "equivariance_errors",
    "evidence",
    "evidence_gradient",
    "fit",
    "forecast",
    "harden",
    "identify_group",
    "identify_groups",
    "layers",
    "log_evidence",
    "models",
    "objectives",
    "orbit_decomposition",
    "report",
    "select",
    "select_layers",
    "share",
    "sharing",
    "sharing_strength",
    "training",
    "trials",
    "write_report",
]

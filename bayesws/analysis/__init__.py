"""Reading results: comparison tables and pictures. Never trains."""

from bayesws.analysis.comparison import Comparison, Trial

__all__ = ["Comparison", "Trial"]

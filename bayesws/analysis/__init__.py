"""Reading results: comparison tables, groups and pictures. Never trains."""

from bayesws.analysis.comparison import Comparison, Trial
from bayesws.analysis.groups import Identified, Match, identify_group, identify_groups

__all__ = ["Comparison", "Identified", "Match", "Trial", "identify_group", "identify_groups"]

"""Reading results: comparison tables, groups, rankings and pictures. Never trains."""

from bayesws.analysis.comparison import Comparison, Trial
from bayesws.analysis.groups import Identified, Match, identify_group, identify_groups
from bayesws.analysis.ranking import Candidate, LayerRanking, Ranking

__all__ = [
    "Candidate",
    "Comparison",
    "Identified",
    "LayerRanking",
    "Match",
    "Ranking",
    "Trial",
    "identify_group",
    "identify_groups",
]

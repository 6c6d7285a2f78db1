"""Many fits: one value says what to train on what, one engine runs it, and results are compared."""

from bayesws.trials.comparison import Comparison
from bayesws.trials.ranking import Candidate, LayerRanking, Ranking
from bayesws.trials.records import Trial

__all__ = ["Candidate", "Comparison", "LayerRanking", "Ranking", "Trial"]

"""What a report can be about."""

from pathlib import Path

from bayesws.training.result import FitResult
from bayesws.trials.comparison import Comparison
from bayesws.trials.ranking import LayerRanking, Ranking

Run = str | Path | FitResult | Comparison | Ranking | LayerRanking  # a folder that a command wrote, or a result itself

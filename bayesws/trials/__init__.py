"""Many fits: one value says what to train on what, one engine runs it, and results are compared."""

from bayesws.trials.comparison import Comparison
from bayesws.trials.ranking import Candidate, LayerRanking, Ranking
from bayesws.trials.records import Trial
from bayesws.trials.summary import (
    cells_of,
    load_summary,
    records_in,
    save_summary,
    summary_of,
    trials_in,
)

__all__ = [
    "Candidate",
    "Comparison",
    "LayerRanking",
    "Ranking",
    "Trial",
    "cells_of",
    "load_summary",
    "records_in",
    "save_summary",
    "summary_of",
    "trials_in",
]

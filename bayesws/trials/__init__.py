"""Many fits: one value says what to train on what, one engine runs it, and results of the same data are compared."""

from bayesws.trials.comparable import log_bayes_factor
from bayesws.trials.comparison import Comparison, Summary
from bayesws.trials.engine import run
from bayesws.trials.ranking import LayerRanking, RankedNetwork, Ranking
from bayesws.trials.records import Trial
from bayesws.trials.spec import TrialSpec, train_and_score
from bayesws.trials.store import TrialLike
from bayesws.trials.summary import (
    cells_of,
    load_summary,
    records_in,
    save_summary,
    summary_of,
    trials_in,
)

__all__ = [
    "Comparison",
    "LayerRanking",
    "RankedNetwork",
    "Ranking",
    "Summary",
    "Trial",
    "TrialLike",
    "TrialSpec",
    "cells_of",
    "load_summary",
    "log_bayes_factor",
    "records_in",
    "run",
    "save_summary",
    "summary_of",
    "train_and_score",
    "trials_in",
]

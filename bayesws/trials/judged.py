"""Fits by one and the same estimator of the evidence, so that they may be held against each other."""

from dataclasses import replace
from typing import Any

import torch

from bayesws.evidence.curvature import Curvature
from bayesws.evidence.objective import log_evidence
from bayesws.training.result import FitResult
from bayesws.training.summaries import EvidenceSummary


@torch.no_grad()
def judged(fit: FitResult, data: Any, curvature: Curvature | None) -> FitResult:
    """A fit with its evidence, at its weights and precisions, by another curvature; and a note where rows are too few.

    Args:
        fit: any.
        data: that it was trained on, as for `fit`.
        curvature: as for `log_evidence`.

    Raises:
        ValueError: as `log_evidence`.
    """
    found = log_evidence(fit.model, data, fit.likelihood, curvature, prior=fit.prior)
    notes = (*fit.notes, *[found.too_few_rows] * found.saturated)
    return replace(fit, evidence=EvidenceSummary.of(found), notes=notes)

"""Which results may be held against each other: those of the same data whose numbers mean the same."""

import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Protocol

from bayesws.evidence.curvature import Curvature
from bayesws.training.result import FitResult

MEANING = 6  # of the numbers in a trial: raised when one is defined anew, or comes out otherwise at the same settings
DIGITS = 12  # of a digest, in messages and summaries


class Comparable(Protocol):
    """What a result knows of its data and of its numbers."""

    @property
    def data(self) -> str | None:
        """SHA-256 of the training data; None where none is known."""
        ...

    @property
    def meaning(self) -> int | None:
        """The `MEANING` that its numbers were computed by; None where none is known."""
        ...


@dataclass(frozen=True)
class Origin:
    """What a record knows of its data and of its numbers: see `Comparable`."""

    data: str | None
    meaning: int | None


def check_same_meaning(results: Iterable[tuple[str, Comparable]]) -> None:
    """Refuse results whose numbers do not mean the same.

    Args:
        results: each with what an error calls it.

    Raises:
        ValueError: two that differ in their meaning.
    """
    first: tuple[str, Comparable] | None = None
    for name, result in results:
        first = first or (name, result)
        if result.meaning != first[1].meaning:
            raise ValueError(
                f"{first[0]} has numbers of meaning {first[1].meaning}, {name} of meaning {result.meaning}: they "
                "cannot be compared; run the older one again with this version of bayesws"
            )


def check_same_data(results: Iterable[tuple[str, Comparable]]) -> None:
    """Refuse results of different training data: their evidences are no Bayes factor, their scores are not paired.

    Args:
        results: each with what an error calls it.

    Raises:
        ValueError: two with different digests, or one with a digest and one without.
    """
    first: tuple[str, Comparable] | None = None
    for name, result in results:
        first = first or (name, result)
        if result.data != first[1].data:
            raise ValueError(
                f"{first[0]} was trained on data {_shown(first[1].data)}, {name} on data {_shown(result.data)}: they "
                "cannot be compared; train both on the same data, given as tensors or a Dataset"
            )


def check_same_estimator(evidences: Iterable[tuple[str, Curvature | None]]) -> None:
    """Refuse evidences by different estimators: a bound less another one, or other columns, is no Bayes factor.

    Evidences on sampled columns and rows must be of the same ones, so curvatures are compared with their seeds.

    Args:
        evidences: what an error calls each, and the curvature that it was computed with; None where that is not known.

    Raises:
        ValueError: two that differ in anything.
    """
    first: tuple[str, Curvature | None] | None = None
    for name, curvature in evidences:
        first = first or (name, curvature)
        if curvature != first[1]:
            raise ValueError(
                f"{first[0]} has its evidence by {_named(first[1], curvature)}, {name} by "
                f"{_named(curvature, first[1])}: expected the same; use bayesws.log_evidence(model, data, likelihood, "
                "curvature, prior) for both"
            )


def doubt(results: Iterable[Comparable]) -> str | None:
    """One line where nobody can tell whether results are of the same data; None where their digests are known."""
    if any(result.data is not None for result in results):
        return None
    return "no digest of the training data is known: whether all were trained on the same cannot be told"


def log_bayes_factor(fit: FitResult, other: FitResult) -> float:
    """log p(D | fit) - log p(D | other), nats: above 0 the data prefer the first.

    Fits of a DataLoader have no digest of their data; two such are compared with a warning.

    Args:
        fit, other: of the same training data, by the same objective, with evidences by the same curvature.

    Raises:
        ValueError: fits of different data, whose precisions were set by different objectives, or with evidences by
            different curvatures (see `check_same_estimator`).
    """
    for one in (fit, other):
        if not isinstance(one, FitResult):
            raise ValueError(f"a {type(one).__name__} in the place of a fit: expected a FitResult, of bws.fit or load")
    first, second = fit.provenance.data, other.provenance.data
    if first != second:
        raise ValueError(
            f"a fit of data {_shown(first)} and one of data {_shown(second)}: evidences of different data are no Bayes "
            "factor; train both on the same data, given as tensors or a Dataset"
        )
    rules = fit.recipe.objective, other.recipe.objective
    if rules[0] != rules[1]:
        raise ValueError(
            f"a fit whose precisions were set by {rules[0]!r} and one by {rules[1]!r}: what their evidences differ by "
            "is no Bayes factor; train both by the same objective"
        )
    check_same_estimator((("the first fit", fit.evidence.curvature), ("the second", other.evidence.curvature)))
    if first is None:
        warnings.warn("fits of a DataLoader: whether both saw the same data cannot be told", stacklevel=2)
    return fit.log_evidence - other.log_evidence


def _named(curvature: Curvature | None, other: Curvature | None) -> str:
    """Its kind, and what else it does not have in common with another."""
    if curvature is None:
        return "a curvature that is not known"
    beside = None if other is None else asdict(other)
    told = {k: v for k, v in asdict(curvature).items() if k == "kind" or (beside is not None and beside[k] != v)}
    return f"Curvature({', '.join(f'{name}={value!r}' for name, value in told.items())})"


def _shown(digest: str | None) -> str:
    return "of which no digest is known" if digest is None else f"{digest[:DIGITS]}…"

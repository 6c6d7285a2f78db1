"""The Occam factor of rows that were drawn, corrected for what is too small of it.

With k columns drawn a datum, and m of N data, Ĥ has E[Ĥ] = H, and as log det is concave E[f(Ĥ)] is too small, for f the
Occam factor ½ log det(I + Λ⁻¹ Ĥ) or γ = -2 ∂f/∂log δ: by c of the order of γ / k of the columns, and by b (1/m - 1/N)
of the data. With one column less, or half of the drawn data, both known, these are (Quenouille 1956)

    Δ_columns = (k - 1) (f(Ĥ) - mean_j f(k/(k-1) (Ĥ - Ĥ_j))) ≈ c        Ĥ_j of column j
    Δ_data = f(Ĥ) - mean_h f(2 Ĥ_h)                         ≈ c + b / m    Ĥ_h of half h

and f(Ĥ) + (m/N) Δ_columns + (1 - m/N) Δ_data is right to this order: the halves say what both draws take away, as the
columns of half of the data, twice as heavy, err twice as much. Of one column nothing tells Δ_columns, and nothing is
corrected.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from bayesws.evidence.hessian import Hessian, LogPrecisions, sum_tensors

Block = tuple[int, int]  # column j and half h
HALVES = (0, 1)  # of the data that are drawn; where all have rows, they are in the first


@dataclass(frozen=True)
class Term:
    """One f of the sum that corrects f(Ĥ).

    Attributes:
        coefficient: of f.
        factor: of the sum of some Ĥ_jh, so that it stands for all.
        blocks: which these are; None for all.
    """

    coefficient: float
    factor: float = 1.0
    blocks: frozenset[Block] | None = None

    def has(self, block: Block) -> bool:
        """Whether it is among them."""
        return self.blocks is None or block in self.blocks


def terms_of(columns: int, share: float) -> tuple[Term, ...]:
    """The corrected f as a sum: Ĥ itself, then, of several columns, what is left without each, and each half of the
    data where these were drawn. The coefficients add up to one.

    Args:
        columns: k.
        share: m/N; 1 where all data have rows.

    >>> [(term.coefficient, term.factor) for term in terms_of(2, 1.0)]
    [(2.0, 1.0), (-0.5, 2.0), (-0.5, 2.0)]
    """
    if columns == 1:
        return (Term(1.0),)
    by_column, by_half = share * (columns - 1), 1 - share
    found = [Term(1 + by_column + by_half)]
    for j in range(columns):
        left = frozenset((i, h) for i in range(columns) for h in HALVES if i != j)
        found.append(Term(-by_column / columns, columns / (columns - 1), left))
    if share < 1:
        halves = [frozenset((j, half) for j in range(columns)) for half in HALVES]
        found += [Term(-by_half / 2, 2.0, half) for half in halves]
    return tuple(found)


@dataclass(frozen=True)
class Jackknifed:
    """H of rows that were drawn, with the Occam factor of `terms_of`.

    Attributes:
        terms: the coefficients, and what gives the Hessians, Ĥ first: made when asked for, as each is as large as Ĥ.
    """

    terms: tuple[tuple[float, Callable[[], Hessian]], ...]

    @property
    def whole(self) -> Hessian:
        """Ĥ."""
        return self.terms[0][1]()

    @property
    def near(self) -> Hessian:
        """The least of the others, which costs less and has nearly the same optimum."""
        return self.terms[-1][1]()

    def occam(self, log_precisions: LogPrecisions) -> Tensor:
        """The corrected ½ log det(I + Λ⁻¹ H), nats."""
        return sum_tensors(coefficient * of().occam(log_precisions) for coefficient, of in self.terms)

    def occam_by_pathway(self, log_precisions: LogPrecisions) -> dict[str, Tensor | None]:
        """The whole for a pathway alone; None for several."""
        shares = self.whole.occam_by_pathway(log_precisions)
        return shares if len(shares) > 1 else dict.fromkeys(shares, self.occam(log_precisions))

    def effective(self, log_precisions: LogPrecisions) -> dict[str, Tensor]:
        """The corrected γ by pathway."""
        found = [(coefficient, of().effective(log_precisions)) for coefficient, of in self.terms]
        names = list(found[0][1])
        return {name: sum_tensors(coefficient * gammas[name] for coefficient, gammas in found) for name in names}

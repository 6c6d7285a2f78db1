"""The Occam factor of sampled columns, corrected for what is too small of it.

With k columns drawn a datum Ĥ = Σ_j Ĥ_j has E[Ĥ] = H, and as log det is concave E[½ log det(I + Λ⁻¹ Ĥ)] is too small,
by a share of the order of γ / k. The jackknife (Quenouille 1956) takes that order away: with Ĥ₋ⱼ = k / (k-1) (Ĥ - Ĥ_j)

    k f(Ĥ) - (k-1)/k Σ_j f(Ĥ₋ⱼ)        f the Occam factor, or γ = -2 ∂f/∂log δ
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from bayesws.evidence.hessian import Hessian, LogPrecisions, sum_tensors


@dataclass(frozen=True)
class Jackknifed:
    """H of two or more sampled columns.

    Attributes:
        whole: Ĥ.
        columns: k.
        without: gives Ĥ₋ⱼ, j = 0, ..., k - 1; made when it is asked for, as it is nearly as large as Ĥ.
    """

    whole: Hessian
    columns: int
    without: Callable[[int], Hessian]

    def occam(self, log_precisions: LogPrecisions) -> Tensor:
        """The corrected ½ log det(I + Λ⁻¹ H), nats."""
        left = sum_tensors(self.without(j).occam(log_precisions) for j in range(self.columns))
        return self.columns * self.whole.occam(log_precisions) - self._share * left

    def occam_by_pathway(self, log_precisions: LogPrecisions) -> dict[str, Tensor | None]:
        """The whole for a pathway alone; None for several."""
        shares = self.whole.occam_by_pathway(log_precisions)
        return shares if len(shares) > 1 else dict.fromkeys(shares, self.occam(log_precisions))

    def effective(self, log_precisions: LogPrecisions) -> dict[str, Tensor]:
        """The corrected γ by pathway."""
        found = {name: self.columns * gamma for name, gamma in self.whole.effective(log_precisions).items()}
        for j in range(self.columns):
            for name, gamma in self.without(j).effective(log_precisions).items():
                found[name] = found[name] - self._share * gamma
        return found

    @property
    def _share(self) -> float:
        return (self.columns - 1) / self.columns

"""H in function space: what the evidence needs of a wide network, from rows that are fewer than its parameters.

With the rows Ĵ (R, P), a datum's (S_n ε_n)ᵀ J_n below each other, H = Ĵᵀ Ĵ. Let Ĵ_p be the columns of pathway p, and

    K_p = Ĵ_p Ĵ_pᵀ    B = I + Σ_p δ_p⁻¹ K_p    (R, R)

Then det(I + Λ⁻¹ H) = det B, by Sylvester's identity, and with every covariance between layers and pathways kept

    Occam = ½ log det B    γ_p = tr_p[H (H + Λ)⁻¹] = δ_p⁻¹ tr(B⁻¹ K_p) = -∂ log det B / ∂ log δ_p
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesws.evidence.capture import CACHED, Layers
from bayesws.evidence.hessian import DenseBlock, Hessian, LogPrecisions, cholesky
from bayesws.evidence.rows import DenseAccumulator
from bayesws.evidence.sums import Named, Sums


@dataclass(frozen=True)
class FunctionSpace:
    """H of all pathways jointly, by the Gram matrices of its rows.

    Attributes:
        grams: K_p (R, R) by pathway, in float64: R eigenvalues that lie many orders apart.
    """

    grams: dict[str, Tensor]

    @classmethod
    def of(cls, rows: Sequence[Tensor], sizes: dict[str, int]) -> "FunctionSpace":
        """From Ĵ, in parts (rows, P); differentiable in them.

        Args:
            sizes: number of parameters by pathway, in the order of the columns.
        """
        grams, start = {}, 0
        for name, size in sizes.items():
            grams[name] = gram(rows, start, start + size)
            start += size
        return cls(grams)

    def _factor(self, log_precisions: LogPrecisions) -> Tensor:
        """L with L Lᵀ = B."""
        some = next(iter(self.grams.values()))
        b = torch.eye(len(some), dtype=some.dtype, device=some.device)
        for name, gram in self.grams.items():
            b = torch.addcmul(b, (-log_precisions[name].double()).exp(), gram)
        return cholesky(b, self.grams)

    def occam(self, log_precisions: LogPrecisions) -> Tensor:
        """½ log det B, nats."""
        found = self._factor(log_precisions).diagonal().log().sum()
        return found.to(log_precisions[next(iter(self.grams))])

    def occam_by_pathway(self, log_precisions: LogPrecisions) -> dict[str, Tensor | None]:
        """The whole for a pathway alone; None for several: a coupled determinant has no shares."""
        if len(self.grams) == 1:
            return {name: self.occam(log_precisions) for name in self.grams}
        return dict.fromkeys(self.grams)

    def effective(self, log_precisions: LogPrecisions) -> dict[str, Tensor]:
        """δ_p⁻¹ tr(B⁻¹ K_p)."""
        inverse = torch.cholesky_inverse(self._factor(log_precisions)).flatten()
        return {
            name: (-log_precisions[name]).exp() * torch.dot(inverse, gram.flatten()).to(log_precisions[name])
            for name, gram in self.grams.items()
        }


def gram(rows: Sequence[Tensor], start: int, stop: int) -> Tensor:
    """Ĵ_p Ĵ_pᵀ of some columns, about as many at a time as rows: nothing beside it is larger than itself."""
    count = sum(map(len, rows))
    at_once, found = max(count, CACHED // count), rows[0].new_zeros(count, count, dtype=torch.float64)
    for first in range(start, stop, at_once):
        columns = torch.cat([part[:, first : min(stop, first + at_once)] for part in rows]).double()
        found = torch.addmm(found, columns, columns.mT)
    return found


class JointAccumulator(DenseAccumulator):
    """H of all pathways, as its rows (R, P) while they are fewer than the parameters, and from then on as H, (P, P)."""

    def __init__(self, layers: Layers, pathways: Named) -> None:
        super().__init__(layers, pathways)
        self._rows: list[Tensor] = []

    @property
    def sums(self) -> Sums:
        """H, or the rows that it follows from."""
        return replace(super().sums, rows={self.key: tuple(self._rows)} if self._rows else {})

    def add_rows(self, rows: Tensor) -> None:
        """Keep the rows, or what they add to H."""
        self._rows.append(rows)
        if self.key in self._tensors or sum(map(len, self._rows)) >= self.size:
            for some in self._rows:
                self.add_gram(self.key, some)
            self._rows = []

    def hessian(self, sums: Sums) -> Hessian | None:
        """In the smaller of the two spaces: parts may have summed what is large only together."""
        rows, matrix = sums.rows.get(self.key, ()), sums.tensors.get(self.key)
        if matrix is None and 0 < sum(map(len, rows)) < self.size:
            return FunctionSpace.of(rows, self.sizes)
        for some in rows:
            gram = some.mT @ some
            matrix = gram if matrix is None else matrix + gram
        return None if matrix is None else DenseBlock(matrix, self.sizes)

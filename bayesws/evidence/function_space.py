"""H in function space: what the evidence needs of a wide network, from rows that are fewer than its parameters.

With the rows Ĵ (R, P), a datum's (S_n ε_n)ᵀ J_n below each other, H = Ĵᵀ Ĵ. Let Ĵ_p be the columns of pathway p, and

    K_p = Ĵ_p Ĵ_pᵀ    B = I + Σ_p δ_p⁻¹ K_p    (R, R)

Then det(I + Λ⁻¹ H) = det B, by Sylvester's identity, and with every covariance between layers and pathways kept

    Occam = ½ log det B    γ_p = tr_p[H (H + Λ)⁻¹] = δ_p⁻¹ tr(B⁻¹ K_p) = -∂ log det B / ∂ log δ_p
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from bayesws.evidence.capture import CACHED, Layers
from bayesws.evidence.hessian import Hessian, LogPrecisions, cholesky
from bayesws.evidence.jackknife import Jackknifed
from bayesws.evidence.rows import DenseAccumulator
from bayesws.evidence.sums import Key, Named, Sums


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


def without_rows(space: FunctionSpace, start: int, stop: int, scale: float) -> FunctionSpace:
    """The same without some rows, and H of what is left times a scale."""
    some = next(iter(space.grams.values()))
    rows = torch.arange(len(some), device=some.device)
    kept = torch.cat([rows[:start], rows[stop:]])
    return FunctionSpace({name: scale * gram[kept][:, kept] for name, gram in space.grams.items()})


class JointAccumulator(DenseAccumulator):
    """H of all pathways, as its rows (R, P) while they are fewer than the parameters, and from then on as H, (P, P)."""

    def __init__(self, layers: Layers, pathways: Named, columns: int = 1) -> None:
        super().__init__(layers, pathways, columns)
        self._rows: dict[Key, list[Tensor]] = {}
        self._count = 0  # of rows, those that became H included

    @property
    def sums(self) -> Sums:
        """H, or the rows that it follows from."""
        return replace(super().sums, rows={key: tuple(rows) for key, rows in self._rows.items()})

    def add_rows(self, key: Key, rows: Tensor) -> None:
        """Keep the rows, or what they add to H."""
        self._rows.setdefault(key, []).append(rows)
        self._count += len(rows)
        if self._count >= self.size:
            for column, kept in self._rows.items():
                for some in kept:
                    self.add_gram(column, some)
            self._rows = {}

    def hessian(self, sums: Sums) -> Hessian | None:
        """In the smaller of the two spaces: parts may have summed what is large only together."""
        rows = {key: sums.rows[key] for key in self.keys if key in sums.rows}
        matrices = {key: sums.tensors[key] for key in self.keys if key in sums.tensors}
        counts = [sum(map(len, parts)) for parts in rows.values()]
        if not matrices and 0 < sum(counts) < self.size:
            return self._of_rows([some for parts in rows.values() for some in parts], counts)
        for key, parts in rows.items():
            for some in parts:
                gram = some.mT @ some
                matrices[key] = matrices[key] + gram if key in matrices else gram
        return self.of_matrices([matrices[key] for key in self.keys if key in matrices]) if matrices else None

    def _of_rows(self, rows: Sequence[Tensor], counts: Sequence[int]) -> Hessian:
        """From the rows of one column below those of the one before, and how many there are of each."""
        space, columns = FunctionSpace.of(rows, self.sizes), len(counts)
        if columns == 1:
            return space
        ends = [0, *accumulate(counts)]
        return Jackknifed(space, columns, lambda j: without_rows(space, ends[j], ends[j + 1], columns / (columns - 1)))

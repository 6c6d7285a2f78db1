"""H in function space: what the evidence needs of a wide network, from rows that are fewer than its parameters.

With the rows Ĵ (R, P), a datum's (S_n ε_n)ᵀ J_n below each other, H = Ĵᵀ Ĵ. Let Ĵ_p be the columns of pathway p, and

    K_p = Ĵ_p Ĵ_pᵀ    B = I + Σ_p δ_p⁻¹ K_p    (R, R)

Then det(I + Λ⁻¹ H) = det B, by Sylvester's identity, and with every covariance between layers and pathways kept

    Occam = ½ log det B    γ_p = tr_p[H (H + Λ)⁻¹] = δ_p⁻¹ tr(B⁻¹ K_p) = -∂ log det B / ∂ log δ_p
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from bayesws.evidence.capture import LayerIO, Layers, Signals
from bayesws.evidence.hessian import Hessian, LogPrecisions, cholesky
from bayesws.evidence.jackknife import Jackknifed
from bayesws.evidence.products import Rows, dense, gram, rows_of
from bayesws.evidence.rows import DenseAccumulator, Gradients
from bayesws.evidence.sums import Key, Named, Sums


@dataclass(frozen=True)
class FunctionSpace:
    """H of all pathways jointly, by the Gram matrices of its rows.

    Attributes:
        grams: K_p (R, R) by pathway, in float64: R eigenvalues that lie many orders apart.
    """

    grams: dict[str, Tensor]

    @classmethod
    def of(cls, rows: Mapping[str, Sequence[Rows]]) -> "FunctionSpace":
        """From Ĵ_p by pathway, in parts below each other; differentiable in them."""
        return cls({name: gram(parts) for name, parts in rows.items()})

    def _factor(self, log_precisions: LogPrecisions) -> Tensor:
        """L with L Lᵀ = B."""
        some = next(iter(self.grams.values()))
        b = torch.eye(len(some), dtype=some.dtype, device=some.device)
        for name, k in self.grams.items():
            b = torch.addcmul(b, (-log_precisions[name].double()).exp(), k)
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
            name: (-log_precisions[name]).exp() * torch.dot(inverse, k.flatten()).to(log_precisions[name])
            for name, k in self.grams.items()
        }


def without_rows(space: FunctionSpace, start: int, stop: int, scale: float) -> FunctionSpace:
    """The same without some rows, and H of what is left times a scale."""
    some = next(iter(space.grams.values()))
    rows = torch.arange(len(some), device=some.device)
    kept = torch.cat([rows[:start], rows[stop:]])
    return FunctionSpace({name: scale * k[kept][:, kept] for name, k in space.grams.items()})


class JointAccumulator(DenseAccumulator):
    """H of all pathways, as its rows while they are fewer than the parameters, and from then on as H, (P, P)."""

    def __init__(self, layers: Layers, pathways: Named, columns: int = 1) -> None:
        super().__init__(layers, pathways, columns)
        self._rows: dict[Key, list[Rows]] = {}
        self._count = 0  # of rows, those that became H included

    @property
    def sums(self) -> Sums:
        """H, or the rows that it follows from."""
        return replace(super().sums, rows={key: tuple(rows) for key, rows in self._rows.items()})

    def add_gradients(self, calls: dict[str, LayerIO], gradients: Gradients) -> None:
        """Keep the rows, those at one position as products; or what they add to H."""
        if self._count >= self.size:
            super().add_gradients(calls, gradients)
            return
        signals = self.signals(calls, gradients)
        if not signals:
            return
        columns = len(next(iter(signals.values())).responses)
        at_once = columns if len(self.keys) == 1 else 1
        for start in range(0, columns, at_once):
            self._keep({name: some.of_columns(start, start + at_once) for name, some in signals.items()})

    def hessian(self, sums: Sums) -> Hessian | None:
        """In the smaller of the two spaces: parts may have summed what is large only together."""
        rows = [{name: sums.rows.get((*key, name), ()) for name in self.sizes} for key in self.keys]
        matrices = {key: sums.tensors[key] for key in self.keys if key in sums.tensors}
        counts = [sum(map(len, next(iter(of_column.values())))) for of_column in rows]
        if not matrices and 0 < sum(counts) < self.size:
            return self._of_rows(rows, counts)
        for key, of_column in zip(self.keys, rows, strict=True):
            for some in _matrices(of_column):
                h = some.mT @ some
                matrices[key] = matrices[key] + h if key in matrices else h
        return self.of_matrices([matrices[key] for key in self.keys if key in matrices]) if matrices else None

    def _keep(self, signals: dict[str, Signals]) -> None:
        """Take in some columns, whose rows may be too many now: then all become H."""
        key = self.next_key()
        found = {name: rows_of(some) for name, some in signals.items()}
        count, like = len(next(iter(found.values()))), next(iter(signals.values())).responses
        for name, size in self.sizes.items():
            rows = found[name] if name in found else like.new_zeros(count, size)
            self._rows.setdefault((*key, name), []).append(rows)
        self._count += count
        if self._count >= self.size:
            for column in self.keys:
                for some in _matrices({name: self._rows.get((*column, name), ()) for name in self.sizes}):
                    self.add_gram(column, some)
            self._rows = {}

    def _of_rows(self, columns: Sequence[Mapping[str, Sequence[Rows]]], counts: Sequence[int]) -> Hessian:
        """From the rows of one column below those of the one before, and how many there are of each."""
        space = FunctionSpace.of({name: [some for rows in columns for some in rows[name]] for name in self.sizes})
        k, ends = len(counts), [0, *accumulate(counts)]
        if k == 1:
            return space
        return Jackknifed(space, k, lambda j: without_rows(space, ends[j], ends[j + 1], k / (k - 1)))


def _matrices(rows: Mapping[str, Sequence[Rows]]) -> Iterator[Tensor]:
    """The rows of all pathways beside each other, (rows, P), part by part."""
    for parts in zip(*rows.values(), strict=True):
        yield torch.cat([dense(some) for some in parts], -1)

"""H in function space: what the evidence needs of a wide network, from rows that are fewer than its parameters.

With the rows Ĵ (R, P), a datum's (S_n ε_n)ᵀ J_n below each other, H = Ĵᵀ Ĵ. Let Ĵ_p be the columns of pathway p, and

    K_p = Ĵ_p Ĵ_pᵀ    B = I + Σ_p δ_p⁻¹ K_p    (R, R)

Then det(I + Λ⁻¹ H) = det B, by Sylvester's identity, and with every covariance between layers and pathways kept

    Occam = ½ log det B    γ_p = tr_p[H (H + Λ)⁻¹] = δ_p⁻¹ tr(B⁻¹ K_p) = -∂ log det B / ∂ log δ_p
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesws.evidence.capture import LayerIO, Layers
from bayesws.evidence.hessian import Hessian, LogPrecisions, cholesky, sum_tensors
from bayesws.evidence.jackknife import Block, Term, terms_of
from bayesws.evidence.products import Rows, dense, gram, rows_of
from bayesws.evidence.rows import DenseAccumulator, Gradients
from bayesws.evidence.sums import Key, Named, Sums


@dataclass(frozen=True)
class Part:
    """A multiple of the H of some rows, as a term of the Occam factor.

    Attributes:
        coefficient: of its Occam factor, see `jackknife`.
        factor: of H.
        rows: places of the rows that count, (n,); None for all.
    """

    coefficient: float = 1.0
    factor: float = 1.0
    rows: Tensor | None = None

    def of(self, matrix: Tensor) -> Tensor:
        """The entries (n, n) of a matrix (R, R)."""
        return matrix if self.rows is None else matrix[self.rows][:, self.rows]


@dataclass(frozen=True)
class FunctionSpace:
    """H of all pathways jointly, by the Gram matrices of its rows.

    Attributes:
        grams: K_p (R, R) by pathway, in float64: R eigenvalues that lie many orders apart.
        parts: what the Occam factor is the sum of.
    """

    grams: dict[str, Tensor]
    parts: tuple[Part, ...] = (Part(),)

    @classmethod
    def of(cls, rows: Mapping[str, Sequence[Rows]]) -> "FunctionSpace":
        """From Ĵ_p by pathway, in parts below each other; differentiable in them."""
        return cls({name: gram(parts) for name, parts in rows.items()})

    @property
    def near(self) -> "FunctionSpace | None":
        """H of the least of several parts, which costs less and has nearly the same optimum."""
        return replace(self, parts=(replace(self.parts[-1], coefficient=1.0),)) if len(self.parts) > 1 else None

    def _factors(self, log_precisions: LogPrecisions) -> Iterator[tuple[Part, Tensor]]:
        """L with L Lᵀ = B of every part."""
        total = torch.zeros_like(next(iter(self.grams.values())))
        for name, k in self.grams.items():
            total = torch.addcmul(total, (-log_precisions[name].double()).exp(), k)
        for part in self.parts:
            b = part.factor * part.of(total)
            yield part, cholesky(b + torch.eye(len(b), dtype=b.dtype, device=b.device), self.grams)

    def occam(self, log_precisions: LogPrecisions) -> Tensor:
        """½ log det B, nats."""
        factors = self._factors(log_precisions)
        found = sum_tensors(part.coefficient * factor.diagonal().log().sum() for part, factor in factors)
        return found.to(log_precisions[next(iter(self.grams))])

    def occam_by_pathway(self, log_precisions: LogPrecisions) -> dict[str, Tensor | None]:
        """The whole for a pathway alone; None for several: a coupled determinant has no shares."""
        if len(self.grams) > 1:
            return dict.fromkeys(self.grams)
        return {name: self.occam(log_precisions) for name in self.grams}

    def effective(self, log_precisions: LogPrecisions) -> dict[str, Tensor]:
        """γ_p = δ_p⁻¹ tr(B⁻¹ K_p): the parts' inverses are added first."""
        inverse = torch.zeros_like(next(iter(self.grams.values())))
        for part, factor in self._factors(log_precisions):
            some = part.coefficient * part.factor * torch.cholesky_inverse(factor)
            places = None if part.rows is None else (part.rows[:, None], part.rows)
            inverse = inverse + some if places is None else inverse.index_put(places, some, accumulate=True)
        flat = inverse.flatten()
        return {
            name: (-log_precisions[name]).exp() * torch.dot(flat, k.flatten()).to(log_precisions[name])
            for name, k in self.grams.items()
        }


class JointAccumulator(DenseAccumulator):
    """H of all pathways, as its rows while they are fewer than the parameters, and from then on as H, (P, P)."""

    def __init__(self, layers: Layers, pathways: Named, columns: int = 1, drawn: bool = False) -> None:
        super().__init__(layers, pathways, columns, drawn)
        self._rows: dict[Key, list[Rows]] = {}
        self._count = 0  # of rows, those that became H included

    @property
    def sums(self) -> Sums:
        """H, or the rows that it follows from."""
        return replace(super().sums, rows={key: tuple(rows) for key, rows in self._rows.items()})

    def add_gradients(self, calls: dict[str, LayerIO], gradients: Gradients) -> None:
        """Keep the rows, those at one position as products; or what they add to H, once they are too many."""
        if self._count >= self.size:
            super().add_gradients(calls, gradients)
            return
        for key, signals in self.signals_by_key(calls, gradients):
            found = {name: rows_of(some) for name, some in signals.items()}
            count, like = len(next(iter(found.values()))), next(iter(signals.values())).responses
            for name, size in self.sizes.items():
                rows = found[name] if name in found else like.new_zeros(count, size)
                self._rows.setdefault((*key, name), []).append(rows)
            self._count += count
        if self._count >= self.size:
            kept, self._rows = self._rows, {}
            for key in self.keys.values():
                for some in self._matrices(kept, key):
                    self.add_gram(key, some)

    def hessian(self, sums: Sums) -> Hessian | None:
        """In the smaller of the two spaces: parts may have summed what is large only together."""
        first = next(iter(self.sizes))
        counts = {block: sum(map(len, sums.rows.get((*key, first), ()))) for block, key in self.keys.items()}
        matrices = {block: sums.tensors[key] for block, key in self.keys.items() if key in sums.tensors}
        if not matrices and 0 < sum(counts.values()) < self.size:
            return self._of_rows(sums, {block: count for block, count in counts.items() if count})
        for block, key in self.keys.items():
            for some in self._matrices(sums.rows, key):
                h = some.mT @ some
                matrices[block] = matrices[block] + h if block in matrices else h
        return self.of_matrices(matrices, sums) if matrices else None

    def _of_rows(self, sums: Sums, counts: dict[Block, int]) -> Hessian:
        """From the rows of one column and half below those of the one before, and how many there are of each."""
        keys = [self.keys[block] for block in counts]
        space = FunctionSpace.of({n: [some for key in keys for some in sums.rows[(*key, n)]] for n in self.sizes})
        terms = terms_of(self.columns, self.share(sums, counts))
        device = next(iter(space.grams.values())).device
        spans = torch.arange(sum(counts.values()), device=device).split(list(counts.values()))
        places = dict(zip(counts, spans, strict=True))

        def part(term: Term) -> Part:
            rows = None if term.blocks is None else torch.cat([places[b] for b in counts if term.has(b)])
            return Part(term.coefficient, term.factor, rows)

        return replace(space, parts=tuple(map(part, terms)))

    def _matrices(self, rows: Mapping[Key, Sequence[Rows]], key: Key) -> Iterator[Tensor]:
        """The rows of all pathways beside each other, (rows, P), part by part."""
        for parts in zip(*(rows.get((*key, name), ()) for name in self.sizes), strict=True):
            yield torch.cat([dense(some) for some in parts], -1)

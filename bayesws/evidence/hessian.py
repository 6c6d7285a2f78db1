"""H in the form that the Occam factor needs: eigenvalues, or dense blocks.

Two questions for given log precisions Λ: the Occam factor ½ log det(I + Λ⁻¹ H), in nats, and how many parameters of
each pathway the data determines, γ_p = tr_p[H (H + Λ)⁻¹]. What they need of H is computed once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from bayesws.evidence.nesting import Nested, log_lambdas, log_outside, outermost_first

LogPrecisions = Mapping[str, Tensor]


class Hessian(Protocol):
    """H, in the form that the Occam factor needs."""

    def occam(self, log_precisions: LogPrecisions) -> Tensor:
        """½ log det(I + Λ⁻¹ H), nats."""
        ...

    def occam_by_pathway(self, log_precisions: LogPrecisions) -> dict[str, Tensor | None]:
        """Its share by pathway; None where pathways are coupled and have no share of their own."""
        ...

    def effective(self, log_precisions: LogPrecisions) -> dict[str, Tensor]:
        """γ by pathway, the effective number of parameters."""
        ...


@dataclass(frozen=True)
class Spectra:
    """H as its eigenvalues, pathway by pathway: those of Kronecker blocks (a_i b_j), or a diagonal.

    A pathway within another one's directions (see `nesting`), h its eigenvalues, adds what it has beyond the other's:

        Occam = ½ Σ log(1 + h/λ) - ½ Σ log(1 + h/κλ')        1/λ = 1/δ + 1/κλ'

    As h/(1 + h/κλ') is operator concave in H, that is at most its share with separate blocks, ½ Σ log(1 + h/δ), and
    where h are the eigenvalues of Rᵀ H R, at least its share in the exact determinant.

    Attributes:
        eigenvalues: by pathway name, (number of parameters,), not negative.
        within: by inner pathway, its outer one and κ.
    """

    eigenvalues: dict[str, Tensor]
    within: Nested = field(default_factory=dict)

    def occam_by_pathway(self, log_precisions: LogPrecisions) -> dict[str, Tensor | None]:
        """½ Σ log(1 + h/δ) for every pathway, of nested ones ½ Σ log(1 + (h/δ) / (1 + h/κλ')), nats."""
        lambdas = self._log_lambdas(log_precisions)
        shares: dict[str, Tensor | None] = {}
        for name, values in self.eigenvalues.items():
            ratio = values * (-log_precisions[name]).exp()
            if name in self.within:
                ratio = ratio / (1 + values * (-log_outside(name, lambdas, self.within)).exp())
            shares[name] = 0.5 * torch.log1p(ratio).sum()
        return shares

    def occam(self, log_precisions: LogPrecisions) -> Tensor:
        """The sum over pathways, nats."""
        return sum_tensors(self.occam_by_pathway(log_precisions).values())

    def effective(self, log_precisions: LogPrecisions) -> dict[str, Tensor]:
        """Σ h / (h + δ) for every pathway; -2 ∂Occam/∂log δ of nested ones, which take from each other."""
        lambdas = self._log_lambdas(log_precisions)
        found: dict[str, Tensor] = {}
        taken = {name: values.new_zeros(()) for name, values in self.eigenvalues.items()}
        for name in reversed(outermost_first(self.eigenvalues, self.within)):  # inner ones first
            values = self.eigenvalues[name]
            own = (values / (values + lambdas[name].exp())).sum() + taken[name]
            found[name] = own * (lambdas[name] - log_precisions[name]).exp()
            if name in self.within:
                # what the outer pathway determines there by itself, and what is left of it: c/(1+c) - c/(1+c+s)
                outside = log_outside(name, lambdas, self.within)
                c, s = values * (-outside).exp(), values * (-log_precisions[name]).exp()
                left = taken[name] * (lambdas[name] - outside).exp()
                taken[self.within[name][0]] = taken[self.within[name][0]] + left - (c * s / (1 + c) / (1 + c + s)).sum()
        return {name: found[name] for name in self.eigenvalues}

    def _log_lambdas(self, log_precisions: LogPrecisions) -> dict[str, Tensor]:
        return log_lambdas({name: log_precisions[name] for name in self.eigenvalues}, self.within)


@dataclass(frozen=True)
class DenseBlock:
    """The block of H of one or several pathways whole, (P, P).

    Attributes:
        matrix: H.
        sizes: number of parameters by pathway, in the order of the rows.
    """

    matrix: Tensor
    sizes: dict[str, int]

    def _scaled(self, log_precisions: LogPrecisions) -> Tensor:
        sd = torch.cat([(-0.5 * log_precisions[name]).exp().expand(size) for name, size in self.sizes.items()])
        return sd[:, None] * self.matrix * sd

    def occam(self, log_precisions: LogPrecisions) -> Tensor:
        """½ log det(I + Λ^-½ H Λ^-½), nats."""
        return cholesky(_plus_one(self._scaled(log_precisions)), self.sizes).diagonal().log().sum()

    def occam_by_pathway(self, log_precisions: LogPrecisions) -> dict[str, Tensor | None]:
        """The whole for a pathway alone; None for several: a coupled determinant has no shares."""
        if len(self.sizes) == 1:
            return {name: self.occam(log_precisions) for name in self.sizes}
        return dict.fromkeys(self.sizes)

    def spectrum(self) -> dict[str, Tensor]:
        """Its eigenvalues, where it is of one pathway."""
        (name,) = self.sizes
        return {name: torch.linalg.eigvalsh(self.matrix).clamp(min=0)}

    def effective(self, log_precisions: LogPrecisions) -> dict[str, Tensor]:
        """Σ_i [(I + M)⁻¹ M]_ii over each pathway's rows, M = Λ^-½ H Λ^-½."""
        scaled = self._scaled(log_precisions)
        inverse = torch.cholesky_inverse(cholesky(_plus_one(scaled), self.sizes))
        # not 1 - [(I + M)⁻¹]_ii, which has no digits left of a pathway that its precision closes
        shares = (inverse * scaled).sum(-1).split(list(self.sizes.values()))
        return {name: share.sum() for name, share in zip(self.sizes, shares, strict=True)}


@dataclass(frozen=True)
class BlockDiagonal:
    """H as a direct sum of parts; the covariances between them are left out (Fischer's inequality: a lower bound)."""

    parts: tuple[Hessian, ...]

    def occam(self, log_precisions: LogPrecisions) -> Tensor:
        """The sum over the parts, nats."""
        return sum_tensors(part.occam(log_precisions) for part in self.parts)

    def occam_by_pathway(self, log_precisions: LogPrecisions) -> dict[str, Tensor | None]:
        """That of the parts."""
        return {name: v for part in self.parts for name, v in part.occam_by_pathway(log_precisions).items()}

    def effective(self, log_precisions: LogPrecisions) -> dict[str, Tensor]:
        """That of the parts."""
        return {name: v for part in self.parts for name, v in part.effective(log_precisions).items()}

    @cached_property
    def eigenvalues(self) -> dict[str, Tensor]:
        """Those of the parts that are known by their eigenvalues."""
        return {name: v for part in self.parts if isinstance(part, Spectra) for name, v in part.eigenvalues.items()}


@dataclass(frozen=True)
class Repeated:
    """The subset bound: the Occam factor of a subset's H, as often as the subset goes into the data (2306.03968).

    Attributes:
        hessian: that of the subset alone.
        times: N / m.
    """

    hessian: Hessian
    times: float

    def occam(self, log_precisions: LogPrecisions) -> Tensor:
        """N/m · ½ log det(I + Λ⁻¹ H_S), nats."""
        return self.times * self.hessian.occam(log_precisions)

    def occam_by_pathway(self, log_precisions: LogPrecisions) -> dict[str, Tensor | None]:
        """N/m times the subset's."""
        shares = self.hessian.occam_by_pathway(log_precisions)
        return {name: None if share is None else self.times * share for name, share in shares.items()}

    def effective(self, log_precisions: LogPrecisions) -> dict[str, Tensor]:
        """N/m times the subset's: what makes δ = γ / ‖θ‖² the stationary point of the bound."""
        return {name: self.times * gamma for name, gamma in self.hessian.effective(log_precisions).items()}


def sum_tensors(values: Iterable[Tensor | None]) -> Tensor:
    """Sum of scalar tensors; zero where there are none."""
    found = [value for value in values if value is not None]
    return torch.stack(found).sum() if found else torch.zeros(())


def cholesky(matrix: Tensor, pathways: Iterable[str]) -> Tensor:
    """The lower triangular factor of I + Λ⁻¹ H, or of what has its determinant.

    Raises:
        FloatingPointError: a matrix that is not positive definite by its type's digits.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed.any():
        raise FloatingPointError(
            f"I + Λ⁻¹ H of {', '.join(pathways)} is not positive definite in {matrix.dtype}: "
            "use float64, or curvature='kron'"
        )
    return factor


def _plus_one(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device) + matrix

"""H in the form that the Occam factor needs: eigenvalues, or dense blocks.

Two questions for given log precisions Λ: the Occam factor ½ log det(I + Λ⁻¹ H), in nats, and how many parameters of
each pathway the data determines, γ_p = tr_p[H (H + Λ)⁻¹]. What they need of H is computed once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

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

    Attributes:
        eigenvalues: by pathway name, (number of parameters,), not negative.
    """

    eigenvalues: dict[str, Tensor]

    def occam_by_pathway(self, log_precisions: LogPrecisions) -> dict[str, Tensor | None]:
        """½ Σ log(1 + λ / δ) for every pathway, nats."""
        return {
            name: 0.5 * torch.log1p(values * (-log_precisions[name]).exp()).sum()
            for name, values in self.eigenvalues.items()
        }

    def occam(self, log_precisions: LogPrecisions) -> Tensor:
        """The sum over pathways, nats."""
        return sum_tensors(self.occam_by_pathway(log_precisions).values())

    def effective(self, log_precisions: LogPrecisions) -> dict[str, Tensor]:
        """Σ λ / (λ + δ) for every pathway."""
        return {
            name: (values / (values + log_precisions[name].exp())).sum() for name, values in self.eigenvalues.items()
        }


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
        return torch.eye(len(sd), dtype=sd.dtype, device=sd.device) + sd[:, None] * self.matrix * sd

    def occam(self, log_precisions: LogPrecisions) -> Tensor:
        """½ log det(I + Λ^-½ H Λ^-½), nats."""
        return cholesky(self._scaled(log_precisions), self.sizes).diagonal().log().sum()

    def occam_by_pathway(self, log_precisions: LogPrecisions) -> dict[str, Tensor | None]:
        """The whole for a pathway alone; None for several: a coupled determinant has no shares."""
        if len(self.sizes) == 1:
            return {name: self.occam(log_precisions) for name in self.sizes}
        return dict.fromkeys(self.sizes)

    def effective(self, log_precisions: LogPrecisions) -> dict[str, Tensor]:
        """Σ_i (1 - [(I + Λ^-½ H Λ^-½)⁻¹]_ii) over each pathway's rows."""
        inverse = torch.cholesky_inverse(cholesky(self._scaled(log_precisions), self.sizes))
        shares = (1 - inverse.diagonal()).split(list(self.sizes.values()))
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

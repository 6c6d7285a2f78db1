"""Anchors2d: functions of a grid's positions, known at a few of them and interpolated between."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.io.arguments import positive, whole
from bayesws.layers.cache import Deriving
from bayesws.layers.contract import Status, Structure
from bayesws.layers.linear2d import pair_of


class Anchors2d(Deriving):
    """P = K_tz (K_zz + s² I)⁻¹: from values at anchors z to values at all positions t of a grid.

    K has the entries exp(-‖a - b‖² / 2ℓ²), with the distance between neighbours as unit. The lengthscale ℓ is a
    hyperparameter that the evidence learns, and so are the anchors' places where `learn_places`: the longer ℓ, the
    smoother what the anchors can say.

    Args:
        size: of the grid, one number or height and width.
        count: of anchors, at most the grid's positions. They start at positions of the grid, one after the other where
            those so far say least.
        lengthscale: ℓ at the start.
        noise: s.
        learn_places: whether the anchors move.
        device, dtype: as for `torch.nn.Linear`.

    Parameters: `log_lengthscale`, scalar; `places` (count, 2), rows and columns.

    Raises:
        ValueError: sizes below one, more anchors than positions, a lengthscale or noise that is not positive.

    Reference: arXiv 2310.06131 (sparse layers; lengthscale 1, s = 0.01).

    >>> Anchors2d(3, 4).places.tolist()
    [[1.0, 1.0], [0.0, 0.0], [0.0, 2.0], [2.0, 0.0]]
    """

    grid: Tensor

    def __init__(
        self,
        size: int | Sequence[int],
        count: int,
        lengthscale: float = 1.0,
        noise: float = 0.01,
        learn_places: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.size = pair_of("size", size)
        positions = math.prod(self.size)
        whole("anchors", count)
        if count > positions:
            raise ValueError(f"anchors={count}: expected at most {positions}, the positions of a grid of {self.size}")
        positive("lengthscale", lengthscale)
        positive("noise", noise)
        self.noise = noise
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        grid = torch.cartesian_prod(*(torch.arange(float(side), dtype=torch.float64) for side in self.size))
        self.log_lengthscale = nn.Parameter(torch.full((), math.log(lengthscale), **new))
        self.register_buffer("grid", grid.to(self.log_lengthscale), persistent=False)
        self.places = nn.Parameter(self.grid[_spread(grid, count)].clone(), requires_grad=learn_places)

    @property
    def count(self) -> int:
        """How many anchors there are."""
        return len(self.places)

    def interpolation(self) -> Float[Tensor, "positions anchors"]:
        """P."""
        return self.derive("interpolation", self._interpolation)

    def _interpolation(self) -> Tensor:
        between = self._kernel(self.places, self.places)
        ridge = self.noise**2 * torch.eye(self.count, dtype=between.dtype, device=between.device)
        return torch.linalg.solve(between + ridge, self._kernel(self.grid, self.places), left=False)

    def _kernel(self, a: Tensor, b: Tensor) -> Tensor:
        squares = (a[:, None] - b).square().sum(-1)
        return torch.exp(-0.5 * squares * torch.exp(-2 * self.log_lengthscale))

    @torch.no_grad()
    def values_for(self, values: Float[Tensor, "... positions"]) -> Float[Tensor, "... anchors"]:
        """The values at the anchors whose interpolation is nearest to these at all positions, by least squares."""
        p = self.interpolation()  # nearly the identity at the anchors, so that Pᵀ P is well conditioned
        return torch.linalg.solve(p.mT @ p, values @ p, left=False)

    def extra_repr(self) -> str:
        """Grid and number of anchors."""
        return f"{self.size}, {self.count}"


def structure_of(anchors: Sequence[Anchors2d]) -> Structure | None:
    """What a layer with these anchors declares: their lengthscales, and their places where they move."""
    found = [p for a in anchors for p in (a.log_lengthscale, a.places) if p is a.log_lengthscale or p.requires_grad]

    def status() -> Status:
        with torch.no_grad():
            return Status(torch.cat([p.exp().reshape(1) if p.ndim == 0 else p.flatten() for p in found]))

    return Structure(tuple(found), {}, status) if found else None


def _spread(grid: Tensor, count: int) -> list[int]:
    """Indices of positions, from the centre on, one after the other where those so far leave the largest variance of a
    function with ℓ = 1: the pivots of a Cholesky factor of K."""
    k = torch.exp(-0.5 * (grid[:, None] - grid).square().sum(-1))
    from_centre = (grid - grid.mean(0)).square().sum(-1)
    chosen = [int(from_centre.argmin())]
    while len(chosen) < count:
        known = k[:, chosen]
        left = 1 - (torch.linalg.solve(k[chosen][:, chosen], known, left=False) * known).sum(-1)
        left[chosen] = -1.0
        chosen.append(int((left > left.max() - 1e-9).nonzero()[0]))
    return chosen

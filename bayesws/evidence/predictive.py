"""The posterior predictive: what a Gaussian over a network's outputs says of the data to come."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

DRAWS = 1024  # of a Sobol sequence: the error of a probability is below 0.005
AT_ONCE = 64


def average_over_outputs(
    function: Callable[[Tensor], Tensor],
    mean: Float[Tensor, "batch out"],
    covariance: Float[Tensor, "batch out out"],
) -> Tensor:
    """E[function(f)] for outputs f ~ N(mean, covariance), such as class probabilities of logits.

    Taken over a fixed quasi-random sequence, so that it is the same in every run and batch.

    Args:
        function: of outputs (batch, out).
        mean, covariance: of the outputs of every datum.

    >>> half = average_over_outputs(torch.sigmoid, torch.zeros(1, 1), torch.ones(1, 1, 1))
    >>> f"{half.item():.3f}"
    '0.500'
    """
    normals, root = _normals(mean.shape[1]).to(mean), _root(covariance)
    parts = [
        torch.func.vmap(function)(mean + torch.einsum("bij,sj->sbi", root, some)).sum(0)
        for some in normals.split(AT_ONCE)
    ]
    return torch.stack(parts).sum(0) / len(normals)


def _normals(dimension: int) -> Tensor:
    """DRAWS quasi-random standard normal vectors."""
    uniform = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=0).draw(DRAWS, dtype=torch.float64)
    return torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))


def _root(covariance: Tensor) -> Tensor:
    """S with S Sᵀ = covariance, which may be singular."""
    values, vectors = torch.linalg.eigh(covariance.double())
    return (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)).to(covariance)

"""The posterior predictive: what a Gaussian over a network's outputs says of the data to come."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from bayesws.evidence.likelihood import Categorical, Gaussian

DRAWS = 1024  # of a Sobol sequence: the error of a probability is below 0.005


def mean_probabilities(
    mean: Float[Tensor, "batch classes"], covariance: Float[Tensor, "batch classes classes"]
) -> Float[Tensor, "batch classes"]:
    """E[softmax(f)] for logits f ~ N(mean, covariance).

    Taken over a fixed quasi-random sequence, so that it is the same in every run and batch.
    """
    normals = _normals(mean.shape[1]).to(mean)
    root = _root(covariance)
    total = torch.zeros_like(mean)
    for part in normals.split(64):
        total += (mean + torch.einsum("bij,sj->sbi", root, part)).softmax(-1).sum(0)
    return total / len(normals)


def predictive_log_prob(
    likelihood: Categorical | Gaussian,
    mean: Float[Tensor, "batch out"],
    covariance: Float[Tensor, "batch out out"],
    targets: Tensor,
) -> Tensor:
    """Summed log p(y | x, D), nats: log E[softmax(f)]_y, or log N(y; mean, covariance + σ² I)."""
    if isinstance(likelihood, Gaussian):
        outputs = mean.shape[1]
        noise = (2 * likelihood.log_noise.to(mean)).exp()
        factor = torch.linalg.cholesky((covariance + noise * torch.eye(outputs).to(mean)).double())
        residual = (targets.flatten(1) - mean).double().unsqueeze(-1)
        squares = torch.linalg.solve_triangular(factor, residual, upper=False).square().sum()
        log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum()
        return -0.5 * (squares + log_det + mean.numel() * math.log(2 * math.pi))
    probabilities = mean_probabilities(mean, covariance)
    tiny = torch.finfo(mean.dtype).tiny
    return probabilities.gather(1, targets.long().unsqueeze(1)).clamp(min=tiny).log().sum()


def _normals(dimension: int) -> Tensor:
    """DRAWS quasi-random standard normal vectors."""
    uniform = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=0).draw(DRAWS, dtype=torch.float64)
    return torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))


def _root(covariance: Tensor) -> Tensor:
    """S with S Sᵀ = covariance, which may be singular."""
    values, vectors = torch.linalg.eigh(covariance.double())
    return (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)).to(covariance)

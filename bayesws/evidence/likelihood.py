"""Likelihoods: log p(y | f) in nats, and a root of the Hessian of -log p in the network's outputs f."""

import math
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Likelihood(Protocol):
    """What the evidence needs of a likelihood."""

    name: str

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError for outputs that are not finite and targets that do not fit them."""
        ...

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Summed over the batch, nats; nothing is checked here."""
        ...

    def hessian_root(self, outputs: Tensor) -> Tensor:
        """S (batch, C, columns) with S Sᵀ = -∂² log p / ∂f²."""
        ...

    def hyperparameters(self) -> list[nn.Parameter]:
        """What the evidence may learn of the likelihood itself."""
        ...


class Categorical:
    """log p(y | f) = f_y - logsumexp(f), with Hessian diag(p) - p pᵀ, p = softmax(f)."""

    name = "classification"

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError for outputs that are not finite (batch, classes), or labels that do not fit them."""
        _check_finite(outputs)
        if outputs.ndim != 2:
            raise ValueError(f"outputs of shape {tuple(outputs.shape)}: expected (batch, classes) logits")
        if targets.dtype not in (torch.int64, torch.int32, torch.uint8) or targets.shape != outputs.shape[:1]:
            raise ValueError(
                f"labels of shape {tuple(targets.shape)} and type {targets.dtype}: expected "
                f"({outputs.shape[0]},) integers"
            )
        classes = outputs.shape[1]
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
            raise ValueError(
                f"labels from {int(targets.min())} to {int(targets.max())}: expected 0 to {classes - 1} "
                f"for a network with {classes} outputs"
            )

    def log_prob(self, outputs: Float[Tensor, "batch classes"], targets: Tensor) -> Tensor:
        """Summed log probability of integer labels (batch,), nats; see `check`."""
        return -nn.functional.cross_entropy(outputs, targets.long(), reduction="sum")

    def hessian_root(self, outputs: Tensor) -> Tensor:
        """S (batch, C, C-1) with columns √p_j (e_j - p) - √(p_j p_C) / (1 + √p_C) (e_C - p), j < C.

        These are the first columns of (diag(√p) - p √pᵀ) Q with Q the reflection that takes √p to -e_C; the last one
        is zero, as √p spans the null space. Hence S Sᵀ = diag(p) - p pᵀ with one backward pass less.
        """
        log_p = outputs.log_softmax(-1)
        p, root = log_p.exp(), (0.5 * log_p).exp()
        last = root[:, -1:]
        centred = torch.diag_embed(torch.ones_like(p)) - p.unsqueeze(-1)  # column j: e_j - p
        tail = (last / (1 + last)).unsqueeze(-1) * centred[:, :, -1:]
        return root[:, None, :-1] * (centred[:, :, :-1] - tail)

    def hyperparameters(self) -> list[nn.Parameter]:
        """None: softmax has no scale of its own."""
        return []

    def mean(self, outputs: Tensor) -> Tensor:
        """Class probabilities."""
        return outputs.softmax(-1)


class Gaussian:
    """log p(y | f) = -Σ (y - f)² / 2σ² - C log σ - C/2 log 2π, with Hessian I / σ² and σ learned.

    Args:
        noise: σ at the start, in the units of the targets.

    Raises:
        ValueError: noise that is not positive.
    """

    name = "regression"

    def __init__(self, noise: float = 1.0, learn: bool = True, dtype: torch.dtype | None = None) -> None:
        if not noise > 0:
            raise ValueError(f"noise={noise}: expected a positive standard deviation")
        self.log_noise = nn.Parameter(torch.tensor(math.log(noise), dtype=dtype), requires_grad=learn)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError for shapes that differ and values that are not finite."""
        _check_finite(outputs)
        if outputs.shape != targets.shape:
            raise ValueError(f"targets of shape {tuple(targets.shape)}: expected {tuple(outputs.shape)}")
        if not torch.isfinite(targets).all():
            raise ValueError(f"targets hold {int((~torch.isfinite(targets)).sum())} NaN or infinite values")

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Summed log density, nats; outputs and targets (batch, ...) of the same shape, see `check`."""
        log_noise = self.log_noise.to(outputs)
        squares = ((targets - outputs) * (-log_noise).exp()).square().sum()
        return -0.5 * squares - outputs.numel() * (log_noise + 0.5 * math.log(2 * math.pi))

    def hessian_root(self, outputs: Tensor) -> Tensor:
        """I / σ for every datum, (batch, C, C)."""
        c = outputs.reshape(len(outputs), -1).shape[1]
        eye = torch.eye(c, dtype=outputs.dtype, device=outputs.device) * (-self.log_noise.to(outputs)).exp()
        return eye.expand(len(outputs), c, c)

    def hyperparameters(self) -> list[nn.Parameter]:
        """log σ, where it is learned."""
        return [self.log_noise] if self.log_noise.requires_grad else []

    def mean(self, outputs: Tensor) -> Tensor:
        """The predicted values."""
        return outputs


def likelihood_named(likelihood: "str | Categorical | Gaussian") -> "Categorical | Gaussian":
    """ "classification" or "regression" as a likelihood; a likelihood as it is.

    Raises:
        ValueError: another name.
    """
    if isinstance(likelihood, Categorical | Gaussian):
        return likelihood
    if likelihood == "classification":
        return Categorical()
    if likelihood == "regression":
        return Gaussian()
    raise ValueError(f"likelihood={likelihood!r}: expected 'classification' or 'regression'")


def _check_finite(outputs: Tensor) -> None:
    """Raise ValueError where a network's outputs are not finite."""
    if not torch.isfinite(outputs).all():
        raise ValueError(
            "the network's outputs hold NaN or infinite values: check its weights and inputs, lower the step size"
        )

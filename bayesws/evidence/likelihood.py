"""Likelihoods: log p(y | f) in nats, and a root of the Hessian of -log p in the network's outputs f."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.evidence.predictive import average_over_outputs
from bayesws.io.arguments import flag, positive, shown


@runtime_checkable
class Likelihood(Protocol):
    """What a likelihood tells: subclass it, and everything that takes a likelihood takes yours.

    `name`, `check`, `log_prob`, `hessian_root` and `mean` are a likelihood's own; for the rest there are defaults.

        class Poisson(Likelihood):  # counts y with rate exp(f)
            name = "counts"

            def check(self, outputs, targets): ...
            def log_prob(self, outputs, targets):
                return (targets * outputs - outputs.exp() - torch.lgamma(targets + 1)).sum()
            def hessian_root(self, outputs):
                return torch.diag_embed((0.5 * outputs).exp())
            def mean(self, outputs):
                return outputs.exp()

    Attributes:
        name: as records have it.
        settles: whether `settle` sets the hyperparameters; where it does not, `fit` follows the evidence's gradient.
        mean_is_linear: whether E[y | f] is linear in f, so that the posterior's mean is the MAP's.
    """

    name: str
    settles: bool = False
    mean_is_linear: bool = False

    @abstractmethod
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError for outputs (batch, ...) that are not finite and targets that do not fit them."""
        ...

    @abstractmethod
    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """log p(y | f), summed over the batch, nats; nothing is checked here."""
        ...

    @abstractmethod
    def hessian_root(self, outputs: Tensor) -> Tensor:
        """S (batch, C, columns) with S Sᵀ = -∂² log p / ∂f², or its Gauss-Newton form, for C outputs a datum."""
        ...

    @abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """E[y | f]: what a prediction is, (batch, ...)."""
        ...

    def hyperparameters(self) -> list[nn.Parameter]:
        """What the evidence may learn of the likelihood itself; by default nothing."""
        return []

    def noise_precision(self) -> float:
        """How many times its Hessian is that at unit noise; by default once: there is no noise."""
        return 1.0

    def settle(self, data_fit: Tensor, outputs: int, effective: float) -> None:
        """Set the hyperparameters, in place, where the evidence is stationary in them; only where `settles` says so.

        Args:
            data_fit: log p(D | θ*), nats summed over the data.
            outputs: their number, over all data.
            effective: γ of all pathways.
        """
        return None

    def state(self) -> dict[str, Tensor]:
        """What a saved fit keeps of the likelihood, by name; by default the hyperparameters in their order."""
        return {str(i): parameter for i, parameter in enumerate(self.hyperparameters())}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave, in place.

        Raises:
            ValueError: a state of another likelihood.
        """
        mine = self.state()
        if mine.keys() != state.keys():
            raise ValueError(f"a likelihood with {sorted(state)}: expected {sorted(mine)} for {self.name!r}")
        for name, tensor in mine.items():
            tensor.data = state[name].to(tensor.device, copy=True)  # in the type that it was fitted in

    def expected_mean(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """E[y] under outputs f ~ N(mean (batch, C), covariance (batch, C, C)); by default over quasi-random draws."""
        return average_over_outputs(self.mean, mean, covariance)

    def predictive_variance(self, mean: Tensor, covariance: Tensor, noise: bool) -> Tensor:
        """Var[y] (batch, C) under f ~ N(mean, covariance), or without noise that of E[y | f]; of a regression.

        Raises:
            ValueError: by default: a likelihood whose variance nobody has told.
        """
        raise ValueError(f"likelihood {self.name!r} has no predictive_variance: write it beside its mean")

    def predictive_log_prob(self, mean: Tensor, covariance: Tensor, targets: Tensor) -> Tensor:
        """log E[p(y | f)] under f ~ N(mean, covariance), summed over the batch, nats; by default over the draws."""
        of_each = torch.func.vmap(lambda f, y: self.log_prob(f.unsqueeze(0), y.unsqueeze(0)))
        densities = average_over_outputs(lambda f: of_each(f, targets).exp(), mean, covariance)
        return densities.clamp(min=torch.finfo(mean.dtype).tiny).log().sum()


class Categorical(Likelihood):
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

    def mean(self, outputs: Tensor) -> Tensor:
        """Class probabilities."""
        return outputs.softmax(-1)

    def predictive_log_prob(self, mean: Tensor, covariance: Tensor, targets: Tensor) -> Tensor:
        """Summed log E[softmax(f)]_y, nats."""
        probabilities = self.expected_mean(mean, covariance)
        tiny = torch.finfo(mean.dtype).tiny
        return probabilities.gather(1, targets.long().unsqueeze(1)).clamp(min=tiny).log().sum()


class Gaussian(Likelihood):
    """log p(y | f) = -Σ (y - f)² / 2σ² - C log σ - C/2 log 2π, with Hessian I / σ² and σ learned.

    Args:
        noise: σ at the start, in the units of the targets.

    Raises:
        ValueError: noise that is not positive.
    """

    name = "regression"
    settles = True
    mean_is_linear = True

    def __init__(self, noise: float = 1.0, learn: bool = True, dtype: torch.dtype | None = None) -> None:
        positive("noise", noise, "a positive standard deviation")
        if not isinstance(dtype, torch.dtype | None) or dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"dtype={shown(dtype)}: expected torch.float32, torch.float64 or None")
        flag("learn", learn)
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

    def noise_precision(self) -> float:
        """1 / σ²."""
        return math.exp(-2 * float(self.log_noise.detach()))

    @torch.no_grad()
    def settle(self, data_fit: Tensor, outputs: int, effective: float) -> None:
        """σ² = ‖y - f‖² / (number of outputs - γ), where the evidence is stationary; only where σ is learned."""
        for noise in self.hyperparameters():
            error = (-2 * noise).exp()  # data_fit = -½ ‖y - f‖² / σ² - n log σ - ½ n log 2π
            normaliser = outputs * (noise + 0.5 * math.log(2 * math.pi))
            squared = float(-2 * (data_fit + normaliser) / error)
            variance = squared / max(outputs - effective, 0.05 * outputs)  # γ is bounded away from the outputs
            noise.fill_(0.5 * torch.log(torch.tensor(max(variance, 1e-12))).item())

    def state(self) -> dict[str, Tensor]:
        """log σ, learned or not."""
        return {"log_noise": self.log_noise}

    def expected_mean(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """The mean of the outputs: E[y | f] is linear in f."""
        return mean

    def predictive_variance(self, mean: Tensor, covariance: Tensor, noise: bool) -> Tensor:
        """The diagonal of the covariance, (batch, C), plus σ² with noise."""
        variance = covariance.diagonal(dim1=1, dim2=2)
        return variance + (2 * self.log_noise.to(mean)).exp() if noise else variance

    def predictive_log_prob(self, mean: Tensor, covariance: Tensor, targets: Tensor) -> Tensor:
        """Summed log N(y; mean, covariance + σ² I), nats."""
        outputs = mean.shape[1]
        noise = (2 * self.log_noise.to(mean)).exp()
        factor = torch.linalg.cholesky((covariance + noise * torch.eye(outputs).to(mean)).double())
        residual = (targets.flatten(1) - mean).double().unsqueeze(-1)
        squares = torch.linalg.solve_triangular(factor, residual, upper=False).square().sum()
        log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum()
        return -0.5 * (squares + log_det + mean.numel() * math.log(2 * math.pi))


def likelihood_named(likelihood: "str | Likelihood") -> "Likelihood":
    """ "classification" or "regression" as a likelihood; a likelihood as it is.

    Raises:
        ValueError: another name, or a class in the place of its instance.
    """
    if isinstance(likelihood, Likelihood) and not isinstance(likelihood, type):
        return likelihood
    if isinstance(likelihood, str) and likelihood == "classification":
        return Categorical()
    if isinstance(likelihood, str) and likelihood == "regression":
        return Gaussian()
    raise ValueError(
        f"likelihood={shown(likelihood)}: expected 'classification', 'regression', or an instance of a subclass of "
        "bayesws.evidence.Likelihood"
    )


def _check_finite(outputs: Tensor) -> None:
    """Raise ValueError where a network's outputs are not finite."""
    if not torch.isfinite(outputs).all():
        raise ValueError(
            "the network's outputs hold NaN or infinite values: check its weights and inputs, lower the step size"
        )

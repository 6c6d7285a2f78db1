"""The evidence of a small network without a Laplace approximation: annealed importance sampling from the prior.

Weights are drawn from the prior and led to the posterior through p_t(θ) ∝ p(θ) p(D | θ)^β_t, 0 = β_0 < ... < β_T = 1,

    E[ Π_t p(D | θ_t)^(β_(t+1) - β_t) ] = p(D),    θ_(t+1) from Hamiltonian moves that leave p_(t+1) as it is,

exactly, however short the moves. As it starts from the prior, it counts every mode, and every symmetry copy of a mode,
with the weight that it has. Chains of one population are resampled where their weights become uneven (a sequential
Monte Carlo sampler), which keeps the estimate of p(D) unbiased; populations are independent, and give the standard
error.

Our own, as Pyro's samplers run one chain after another: here all chains move at once (torch.func.vmap), which is
what makes thousands of them affordable. A test holds it against thermodynamic integration with Pyro's NUTS.

References: Neal (2001), Annealed importance sampling, Statistics and Computing 11; Del Moral, Doucet and Jasra (2006),
Sequential Monte Carlo samplers, JRSS B 68; Neal (2011), MCMC using Hamiltonian dynamics, arXiv 1206.1901.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bayesws.analysis.whitened import Whitened
from bayesws.evidence.likelihood import Likelihood
from bayesws.io.arguments import seed_of, share, whole

ACCEPTED = 0.8  # share of Hamiltonian moves that the step size aims at
TOO_FEW = 0.4  # accepted, at any temperature: worth a note
PILOT = 64  # chains at least, to choose temperatures, steps and masses by


@dataclass(frozen=True)
class AnnealedEvidence:
    """An estimate of the log evidence with its standard error.

    Attributes:
        log_evidence: nats, summed over the data; log of the mean of the populations' estimates of p(D).
        standard_error: of `log_evidence`, nats, by the jackknife over populations; to be trusted where most of them
            are `effective`.
        by_population: log p(D) of every population alone, nats.
        temperatures: how many β_t there were after 0.
        acceptance: lowest mean acceptance of the moves at any of them.
        effective: Kish's effective number of populations: 1 where one of them is all that counts.
        examples: number of data.
        notes: what is not to be trusted, one line each.
        samples: from the posterior, θ by the parameter's name, (populations · chains, ...).
    """

    log_evidence: float
    standard_error: float
    by_population: tuple[float, ...]
    temperatures: int
    acceptance: float
    effective: float
    examples: int
    notes: tuple[str, ...]
    samples: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __float__(self) -> float:
        return self.log_evidence


def annealed_evidence(
    net: nn.Module,
    data: Any,
    likelihood: str | Likelihood = "classification",
    prior: Mapping[str, Tensor | float] | float | None = None,
    populations: int = 8,
    chains: int = 32,
    overlap: float = 0.9,
    moves: int = 2,
    leapfrogs: int = 6,
    seed: int = 0,
) -> AnnealedEvidence:
    """The log evidence of a network of some ten weights, sampled: what a Laplace approximation is to be held against.

    A pilot run chooses temperatures, step sizes and masses, M_ii = E[(∂ log p_t / ∂z_i)²]; the estimate is then made
    with these held, from other random numbers, and so is unbiased in p(D). Time grows with weights, data, log of data.

    Args:
        net: any network that `log_evidence` takes; its present weights do not matter, and stay as they are.
        data, likelihood, prior: as for `log_evidence`; all precisions, the noise and the stacks are held.
        populations: independent ones, for the standard error; at least 2.
        chains: in every population.
        overlap: in (0, 1), the share of effective samples that a step from one temperature to the next leaves; nearer
            to 1 is finer, slower and more precise.
        moves: Hamiltonian moves of every chain at every temperature.
        leapfrogs: steps of every move.
        seed: of all random numbers.

    Raises:
        ValueError: what `log_evidence` would not take, either; numbers that make no sense.

    >>> import torch
    >>> net = torch.nn.Linear(1, 1, bias=False)  # y = w x, w ~ N(0, 1), one datum: p(D) = N(1; 0, 2)
    >>> found = annealed_evidence(net, (torch.ones(1, 1), torch.ones(1, 1)), "regression")
    >>> abs(found.log_evidence - (-0.25 - 0.5 * math.log(4 * math.pi))) < 4 * found.standard_error
    True
    """
    sizes = {"populations": (populations, 2), "chains": (chains, 2), "moves": (moves, 1), "leapfrogs": (leapfrogs, 1)}
    populations, chains, moves, leapfrogs = (whole(name, *given) for name, given in sizes.items())
    overlap, seed = share("overlap", overlap, "a share, between 0 and 1"), seed_of(seed)
    target = Whitened(net, data, likelihood, prior)
    generator = torch.Generator(target.device).manual_seed(seed)
    pilots = max(PILOT, chains)
    schedule = _piloted(_Chains.from_prior(target, pilots, generator), overlap, moves, leapfrogs)
    found = _Chains.from_prior(target, populations * chains, generator)
    logs, acceptance = _annealed(found, schedule, populations, moves, leapfrogs)
    shares = (logs - logs.max()).exp()
    effective = float(shares.sum() ** 2 / shares.square().sum())
    log_mean, error = _log_mean(logs)
    notes = []
    if acceptance < TOO_FEW:
        notes.append(f"acceptance down to {acceptance:.2f}: take more leapfrogs, or overlap nearer to 1")
    if effective < populations / 2:
        notes.append(
            f"{effective:.1f} of {populations} populations count: estimate and standard error may be too small; take "
            "more chains, or overlap nearer to 1"
        )
    return AnnealedEvidence(
        log_mean,
        error,
        tuple(logs.tolist()),
        len(schedule),
        acceptance,
        effective,
        target.examples,
        tuple(notes),
        target.weights(found.z),
    )


@dataclass(frozen=True)
class _Temperature:
    """β with the moves for it: step size ε, and masses by weight."""

    beta: float
    step: float
    masses: Tensor


@dataclass
class _Chains:
    """Weight vectors z, (chains, P), each with its log likelihood and the gradient of that."""

    target: Whitened
    generator: torch.Generator
    z: Tensor
    values: Tensor
    gradients: Tensor

    @classmethod
    def from_prior(cls, target: Whitened, count: int, generator: torch.Generator) -> "_Chains":
        z = torch.randn(count, target.size, generator=generator, dtype=torch.float64, device=generator.device)
        return cls(target, generator, z, *target.with_gradient(z))

    def keep(self, index: Tensor) -> None:
        """Chains by their numbers, with repetition."""
        self.z, self.values, self.gradients = self.z[index], self.values[index], self.gradients[index]

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64, device=self.z.device)

    def move(self, at: _Temperature, leapfrogs: int) -> float:
        """One Hamiltonian move of every chain, energy ½ z² - β log p(D | z); mean acceptance.

        Every chain has a step size of its own, up to that of the temperature: lengths that fit no period.
        """
        step = at.step * (0.5 + 0.5 * self.uniform(len(self.z), 1))
        noise = torch.randn(self.z.shape, generator=self.generator, dtype=torch.float64, device=self.z.device)
        start = noise * at.masses.sqrt()
        z, values, gradients = self.z, self.values, self.gradients
        momentum = start + 0.5 * step * (at.beta * gradients - z)
        for i in range(leapfrogs):
            z = z + step * momentum / at.masses
            values, gradients = self.target.with_gradient(z)
            momentum = momentum + (step if i < leapfrogs - 1 else 0.5 * step) * (at.beta * gradients - z)
        gain = at.beta * (values - self.values) - 0.5 * (z.square() - self.z.square()).sum(1)
        gain = gain - 0.5 * ((momentum.square() - start.square()) / at.masses).sum(1)
        chance = gain.nan_to_num(nan=-math.inf, posinf=-math.inf).clamp(max=0).exp()
        accepted = self.uniform(len(z)) < chance
        self.z = torch.where(accepted[:, None], z, self.z)
        self.values = torch.where(accepted, values, self.values)
        self.gradients = torch.where(accepted[:, None], gradients, self.gradients)
        return float(chance.mean())


def _piloted(chains: _Chains, overlap: float, moves: int, leapfrogs: int) -> list[_Temperature]:
    """Temperatures by the overlap of their weights, masses by the mean squared score, steps by the acceptance."""
    found: list[_Temperature] = []
    beta, step, masses = 0.0, chains.target.size**-0.25, torch.ones_like(chains.z[0])
    while beta < 1:
        following = _next_beta(chains.values, beta, overlap)
        weights = ((following - beta) * (chains.values - chains.values.max())).softmax(0)
        chains.keep(_systematic(weights[None], chains.uniform(1, 1))[0])
        beta = following
        score = beta * chains.gradients - chains.z
        # a running geometric mean, as single scores are noisy; never below 1, which the prior alone has
        masses = (masses * score.square().mean(0).clamp(min=1)).sqrt()
        used = step
        for _ in range(moves):
            acceptance = chains.move(_Temperature(beta, step, masses), leapfrogs)
            step *= math.exp(0.3 * (acceptance - ACCEPTED))
        found.append(_Temperature(beta, min(used, step), masses))
    return found


def _next_beta(values: Tensor, beta: float, overlap: float) -> float:
    """The β up to which the weights p(D | z)^(β - β_t) keep this share of effective samples."""

    def kept(rise: float) -> float:
        weights = (rise * (values - values.max())).softmax(0)
        return float(1 / weights.square().sum()) / len(values)

    low, high = 0.0, 1.0 - beta
    if kept(high) >= overlap:
        return 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if kept(middle) >= overlap else (low, middle)
    return beta + low if low > 0 else beta + high


def _annealed(
    chains: _Chains, schedule: list[_Temperature], populations: int, moves: int, leapfrogs: int
) -> tuple[Tensor, float]:
    """log of every population's estimate of p(D), (populations,), and the lowest acceptance."""
    count = len(chains.z) // populations
    logs = torch.zeros(populations, dtype=torch.float64, device=chains.z.device)
    weights = torch.full((populations, count), -math.log(count), dtype=torch.float64, device=chains.z.device)
    firsts = torch.arange(populations, device=chains.z.device)[:, None] * count
    beta, lowest = 0.0, 1.0
    for i, at in enumerate(schedule):
        weights = weights + (at.beta - beta) * chains.values.reshape(populations, count)
        total = weights.logsumexp(1, keepdim=True)
        logs, weights, beta = logs + total[:, 0], weights - total, at.beta
        effective = 1 / weights.exp().square().sum(1)
        uneven = effective < 0.5 * count if i < len(schedule) - 1 else torch.ones_like(logs, dtype=torch.bool)
        if uneven.any():
            drawn = _systematic(weights.exp(), chains.uniform(populations, 1))
            stay = torch.arange(count, device=drawn.device).expand_as(drawn)
            chains.keep((firsts + torch.where(uneven[:, None], drawn, stay)).flatten())
            weights = torch.where(uneven[:, None], torch.full_like(weights, -math.log(count)), weights)
        lowest = min([lowest] + [chains.move(at, leapfrogs) for _ in range(moves)])
    return logs, lowest


def _log_mean(logs: Tensor) -> tuple[float, float]:
    """log of the mean of exp(logs), (n,), and its standard error by the jackknife.

    Where one of them outweighs the others that error is about its distance to them, and does not saturate.
    """
    count = len(logs)
    others = logs.repeat(count, 1)[~torch.eye(count, dtype=torch.bool, device=logs.device)].reshape(count, count - 1)
    without = others.logsumexp(1) - math.log(count - 1)
    error = math.sqrt((count - 1) / count * float((without - without.mean()).square().sum()))
    return float(logs.logsumexp(0)) - math.log(count), error


def _systematic(weights: Tensor, offsets: Tensor) -> Tensor:
    """Systematic resampling of every row of weights (rows, n), by offsets (rows, 1) in [0, 1): indices (rows, n)."""
    count = weights.shape[1]
    places = (torch.arange(count, device=weights.device) + offsets) / count
    return torch.searchsorted(weights.cumsum(1), places).clamp(max=count - 1)

"""The evidence as a function of all precisions at once, near fitted weights: exact where the likelihood is quadratic.

Around weights θ₀ let the log likelihood be quadratic, with gradient g and Hessian -H. Then, up to a constant,

    log p(D | Λ) = ½ bᵀ (H + Λ)⁻¹ b - ½ log det(I + Λ⁻¹ H),   b = g + H θ₀

for every Λ: the weights' MAP moves with it, (H + Λ)⁻¹ b, and needs no new fit. For linear networks with Gaussian noise
this is exact, wherever θ₀ is. Holding the weights instead would make every precision look better determined than it is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce as fold
from operator import add
from typing import Any, Protocol

import torch
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

from bayesws.evidence.batches import Batches
from bayesws.evidence.likelihood import Likelihood
from bayesws.evidence.nesting import Nested, Sum, log_lambdas, log_outside, nested
from bayesws.layers.contract import evaluating, named_pathways

TABLE = 0.05  # between entries, in log δ: a cubic spline's error is then 0.05⁴ / 384 = 2e-8 of fourth derivatives


class Surface(Protocol):
    """log p(D | Λ) up to a constant, nats; a part of the network's weights."""

    def __call__(self, log_precisions: Mapping[str, Tensor]) -> Tensor:
        """At log precisions by pathway; differentiable."""
        ...

    def on_lattice(self, groups: Sequence[Sequence[str]], sides: Sequence[Tensor]) -> Tensor:
        """At all combinations of one or two log precisions, (n,) or (n, m).

        Args:
            groups: for each of them the pathways that have it, together all that the surface is of.
            sides: its values, (n,) and (m,).
        """
        ...


@dataclass(frozen=True)
class Separate:
    """Weights that are independent in the eigenbasis of H: one sum a pathway.

    Of nested pathways (`nesting`) these sums are in λ, and what the outer one has in the inner's directions comes off:

        log p(D | Λ) = Σ_p S_p(λ_p) - S_p(κ λ'_p)        S_p(δ) = ½ Σ b_i² / (h_i + δ) - ½ Σ log(1 + h_i / δ)

    Attributes:
        eigenvalues: h_i by pathway.
        pulls: b_i by pathway, in the same basis.
        within: by inner pathway, its outer one and κ.
    """

    eigenvalues: dict[str, Tensor]
    pulls: dict[str, Tensor]
    within: Nested = field(default_factory=dict)

    @classmethod
    def at(
        cls, eigenvalues: dict[str, Tensor], weights: dict[str, Tensor], gradient: dict[str, Tensor], within: Nested
    ) -> "Separate":
        """From θ₀ and g in the eigenbasis, by pathway; of nested pathways θ₀ is what their sum has there."""
        pulls = {name: gradient[name] + values * weights[name] for name, values in eigenvalues.items()}
        return cls(eigenvalues, pulls, within)

    def only(self, names: Sequence[str]) -> "Separate":
        """The part of some pathways, which are nested with no others."""
        within = {name: place for name, place in self.within.items() if name in names}
        return Separate({n: self.eigenvalues[n] for n in names}, {n: self.pulls[n] for n in names}, within)

    def __call__(self, log_precisions: Mapping[str, Tensor]) -> Tensor:
        """Σ_p S_p(λ_p) - S_p(κ λ'_p), for any number of log precisions at once, (...)."""
        lambdas = log_lambdas({name: log_precisions[name] for name in self.eigenvalues}, self.within)
        found = [self.of(name, lambdas[name]) for name in self.eigenvalues]
        found += [-self.of(name, log_outside(name, lambdas, self.within)) for name in self.within]
        return fold(add, found)

    def of(self, name: str, log_precision: Tensor) -> Tensor:
        """S of one pathway, (...)."""
        return _spectral(self.eigenvalues[name], self.pulls[name], log_precision)

    def on_lattice(self, groups: Sequence[Sequence[str]], sides: Sequence[Tensor]) -> Tensor:
        """Every S_p is read from a table; see `Surface`."""
        mesh = torch.meshgrid(*sides, indexing="ij")
        logs = {name: mesh[axis] for axis, names in enumerate(groups) for name in names}
        reach = 1 + sum(abs(math.log(kappa)) for _, kappa in self.within.values())  # log λ lies as far outside
        ends = (min(float(side[0]) for side in sides) - reach, max(float(side[-1]) for side in sides) + reach)
        return Tabulated.between(self, *ends)(logs)


@dataclass(frozen=True)
class Tabulated(Separate):
    """The same with every S_p from a table: for so many precisions that the sums over eigenvalues would take long.

    Attributes:
        splines: S_p by pathway, cubic.
    """

    splines: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def between(cls, found: Separate, low: float, high: float) -> "Tabulated":
        """For log precisions from low to high."""
        count = max(math.ceil((high - low) / TABLE), 8) + 1
        places = torch.linspace(low, high, count, dtype=torch.float64)
        tables = {name: torch.cat([found.of(name, part) for part in places.split(64)]) for name in found.eigenvalues}
        splines = {name: CubicSpline(places.numpy(), table.numpy()) for name, table in tables.items()}
        return cls(found.eigenvalues, found.pulls, found.within, splines)

    def of(self, name: str, log_precision: Tensor) -> Tensor:
        """S of one pathway, (...); not differentiable."""
        return torch.from_numpy(self.splines[name](log_precision.numpy()))


@dataclass(frozen=True)
class Coupled:
    """A dense H of several pathways.

    Attributes:
        matrix: H (P, P).
        pull: b (P,).
        sizes: number of weights by pathway, in the order of the rows.
    """

    matrix: Tensor
    pull: Tensor
    sizes: dict[str, int]

    @classmethod
    def at(cls, matrix: Tensor, weights: Tensor, gradient: Tensor, sizes: dict[str, int]) -> "Coupled":
        """From θ₀ and g."""
        return cls(matrix, gradient + matrix @ weights, sizes)

    def __call__(self, log_precisions: Mapping[str, Tensor]) -> Tensor:
        """½ bᵀ (H + Λ)⁻¹ b - ½ log det(H + Λ) + ½ log det Λ."""
        logs = _diagonal(self.sizes, log_precisions)
        root, _ = torch.linalg.cholesky_ex(self.matrix + torch.diag(logs.exp()))  # NaN far out, where it is singular
        half = torch.linalg.solve_triangular(root, self.pull[:, None], upper=False)
        return 0.5 * half.square().sum() - root.diagonal().log().sum() + 0.5 * logs.sum()

    def on_lattice(self, groups: Sequence[Sequence[str]], sides: Sequence[Tensor]) -> Tensor:
        """One eigendecomposition for every value of the second log precision, of the Schur complement

            M = H₁₁ - H₁₂ (H₂₂ + β)⁻¹ H₂₁,   r = b₁ - H₁₂ (H₂₂ + β)⁻¹ b₂

        which stand for H and b of the first group's weights; see `Surface`.
        """
        places = dict(zip(self.sizes, torch.arange(len(self.pull)).split(list(self.sizes.values())), strict=True))
        first, *others = [torch.cat([places[name] for name in names]) for names in groups]
        h, b = self.matrix[first][:, first], self.pull[first]
        if not others:
            return _of_matrix(h, b, sides[0])
        (second,) = others
        values, basis = torch.linalg.eigh(self.matrix[second][:, second])
        cross, pull = basis.mT @ self.matrix[second][:, first], basis.mT @ self.pull[second]
        columns = []
        for beta in sides[1]:
            weights = 1 / (values.clamp(min=0) + beta.exp())
            schur, rest = h - cross.mT @ (weights[:, None] * cross), b - cross.mT @ (weights * pull)
            columns.append(_of_matrix(schur, rest, sides[0]) + _spectral(values.clamp(min=0), pull, beta))
        return torch.stack(columns, 1)


def _of_matrix(matrix: Tensor, pull: Tensor, log_precision: Tensor) -> Tensor:
    """½ bᵀ (H + δ)⁻¹ b - ½ log det(I + H / δ), (...)."""
    values, basis = torch.linalg.eigh(matrix)
    return _spectral(values.clamp(min=0), basis.mT @ pull, log_precision)


def _spectral(values: Tensor, pulls: Tensor, log_precision: Tensor) -> Tensor:
    """½ Σ b_i² / (h_i + δ) - ½ Σ log(1 + h_i / δ), (...)."""
    delta = log_precision.exp().unsqueeze(-1)
    return 0.5 * (pulls.square() / (values + delta) - torch.log1p(values / delta)).sum(-1)


@torch.no_grad()
def surface(net: nn.Module, curvature: Mapping[str, Tensor], likelihood: Likelihood) -> Surface:
    """The evidence in all precisions near a network's present weights; in float64, on the CPU.

    Args:
        net: the network.
        curvature: "H", or Kronecker factors "0.0", "0.1", ... by weight tensor, of the likelihood's own Hessian with
            σ = 1, as `laplace.curvature_tensors` gives them; and `log_likelihood_gradient`, "gradient." by pathway.
        likelihood: for its noise.
    """
    pathways = dict(named_pathways(net))
    names, whole = {id(p.parameter): name for name, p in pathways.items()}, Sum.of(pathways).whole
    parameters = {names[id(p)]: _plain(p) for p in net.parameters() if id(p) in names}
    gradients = {name: _plain(curvature[f"gradient.{name}"]) for name in parameters}
    scale = likelihood.noise_precision()
    if "H" in curvature:
        sizes = {name: p.numel() for name, p in parameters.items()}
        h = scale * _plain(curvature["H"])
        weights, slopes = (torch.cat([t.flatten() for t in found.values()]) for found in (parameters, gradients))
        if h.ndim == 2:
            return Coupled.at(h, weights, slopes, sizes)
        weights = torch.cat([_plain(whole[name]).flatten() for name in parameters])
        values_of, weights_of, slopes_of = (
            dict(zip(sizes, v.split(list(sizes.values())), strict=True)) for v in (h, weights, slopes)
        )
        return Separate.at(values_of, weights_of, slopes_of, nested(pathways))
    values: dict[str, Tensor] = {}
    weights_in: dict[str, Tensor] = {}
    slopes_in: dict[str, Tensor] = {}
    for i, name in enumerate(parameters):
        # H ≈ B ⊗ A, or one such block for every index of the parameter's second dimension: stacked, (K, ·, ·)
        b = _plain(curvature[f"{i}.0"])
        a = _plain(curvature[f"{i}.1"]) if f"{i}.1" in curvature else torch.ones(1, 1, dtype=b.dtype)
        b, a = (f if f.ndim == 3 else f[None] for f in (b, a))
        (rows, out_basis), (columns, in_basis) = torch.linalg.eigh(b), torch.linalg.eigh(a)
        values[name] = scale * (rows.clamp(min=0)[:, :, None] * columns.clamp(min=0)[:, None]).flatten()
        for found, tensor in ((weights_in, _plain(whole[name])), (slopes_in, gradients[name])):
            blocks = tensor.reshape(b.shape[1], len(b), a.shape[1]).transpose(0, 1)
            found[name] = (out_basis.mT @ blocks @ in_basis).flatten()
    return Separate.at(values, weights_in, slopes_in, nested(pathways))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def log_likelihood_gradient(net: nn.Module, data: Batches, likelihood: Likelihood) -> dict[str, Tensor]:
    """g, the gradient of the log likelihood summed over the data, by pathway, in the parameters' shapes."""
    pathways = dict(named_pathways(net))
    parameters = [p.parameter for p in pathways.values()]
    total = [torch.zeros_like(p) for p in parameters]
    with evaluating(net), torch.enable_grad():
        for x, y in data:
            found = torch.autograd.grad(likelihood.log_prob(net(x), y), parameters, allow_unused=True)
            for part, gradient in zip(total, found, strict=True):
                part.add_(0 if gradient is None else gradient)
    return dict(zip(pathways, total, strict=True))


def _diagonal(sizes: Mapping[str, int], log_precisions: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([log_precisions[name].expand(size) for name, size in sizes.items()])

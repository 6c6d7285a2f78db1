"""The generalised Gauss-Newton matrix H of -log p(D | θ) over all pathways: full, diagonal or Kronecker-factored.

A curvature answers two questions for given log precisions Λ: the Occam factor ½ log det(I + Λ⁻¹ H), in nats, and how
many parameters of each pathway the data determines, γ_p = tr_p[H (H + Λ)⁻¹]. What it needs of H is computed once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bayesws.evidence.signals import Layers, LayerSignals
from bayesws.layers.base import Pathway

CURVATURES = ("full", "kron", "diag")


class Curvature(Protocol):
    """H, in the form that the Occam factor needs."""

    def occam(self, log_precisions: Mapping[str, Tensor]) -> Tensor:
        """½ log det(I + Λ⁻¹ H), nats."""
        ...

    def occam_by_pathway(self, log_precisions: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """Its share by pathway; None where pathways are coupled and have no share of their own."""
        ...

    def effective(self, log_precisions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """γ by pathway, the effective number of parameters."""
        ...


@dataclass(frozen=True)
class SpectralCurvature:
    """H as its eigenvalues, pathway by pathway: Kronecker blocks (a_i b_j) or a diagonal.

    Covariances between pathways are left out, so the evidence is a lower bound of the one with them
    (Fischer's inequality; arXiv 2306.03968).

    Attributes:
        eigenvalues: by pathway name, (number of parameters,), not negative.
    """

    eigenvalues: dict[str, Tensor]

    def occam_by_pathway(self, log_precisions: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """½ Σ log(1 + λ / δ) for every pathway, nats."""
        return {
            name: 0.5 * torch.log1p(values * (-log_precisions[name]).exp()).sum()
            for name, values in self.eigenvalues.items()
        }

    def occam(self, log_precisions: Mapping[str, Tensor]) -> Tensor:
        """The sum over pathways, nats."""
        return sum_tensors(self.occam_by_pathway(log_precisions).values())

    def effective(self, log_precisions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Σ λ / (λ + δ) for every pathway."""
        return {
            name: (values / (values + log_precisions[name].exp())).sum() for name, values in self.eigenvalues.items()
        }


@dataclass(frozen=True)
class FullCurvature:
    """H whole, (P, P), pathways coupled; for small networks and as the truth for the others.

    Attributes:
        matrix: H.
        sizes: number of parameters by pathway, in the order of the rows.
    """

    matrix: Tensor
    sizes: dict[str, int]

    def _deltas(self, log_precisions: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([log_precisions[name].exp().expand(size) for name, size in self.sizes.items()])

    def _scaled(self, log_precisions: Mapping[str, Tensor]) -> Tensor:
        sd = self._deltas(log_precisions).rsqrt()
        return torch.eye(len(sd), dtype=sd.dtype, device=sd.device) + sd[:, None] * self.matrix * sd

    def occam(self, log_precisions: Mapping[str, Tensor]) -> Tensor:
        """½ log det(I + Λ^-½ H Λ^-½), nats."""
        return torch.linalg.cholesky(self._scaled(log_precisions)).diagonal().log().sum()

    def occam_by_pathway(self, log_precisions: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """None for every pathway: a coupled determinant has no shares."""
        return dict.fromkeys(self.sizes)

    def effective(self, log_precisions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Σ_i (1 - [(I + Λ^-½ H Λ^-½)⁻¹]_ii) over each pathway's rows."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self._scaled(log_precisions)))
        shares = (1 - inverse.diagonal()).split(list(self.sizes.values()))
        return {name: share.sum() for name, share in zip(self.sizes, shares, strict=True)}


def sum_tensors(values: object) -> Tensor:
    """Sum of scalar tensors; zero where there are none."""
    return torch.stack(list(values)).sum() if values else torch.zeros(())  # type: ignore[call-overload]


class Accumulator(Protocol):
    """Gathers batches of signals into a curvature."""

    def add(self, signals: dict[str, LayerSignals]) -> None:
        """Add one batch."""
        ...

    def result(self) -> Curvature:
        """The curvature of all batches."""
        ...


def accumulator(kind: str, layers: Layers) -> Accumulator:
    """A new accumulator for "full", "kron" or "diag".

    Raises:
        ValueError: another name.
    """
    if kind == "full":
        return _FullAccumulator(layers)
    if kind == "diag":
        return _DiagAccumulator(layers)
    if kind == "kron":
        return _KronAccumulator(layers)
    raise ValueError(f"curvature={kind!r}: expected one of {', '.join(CURVATURES)}")


def _pathways(layers: Layers, called: object) -> dict[str, tuple[str, Pathway]]:
    """Full pathway name to (layer, pathway), in the order of the layers, for layers in `called`."""
    return {
        f"{layer}.{pathway.name}" if layer else pathway.name: (layer, pathway)
        for layer, (_, declaration) in layers.items()
        if layer in called  # type: ignore[operator]
        for pathway in declaration.pathways
    }


def _jacobians(pathway: Pathway, signals: LayerSignals) -> Tensor:
    """Sᵀ J of one pathway, (columns, batch, parameters): exact, summed over positions and calls."""
    if pathway.is_bias:
        return pathway.pull_back(signals.gradients.sum(2))
    return pathway.pull_back(torch.einsum("cbpo,bpi->cboi", signals.gradients, signals.patches))


class _FullAccumulator:
    def __init__(self, layers: Layers) -> None:
        self._layers: Layers = layers
        self._matrix: Tensor | None = None
        self._sizes: dict[str, int] = {}

    def add(self, signals: dict[str, LayerSignals]) -> None:
        pathways = _pathways(self._layers, signals)
        rows = [_jacobians(p, signals[layer]).flatten(0, 1) for layer, p in pathways.values()]
        self._sizes = {name: p.numel for name, (_, p) in pathways.items()}
        jacobian = torch.cat(rows, -1)
        gram = jacobian.mT @ jacobian
        self._matrix = gram if self._matrix is None else self._matrix + gram

    def result(self) -> Curvature:
        assert self._matrix is not None, "no batch was added"
        return FullCurvature(self._matrix, self._sizes)


class _DiagAccumulator:
    def __init__(self, layers: Layers) -> None:
        self._layers: Layers = layers
        self._diagonal: dict[str, Tensor] = {}

    def add(self, signals: dict[str, LayerSignals]) -> None:
        for name, (layer, pathway) in _pathways(self._layers, signals).items():
            squares = _jacobians(pathway, signals[layer]).square().sum((0, 1))
            self._diagonal[name] = self._diagonal[name] + squares if name in self._diagonal else squares

    def result(self) -> Curvature:
        return SpectralCurvature(self._diagonal)


class _KronAccumulator:
    """KFAC-expand: positions, calls and group elements count as independent examples (arXiv 2311.00636).

    A = mean over all positions of a aᵀ, B = sum over data, columns and positions of g gᵀ, H ≈ A ⊗ B.
    """

    def __init__(self, layers: Layers) -> None:
        self._layers: Layers = layers
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._positions: dict[str, int] = {}

    def add(self, signals: dict[str, LayerSignals]) -> None:
        for layer, s in signals.items():
            patches, gradients = s.patches.flatten(0, 1), s.gradients.flatten(0, 2)
            a, b = patches.mT @ patches, gradients.mT @ gradients
            seen = layer in self._inputs
            self._inputs[layer] = self._inputs[layer] + a if seen else a
            self._outputs[layer] = self._outputs[layer] + b if seen else b
            self._positions[layer] = self._positions.get(layer, 0) + len(patches)

    def result(self) -> Curvature:
        eigenvalues = {}
        for name, (layer, pathway) in _pathways(self._layers, self._inputs).items():
            a, b = self._inputs[layer] / self._positions[layer], self._outputs[layer]
            if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
                raise FloatingPointError(
                    f"layer {layer!r}: its curvature is not finite; check the data or lower the learning rate"
                )
            if pathway.is_bias:
                a = torch.ones(1, 1, dtype=b.dtype, device=b.device)
            blocks = [
                torch.outer(_spectrum(block_a), _spectrum(block_b)).flatten()
                for block_a, block_b in pathway.factors(a, b)
            ]
            eigenvalues[name] = torch.cat(blocks)
        return SpectralCurvature(eigenvalues)


def _spectrum(factor: Tensor) -> Tensor:
    """Eigenvalues in float64, where the eigensolver copes with the tiny and repeated ones of dead units."""
    return torch.linalg.eigvalsh(factor.double()).clamp(min=0).to(factor.dtype)

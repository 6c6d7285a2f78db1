"""Kronecker factors of pathways as laplace-torch sums and inverts them."""

from typing import Any, Self

import torch
from laplace.utils.matrix import Kron, KronDecomposed
from torch import Tensor, nn

from bayesws.layers.contract import Factors

Kfacs = Any  # a list of one or two matrices; laplace-torch's own hints promise tuples where it hands over lists


def as_kfacs(parameter: nn.Parameter, blocks: Factors) -> Kfacs:
    """[B ⊗ A] of a vector, [B, A] of one block, or both stacked, (K, ·, ·), where K blocks lie along dimension 1."""
    if len(blocks) == 1:
        ((a, b),) = blocks
        return [torch.kron(b, a)] if parameter.ndim == 1 else [b, a]
    if parameter.ndim < 2 or parameter.shape[1] != len(blocks) or len(blocks[0][1]) != len(parameter):
        raise ValueError(
            f"hessian_structure='kron' for weights of shape {tuple(parameter.shape)} in {len(blocks)} groups: expected "
            "one Kronecker product a tensor; use 'full' or 'diag', or bayesws.log_evidence, which takes them"
        )
    return [torch.stack([b for _, b in blocks]), torch.stack([a for a, _ in blocks])]


class PathwayKron(Kron):
    """laplace-torch's Kron with what pathways need beyond it.

    The free weights (out, G, in, d) of a soft stack have a block for every group element, which a single Kronecker
    product cannot hold: their factors are stacked, (G, out, out) and (G, in·d, in·d).

    Args:
        kfacs: by parameter tensor, [matrix], [B, A] or [stacked B, stacked A].
    """

    def __init__(self, kfacs: list[Kfacs]) -> None:
        super().__init__(kfacs)

    def __add__(self, other: Kron) -> "PathwayKron":
        if len(self) != len(other):
            raise ValueError(
                f"Laplace was built for {len(other)} parameter tensors, the network declares {len(self)}: build it "
                "where log precisions and logits are frozen, such as within frozen_hyperparameters(net)"
            )
        # laplace-torch starts from zeros, in shapes that it guesses from the parameters
        return PathwayKron(
            [
                [x + y if x.shape == y.shape else x for x, y in zip(mine, theirs, strict=True)]
                for mine, theirs in zip(self.kfacs, other.kfacs, strict=True)
            ]
        )

    __radd__ = __add__

    def __mul__(self, scalar: float | Tensor) -> "PathwayKron":
        return PathwayKron([[scalar ** (1 / len(kfacs)) * f for f in kfacs] for kfacs in self.kfacs])

    __rmul__ = __mul__

    def decompose(self, damping: bool = False) -> "PathwayKronDecomposed":
        """Eigenvalues and eigenvectors of every block; in float64, as those of dead units are tiny and repeated."""
        blocks, owners, order = self._blocks()
        vectors, values = [], []
        for block in blocks:
            solved = [torch.linalg.eigh(factor.double()) for factor in block]
            values.append([e.eigenvalues.clamp(min=0).to(f) for e, f in zip(solved, block, strict=True)])
            vectors.append([e.eigenvectors.to(f) for e, f in zip(solved, block, strict=True)])
        return PathwayKronDecomposed(vectors, values, owners, order, damping=damping)

    def _blocks(self) -> tuple[list[Kfacs], Tensor, Tensor]:
        """The blocks one by one, the parameter tensor of each, and the weights' places in the order of the blocks."""
        start, owners, order = 0, [], []
        blocks: list[Kfacs] = []
        for owner, kfacs in enumerate(self.kfacs):
            several = list(zip(*kfacs, strict=True)) if kfacs[0].ndim == 3 else [tuple(kfacs)]
            size = sum(block[0].shape[0] * block[-1].shape[0] ** (len(block) - 1) for block in several)
            places = torch.arange(start, start + size).reshape(len(several[0][0]), len(several), -1)
            for k, block in enumerate(several):
                blocks.append(list(block))
                owners.append(owner)
                order.append(places[:, k].flatten())
            start += size
        device = self.kfacs[0][0].device
        return blocks, torch.tensor(owners, device=device), torch.cat(order).to(device)

    def _bmm(self, W: Tensor) -> Tensor:
        blocks, _, order = self._blocks()
        return Kron(blocks)._bmm(W[..., order])[..., order.argsort()]

    def logdet(self) -> Tensor:
        """log det H."""
        return Kron(self._blocks()[0]).logdet()

    def diag(self) -> Tensor:
        """The diagonal of H."""
        blocks, _, order = self._blocks()
        return Kron(blocks).diag()[order.argsort()]

    def to_matrix(self) -> Tensor:
        """H (P, P), for tests."""
        blocks, _, order = self._blocks()
        back = order.argsort()
        return Kron(blocks).to_matrix()[back][:, back]


class PathwayKronDecomposed(KronDecomposed):
    """laplace-torch's KronDecomposed over blocks, each with the precision of the parameter tensor that owns it.

    Args:
        eigenvectors, eigenvalues: by block.
        owners: index of the parameter tensor by block.
        order: places in the weight vector in the order of the blocks, (P,).
        deltas: precisions by block; zero to start with.
        damping: as in laplace-torch, and kept when a prior is added.
    """

    def __init__(
        self,
        eigenvectors: list[Kfacs],
        eigenvalues: list[Kfacs],
        owners: Tensor,
        order: Tensor,
        deltas: Tensor | None = None,
        damping: bool = False,
    ) -> None:
        super().__init__(eigenvectors, eigenvalues, deltas, damping)
        self.owners, self.order = owners, order

    def __add__(self, deltas: Tensor) -> Self:
        by_block = deltas[self.owners] if deltas.ndim == 1 and len(deltas) > 1 else deltas
        return self._with(self.eigenvalues, self.deltas + by_block)

    def __mul__(self, scalar: float | Tensor) -> Self:
        """H · scalar; unlike laplace-torch's own, differentiable in the scalar, and so in the noise."""
        return self._with([[scalar ** (1 / len(ls)) * v for v in ls] for ls in self.eigenvalues], self.deltas)

    __radd__ = __add__
    __rmul__ = __mul__

    def clone(self) -> Self:
        """A copy with tensors of its own."""
        vectors, values = ([[t.clone() for t in block] for block in ts] for ts in (self.eigenvectors, self.eigenvalues))
        return type(self)(vectors, values, self.owners, self.order, self.deltas.clone(), self.damping)

    def _with(self, eigenvalues: list[Kfacs], deltas: Tensor) -> Self:
        return type(self)(self.eigenvectors, eigenvalues, self.owners, self.order, deltas, self.damping)

    def _bmm(self, W: Tensor, exponent: float = -1) -> Tensor:
        return super()._bmm(W[..., self.order], exponent)[..., self.order.argsort()]

    def inv_square_form(self, W: Tensor) -> Tensor:
        """W (H + Λ)⁻¹ Wᵀ, (batch, C, C), as a square: symmetric, no eigenvalue below zero, half the products."""
        if self.damping:
            return super().inv_square_form(W)
        W, start, total = W[..., self.order], 0, W.new_zeros(())
        for vectors, values, delta in zip(self.eigenvectors, self.eigenvalues, self.deltas, strict=True):
            rows, size = len(values[0]), values[0].numel() * (values[-1].numel() if len(values) > 1 else 1)
            block = W[..., start : start + size].unflatten(-1, (rows, -1))
            spectrum = values[0][:, None] * values[1] if len(values) > 1 else values[0][:, None]
            block = vectors[0].mT @ block @ vectors[1] if len(vectors) > 1 else vectors[0].mT @ block
            root = (block * (spectrum + delta).rsqrt()).flatten(-2)
            total, start = total + root @ root.mT, start + size
        return total

    def diag(self, exponent: float = 1) -> Tensor:
        """The diagonal of (H + Λ)^exponent."""
        return super().diag(exponent)[self.order.argsort()]

    def to_matrix(self, exponent: float = 1) -> Tensor:
        """(H + Λ)^exponent, (P, P), for tests."""
        back = self.order.argsort()
        return super().to_matrix(exponent)[back][:, back]

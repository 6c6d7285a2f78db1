"""Blocks of H that need the exact rows of Jacobians: dense ones, and diagonals."""

import torch
from torch import Tensor

from bayesws.evidence.capture import CACHED, LayerIO, Layers, jacobian_rows
from bayesws.evidence.hessian import DenseBlock, Hessian, Spectra
from bayesws.evidence.sampling import Draw
from bayesws.evidence.shapes import Shapes
from bayesws.evidence.sums import Key, Named, Summing, Sums
from bayesws.layers.contract import Pathway

Gradients = dict[str, list[Tensor]]


class RowAccumulator(Summing):
    """What needs the exact rows of Jacobians: patches are kept while the columns of a batch come back."""

    def __init__(self, layers: Layers, pathways: Named) -> None:
        super().__init__(layers, pathways)
        self._patches: dict[str, Tensor] = {}

    def add_inputs(self, calls: dict[str, LayerIO], draw: Draw) -> None:
        """Keep the batch's patches for its columns."""
        names = {layer for layer, pathway in self.called(calls).values() if pathway.acts != "bias"}
        self._patches = {layer: calls[layer].patches(self.layers[layer][1]) for layer in names}

    def rows(self, calls: dict[str, LayerIO], gradients: Gradients) -> dict[str, Tensor]:
        """Sᵀ J by pathway, (columns, batch, parameters)."""
        found = {}
        for name, (layer, pathway) in self.called(calls).items():
            responses = calls[layer].responses(self.layers[layer][1], gradients[layer])
            found[name] = jacobian_rows(pathway, self._patches.get(layer, responses), responses)
        return found


class DenseAccumulator(RowAccumulator):
    """H = Σ_n Jᵀ S Sᵀ J of some pathways jointly, (P, P); zero where a layer was not called."""

    def __init__(self, layers: Layers, pathways: Named) -> None:
        super().__init__(layers, pathways)
        self.key = ("block", *pathways)
        self.sizes = {name: pathway.numel for name, (_, pathway) in pathways.items()}

    @property
    def size(self) -> int:
        """P."""
        return sum(self.sizes.values())

    def add_gradients(self, calls: dict[str, LayerIO], gradients: Gradients) -> None:
        """Add the Gram matrix of the rows."""
        found = self.rows(calls, gradients)
        if not found:
            return
        some = next(iter(found.values()))
        rows = [
            found[name] if name in found else some.new_zeros(*some.shape[:2], size) for name, size in self.sizes.items()
        ]
        self.add_rows(torch.cat(rows, -1).flatten(0, 1))

    def add_rows(self, rows: Tensor) -> None:
        """Take in Sᵀ J of some columns and data, (rows, P)."""
        self.add_gram(self.key, rows)

    def numbers(self, shapes: Shapes) -> dict[Key, int]:
        """P² where any of its layers is called."""
        called = any(layer in shapes for layer, _ in self.pathways.values())
        return {self.key: self.size**2} if called else {}

    def hessian(self, sums: Sums) -> Hessian | None:
        """The dense block; None where no layer was called."""
        return DenseBlock(sums.tensors[self.key], self.sizes) if self.key in sums.tensors else None


class DiagonalAccumulator(RowAccumulator):
    """diag H = Σ_n (Jᵀ S)² 1 by pathway, (P,)."""

    def add_gradients(self, calls: dict[str, LayerIO], gradients: Gradients) -> None:
        """Add the squares of the rows."""
        for name, (layer, pathway) in self.called(calls).items():
            responses = calls[layer].responses(self.layers[layer][1], gradients[layer])
            self.add(("diagonal", name), squared_rows(pathway, self._patches.get(layer, responses), responses))

    def numbers(self, shapes: Shapes) -> dict[Key, int]:
        """Those of every pathway's parameters."""
        return {("diagonal", name): p.numel for name, (layer, p) in self.pathways.items() if layer in shapes}

    def hessian(self, sums: Sums) -> Spectra | None:
        """Its eigenvalues are its entries; None where no layer was called."""
        keys = {name: ("diagonal", name) for name in self.pathways}
        found = {name: sums.tensors[key] for name, key in keys.items() if key in sums.tensors}
        return Spectra(found) if found else None


def squared_rows(pathway: Pathway, patches: Tensor, responses: Tensor) -> Tensor:
    """Σ (Sᵀ J)² of one pathway over columns and data, (parameters,), exact: a matrix product where there is one
    position, (g aᵀ)² = g² (a²)ᵀ; else a few rows at a time.

    Args:
        pathway: of a layer.
        patches: a (batch, fan_in, positions).
        responses: g (columns, batch, fan_out, positions).
    """
    if pathway.acts != "kernel":
        return jacobian_rows(pathway, patches, responses).square().sum((0, 1))
    if pathway.picks_entries and responses.shape[-1] == 1:
        return pathway.pull_back(responses.square().sum(0).squeeze(-1).mT @ patches.square().squeeze(-1))
    at_once = max(1, CACHED // max(1, responses.shape[2] * patches.shape[1]))
    total = responses.new_zeros(pathway.numel)
    for g, a in zip(responses.split(at_once, 1), patches.split(at_once), strict=True):
        rows = jacobian_rows(pathway, a, g).flatten(0, 1)
        if len(rows) == 1:
            total.addcmul_(rows[0], rows[0])  # with no matrix beside the row
        else:
            total.add_(rows.square().sum(0))
    return total

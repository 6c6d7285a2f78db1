"""Blocks of H that need the exact rows of Jacobians: dense ones, and diagonals."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bayesws.evidence.capture import CACHED, LayerIO, Layers, Signals, jacobian_rows, kernel_gradients
from bayesws.evidence.hessian import DenseBlock, Hessian, Spectra
from bayesws.evidence.jackknife import Jackknifed
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

    def signals(self, calls: dict[str, LayerIO], gradients: Gradients) -> dict[str, Signals]:
        """What the rows of every pathway are made of."""
        found = {}
        for name, (layer, pathway) in self.called(calls).items():
            responses = calls[layer].responses(self.layers[layer][1], gradients[layer])
            found[name] = Signals(pathway, self._patches.get(layer, responses), responses)
        return found

    def rows(self, calls: dict[str, LayerIO], gradients: Gradients) -> dict[str, Tensor]:
        """Sᵀ J by pathway, (columns, batch, parameters)."""
        return {name: some.rows() for name, some in self.signals(calls, gradients).items()}


class DenseAccumulator(RowAccumulator):
    """H = Σ_n Jᵀ S Sᵀ J of some pathways jointly, (P, P); zero where a layer was not called.

    Args:
        columns: how many sampled ones a datum has, where they are to be summed one by one (see `jackknife`); else 1.
    """

    def __init__(self, layers: Layers, pathways: Named, columns: int = 1) -> None:
        super().__init__(layers, pathways)
        self.keys: list[Key] = [("block", *pathways, str(column)) for column in range(columns)]
        self.sizes = {name: pathway.numel for name, (_, pathway) in pathways.items()}
        self._next = 0  # which of its columns comes next of a batch

    @property
    def size(self) -> int:
        """P."""
        return sum(self.sizes.values())

    def add_inputs(self, calls: dict[str, LayerIO], draw: Draw) -> None:
        """Keep the batch's patches; its first column comes next."""
        super().add_inputs(calls, draw)
        self._next = 0

    def add_gradients(self, calls: dict[str, LayerIO], gradients: Gradients) -> None:
        """Add the Gram matrix of the rows, each column's to its own."""
        found = self.rows(calls, gradients)
        if not found:
            return
        some = next(iter(found.values()))
        rows = [
            found[name] if name in found else some.new_zeros(*some.shape[:2], size) for name, size in self.sizes.items()
        ]
        for column in torch.cat(rows, -1).split(len(some) if len(self.keys) == 1 else 1):
            self.add_gram(self.next_key(), column.flatten(0, 1))

    def next_key(self) -> Key:
        """Under which the next of a batch's columns is summed."""
        key = self.keys[self._next]
        self._next = (self._next + 1) % len(self.keys)
        return key

    def numbers(self, shapes: Shapes) -> dict[Key, int]:
        """P² a matrix, where any of its layers is called."""
        called = any(layer in shapes for layer, _ in self.pathways.values())
        return dict.fromkeys(self.keys, self.size**2) if called else {}

    def hessian(self, sums: Sums) -> Hessian | None:
        """The dense block; None where no layer was called."""
        matrices = [sums.tensors[key] for key in self.keys if key in sums.tensors]
        return self.of_matrices(matrices) if matrices else None

    def of_matrices(self, matrices: Sequence[Tensor]) -> Hessian:
        """H from its columns' parts, each (P, P)."""
        if len(matrices) == 1:
            return DenseBlock(matrices[0], self.sizes)
        total, columns = torch.stack(list(matrices)).sum(0), len(matrices)

        def without(column: int) -> DenseBlock:
            return DenseBlock(columns / (columns - 1) * (total - matrices[column]), self.sizes)

        return Jackknifed(DenseBlock(total, self.sizes), columns, without)


class DiagonalAccumulator(RowAccumulator):
    """diag H = Σ_n (Jᵀ S)² 1 by pathway, (P,)."""

    def add_gradients(self, calls: dict[str, LayerIO], gradients: Gradients) -> None:
        """Add the squares of the rows."""
        for name, some in self.signals(calls, gradients).items():
            self.add(("diagonal", name), squared_rows(some.pathway, some.patches, some.responses))

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
        squares = responses.square().sum(0).squeeze(-1).mT, patches.square().squeeze(-1)
        return pathway.pull_back(kernel_gradients(pathway, *squares))
    at_once = max(1, CACHED // max(1, responses.shape[2] * patches.shape[1]))
    total = responses.new_zeros(pathway.numel)
    for g, a in zip(responses.split(at_once, 1), patches.split(at_once), strict=True):
        rows = jacobian_rows(pathway, a, g).flatten(0, 1)
        if len(rows) == 1:
            total.addcmul_(rows[0], rows[0])  # with no matrix beside the row
        else:
            total.add_(rows.square().sum(0))
    return total

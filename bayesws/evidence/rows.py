"""Blocks of H that need the exact rows of Jacobians: dense ones, and diagonals."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial, reduce
from operator import add

import torch
from torch import Tensor

from bayesws.evidence.capture import CACHED, LayerIO, Layers, Signals, jacobian_rows, kernel_gradients
from bayesws.evidence.hessian import DenseBlock, Hessian, Spectra
from bayesws.evidence.jackknife import HALVES, Block, Jackknifed, Term, terms_of
from bayesws.evidence.sampling import Draw
from bayesws.evidence.shapes import Shapes
from bayesws.evidence.sums import SEEN, Key, Named, Summing, Sums
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
        drawn: whether only some of the data have rows: two halves of several columns' are then summed apart.
    """

    def __init__(self, layers: Layers, pathways: Named, columns: int = 1, drawn: bool = False) -> None:
        super().__init__(layers, pathways)
        self.columns, self.halves = columns, 2 if drawn and columns > 1 else 1
        self.sizes = {name: pathway.numel for name, (_, pathway) in pathways.items()}
        self._next = 0  # which of its columns comes next of a batch
        self._second: Tensor | None = None  # which of the batch's data are of the second half

    @property
    def size(self) -> int:
        """P."""
        return sum(self.sizes.values())

    @property
    def keys(self) -> dict[Block, Key]:
        """Of all that is summed apart."""
        blocks = [(column, half) for column in range(self.columns) for half in range(self.halves)]
        return {block: ("block", *self.pathways, *map(str, block)) for block in blocks}

    def add_inputs(self, calls: dict[str, LayerIO], draw: Draw) -> None:
        """Keep the batch's patches; its first column comes next."""
        super().add_inputs(calls, draw)
        self._next, self._second = 0, draw.second if self.halves > 1 else None
        if draw.kept is not None:
            self.count(self._drawn, len(draw.kept))

    def add_gradients(self, calls: dict[str, LayerIO], gradients: Gradients) -> None:
        """Add the Gram matrix of the rows, each column's to its own."""
        for key, signals in self.signals_by_key(calls, gradients):
            found = {name: some.rows().flatten(0, 1) for name, some in signals.items()}
            some = next(iter(found.values()))
            rows = [found[n] if n in found else some.new_zeros(len(some), size) for n, size in self.sizes.items()]
            self.add_gram(key, torch.cat(rows, -1))

    def signals_by_key(
        self, calls: dict[str, LayerIO], gradients: Gradients
    ) -> Iterator[tuple[Key, dict[str, Signals]]]:
        """What the rows of some columns are made of, each with the key that they are summed under."""
        signals, keys = self.signals(calls, gradients), self.keys
        came = len(next(iter(signals.values())).responses) if signals else 0
        at_once = came if self.columns == 1 else 1
        for start in range(0, came, max(1, at_once)):
            column, self._next = self._next, (self._next + 1) % self.columns
            of_columns = {name: some.of_columns(start, start + at_once) for name, some in signals.items()}
            if self._second is None:
                yield keys[column, 0], of_columns
                continue
            for half, which in enumerate((~self._second, self._second)):
                if which.any():
                    yield keys[column, half], {name: some.of_data(which) for name, some in of_columns.items()}

    def numbers(self, shapes: Shapes) -> dict[Key, int]:
        """P² a matrix, where any of its layers is called."""
        called = any(layer in shapes for layer, _ in self.pathways.values())
        return dict.fromkeys(self.keys.values(), self.size**2) if called else {}

    def hessian(self, sums: Sums) -> Hessian | None:
        """The dense block; None where no layer was called."""
        matrices = {block: sums.tensors[key] for block, key in self.keys.items() if key in sums.tensors}
        return self.of_matrices(matrices, sums) if matrices else None

    def of_matrices(self, matrices: Mapping[Block, Tensor], sums: Sums) -> Hessian:
        """H from what was summed apart, each (P, P)."""

        def block(term: Term) -> DenseBlock:
            return DenseBlock(term.factor * reduce(add, [matrices[b] for b in matrices if term.has(b)]), self.sizes)

        first, *others = terms_of(self.columns, self.share(sums, matrices))
        whole = block(first)
        if not others:
            return whole
        return Jackknifed(((first.coefficient, lambda: whole), *((t.coefficient, partial(block, t)) for t in others)))

    def share(self, sums: Sums, blocks: Iterable[Block]) -> float:
        """m/N, how many of the data have rows; 1 where all have, or where one half of them has none."""
        if {half for _, half in blocks} != set(HALVES):
            return 1.0
        return sums.counts[self._drawn] / sums.counts[SEEN]

    @property
    def _drawn(self) -> Key:
        return ("drawn", *self.pathways)


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

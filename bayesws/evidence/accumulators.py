"""What a curvature sums over the data, batch by batch, in bounded memory: rows of Jacobians, or Kronecker factors.

Everything that is gathered is a plain sum over data, so a derivative in these sums is all that a second pass needs.
"""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from bayesws.evidence.capture import LayerIO, Layers, jacobian_rows
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.hessian import BlockDiagonal, DenseBlock, Hessian, Spectra
from bayesws.evidence.sampling import Draw
from bayesws.layers.contract import Declaration, Factors, Pathway

LARGEST_SCALE_BLOCK = 2048  # elementwise factors: up to here their exact block, above its diagonal
THINNED, PLENTY = 4, 1000  # sampled factors: A of every 4th datum if there are 1000 patches for each of its rows
CACHED = 2**20  # how many numbers of patches are made at once: what stays in a processor's cache
Gradients = dict[str, list[Tensor]]
Sums = dict[tuple[str, ...], Tensor]
Named = dict[str, tuple[str, Pathway]]  # by full pathway name: the layer's name and the pathway


class Accumulator(Protocol):
    """Sums over the data, and the Hessian that follows from them."""

    sums: Sums
    pathways: Named

    def add_inputs(self, calls: dict[str, LayerIO], draw: Draw) -> None:
        """Take in one batch's way forward."""
        ...

    def add_gradients(self, calls: dict[str, LayerIO], gradients: Gradients) -> None:
        """Take in some columns of the same batch's output gradients."""
        ...

    def hessian(self, sums: Sums) -> Hessian:
        """H from these sums, differentiable in them and in the layers' structure."""
        ...


def named(layers: Layers) -> Named:
    """Every pathway of the layers by its full name, "layer.pathway"."""
    return {
        f"{layer}.{pathway.name}" if layer else pathway.name: (layer, pathway)
        for layer, (_, declaration) in layers.items()
        for pathway in declaration.pathways
    }


def accumulators_for(curvature: Curvature, layers: Layers) -> list[Accumulator]:
    """New, empty sums for every pathway of the layers; each Accumulator holds some of the pathways."""
    pathways = named(layers)
    if not pathways:
        return []
    if curvature.kind == "diag":
        return [DiagonalAccumulator(layers, pathways)]
    if curvature.kind != "kron":
        return _dense(layers, pathways, curvature.kind)
    sizes = {layer: sum(p.numel for p in declaration.pathways) for layer, (_, declaration) in layers.items()}
    small = {n: lp for n, lp in pathways.items() if sizes[lp[0]] <= curvature.exact_up_to}
    scales = {n: lp for n, lp in pathways.items() if n not in small and lp[1].acts == "scale"}
    narrow = {n: lp for n, lp in scales.items() if lp[1].numel <= LARGEST_SCALE_BLOCK}
    wide = {n: lp for n, lp in scales.items() if n not in narrow}
    rest = {n: lp for n, lp in pathways.items() if n not in small and n not in scales}
    found = _dense(layers, small, "layer") + _dense(layers, narrow, "pathway")
    if wide:
        found.append(DiagonalAccumulator(layers, wide))
    if rest:
        found.append(KroneckerAccumulator(layers, rest, curvature))
    return found


def joint_hessian(accumulators: Iterable[Accumulator], sums: Iterable[Sums]) -> Hessian:
    """H of all pathways, from every accumulator's sums."""
    parts = [part.hessian(values) for part, values in zip(accumulators, sums, strict=True) if values]
    return parts[0] if len(parts) == 1 else BlockDiagonal(tuple(parts))


def _dense(layers: Layers, pathways: Named, kind: str) -> list[Accumulator]:
    if kind == "full":
        return [DenseAccumulator(layers, pathways)]
    blocks: dict[str, Named] = {}
    for name, (layer, pathway) in pathways.items():
        blocks.setdefault(layer if kind == "layer" else name, {})[name] = (layer, pathway)
    return [DenseAccumulator(layers, block) for block in blocks.values()]


class _Sums:
    """Named sums; out of place where a graph is to be kept, in place where not."""

    def __init__(self, layers: Layers, pathways: Named) -> None:
        self.layers, self.pathways = layers, pathways
        self.sums: Sums = {}

    def add(self, *key: str, term: Tensor) -> None:
        total = self.sums.get(key)
        if total is None:
            self.sums[key] = term
        elif term.requires_grad or total.requires_grad:
            self.sums[key] = total + term
        else:
            total.add_(term)

    def called(self, calls: dict[str, LayerIO]) -> Named:
        """The pathways of layers that a batch has been through."""
        return {name: (layer, pathway) for name, (layer, pathway) in self.pathways.items() if layer in calls}


class RowAccumulator(_Sums):
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

    def add_gradients(self, calls: dict[str, LayerIO], gradients: Gradients) -> None:
        """Add the Gram matrix of the rows."""
        found = self.rows(calls, gradients)
        if not found:
            return
        some = next(iter(found.values()))
        rows = [
            found[name] if name in found else some.new_zeros(*some.shape[:2], pathway.numel)
            for name, (_, pathway) in self.pathways.items()
        ]
        jacobian = torch.cat(rows, -1).flatten(0, 1)
        total = self.sums.get(("matrix",))
        if total is None or total.requires_grad or jacobian.requires_grad:
            self.add("matrix", term=jacobian.mT @ jacobian)
        else:
            total.addmm_(jacobian.mT, jacobian)

    def hessian(self, sums: Sums) -> Hessian:
        """The dense block."""
        return DenseBlock(sums["matrix",], {name: pathway.numel for name, (_, pathway) in self.pathways.items()})


class DiagonalAccumulator(RowAccumulator):
    """diag H = Σ_n (Jᵀ S)² 1 by pathway, (P,)."""

    def add_gradients(self, calls: dict[str, LayerIO], gradients: Gradients) -> None:
        """Add the squares of the rows."""
        for name, rows in self.rows(calls, gradients).items():
            self.add(name, term=rows.square().sum((0, 1)))

    def hessian(self, sums: Sums) -> Hessian:
        """Its eigenvalues are its entries."""
        return Spectra({name: values for (name,), values in sums.items()})


class KroneckerAccumulator(_Sums):
    """KFAC's factors by layer, H ≈ A ⊗ B (arXiv 2311.00636).

    expand: A = mean over data and positions of a aᵀ, B = sum over data, columns and positions of g gᵀ.
    reduce: the same of the mean of a, and of the sum of g, over the positions of a datum.
    """

    def __init__(self, layers: Layers, pathways: Named, curvature: Curvature) -> None:
        super().__init__(layers, pathways)
        self.curvature, self.reduce = curvature, curvature.kfac == "reduce"
        self.kernels = {layer for layer, pathway in pathways.values() if pathway.acts == "kernel"}
        self.all_layers = {layer for layer, _ in pathways.values()}
        self.vectors: dict[str, int] = {}  # how many a's were summed, by layer

    def add_inputs(self, calls: dict[str, LayerIO], draw: Draw) -> None:
        """Add Σ a aᵀ, of every datum or, where columns are sampled and there is plenty, of every `THINNED`th."""
        for layer in self.kernels & calls.keys():
            declaration, heard = self.layers[layer][1], calls[layer]
            if self.curvature.samples is not None and self._plenty(declaration, heard, draw.total):
                start = (self.curvature.seed - draw.first) % THINNED
                if start >= len(heard.inputs[0]):
                    continue
                heard = heard.every(THINNED, start)
            for some in heard.split(max(1, CACHED // self._numbers(declaration, heard))):
                patches = some.patches(declaration)
                if self.reduce:
                    patches = patches.mean(-1, keepdim=True)
                self.add(layer, "inputs", term=second_moment(patches))
                self.vectors[layer] = self.vectors.get(layer, 0) + patches.shape[0] * patches.shape[-1]

    def _plenty(self, declaration: Declaration, heard: LayerIO, examples: int) -> bool:
        size, positions = heard.first().patches(declaration).shape[1:]
        return not self.reduce and examples >= THINNED and examples * positions >= PLENTY * size

    def _numbers(self, declaration: Declaration, heard: LayerIO) -> int:
        """How many numbers one datum's patches are."""
        return heard.first().patches(declaration).numel()

    def add_gradients(self, calls: dict[str, LayerIO], gradients: Gradients) -> None:
        """Add Σ g gᵀ."""
        for layer in self.all_layers & calls.keys():
            responses = calls[layer].responses(self.layers[layer][1], gradients[layer]).flatten(0, 1)
            if self.reduce:
                responses = responses.sum(-1, keepdim=True)
            self.add(layer, "outputs", term=second_moment(responses))

    def factors(self, sums: Sums) -> dict[str, Factors]:
        """The blocks (A, B) of every pathway whose layer was called."""
        found = {}
        for name, (layer, pathway) in self.pathways.items():
            if (layer, "outputs") not in sums:
                continue
            b = sums[layer, "outputs"]
            a = b.new_ones(1, 1)
            if pathway.acts == "kernel":
                a = sums[layer, "inputs"] / self.vectors[layer]
            split = pathway.reduced_factors if self.reduce and pathway.reduced_factors else pathway.factors
            found[name] = split(a, b)
        return found

    def hessian(self, sums: Sums) -> Hessian:
        """Eigenvalues a_i b_j of every pathway's blocks.

        Raises:
            FloatingPointError: factors that are not finite.
        """
        factors = self.factors(sums)
        spectra = iter(_spectra([factor for blocks in factors.values() for block in blocks for factor in block]))
        eigenvalues = {
            name: torch.cat([torch.outer(next(spectra), next(spectra)).flatten() for _ in blocks])
            for name, blocks in factors.items()
        }
        bad = next((name for name, values in eigenvalues.items() if not torch.isfinite(values).all()), None)
        if bad is not None:
            raise FloatingPointError(
                f"layer {self.pathways[bad][0]!r}: its curvature is not finite; check the data or lower the "
                "learning rate"
            )
        return Spectra(eigenvalues)


def second_moment(vectors: Tensor) -> Tensor:
    """Σ v vᵀ over the first and the last axis of (batch, size, positions), (size, size)."""
    differentiable = torch.is_grad_enabled() and vectors.requires_grad
    return _SecondMoment.apply(vectors) if differentiable else _SecondMoment.forward(vectors)


class _SecondMoment(torch.autograd.Function):
    """M = Σ v vᵀ; an incoming gradient Γ goes back as (Γ + Γᵀ) v, in one product where autograd takes two."""

    @staticmethod
    def forward(vectors: Tensor) -> Tensor:
        size, positions = vectors.shape[1:]
        if positions < size:
            rows = vectors.mT.reshape(-1, size)
            return rows.mT @ rows
        return (vectors @ vectors.mT).sum(0)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (vectors,) = ctx.saved_tensors
        symmetric = gradient + gradient.mT
        if vectors.shape[2] < vectors.shape[1]:
            return (vectors.mT @ symmetric).mT
        return symmetric.expand(len(vectors), -1, -1) @ vectors


def _spectra(factors: list[Tensor]) -> list[Tensor]:
    """Eigenvalues of symmetric matrices, those of one size in one call.

    In float64, where the eigensolver copes with the tiny and repeated eigenvalues of dead units; a matrix that is not
    finite has NaN for all of them.
    """
    by_size: dict[int, list[int]] = {}
    for index, factor in enumerate(factors):
        by_size.setdefault(len(factor), []).append(index)
    found: dict[int, Tensor] = {}
    for indices in by_size.values():
        stacked = torch.stack([factors[i] for i in indices]).double()
        finite = torch.isfinite(stacked).all(-1).all(-1)[:, None]
        values = torch.linalg.eigvalsh(torch.where(finite[..., None], stacked, 0.0)).clamp(min=0)
        values = torch.where(finite, values, torch.nan)
        found |= {i: v.to(factors[i].dtype) for i, v in zip(indices, values, strict=True)}
    return [found[i] for i in range(len(factors))]

"""Blocks of H as Kronecker products, H ≈ A ⊗ B: second moments of a layer's inputs and of its output gradients."""

import torch
from torch import Tensor

from bayesws.evidence.capture import CACHED, LayerIO, Layers
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.hessian import Spectra
from bayesws.evidence.rows import Gradients
from bayesws.evidence.sampling import Draw
from bayesws.evidence.shapes import Shapes
from bayesws.evidence.sums import Key, Named, Summing, Sums
from bayesws.layers.contract import Declaration, Factors

THINNED, PLENTY = 4, 1000  # sampled factors: A of every 4th datum if there are 1000 patches for each of its rows


class KroneckerAccumulator(Summing):
    """KFAC's factors by layer, H ≈ A ⊗ B (arXiv 2311.00636).

    expand: A = mean over data and positions of a aᵀ, B = sum over data, columns and positions of g gᵀ.
    reduce: the same of the mean of a, and of the sum of g, over the positions of a datum.
    """

    def __init__(self, layers: Layers, pathways: Named, curvature: Curvature) -> None:
        super().__init__(layers, pathways)
        self.curvature, self.reduce = curvature, curvature.kfac == "reduce"
        self.kernels = list(dict.fromkeys(layer for layer, pathway in pathways.values() if pathway.acts == "kernel"))
        self.all_layers = list(dict.fromkeys(layer for layer, _ in pathways.values()))
        self.blocks = {layer: pathway.blocks for layer, pathway in pathways.values() if pathway.acts == "kernel"}
        whole = {layer for layer, pathway in pathways.values() if pathway.acts != "kernel"}  # a bias has all of B
        self.blocks_out = {layer: 1 if layer in whole else blocks for layer, blocks in self.blocks.items()}

    def add_inputs(self, calls: dict[str, LayerIO], draw: Draw) -> None:
        """Add Σ a aᵀ, of every datum or, where columns are sampled and there is plenty, of every `THINNED`th."""
        for layer in self.kernels:
            if layer not in calls:
                continue
            declaration, heard = self.layers[layer][1], calls[layer]
            if self.curvature.samples is not None and self._plenty(declaration, heard, draw.total):
                heard = heard.some(draw.every(THINNED, self.curvature.seed))
                if not len(heard.inputs[0]):
                    continue
            for some in heard.split(max(1, CACHED // self._numbers(declaration, heard))):
                patches = some.patches(declaration)
                if self.reduce:
                    patches = patches.mean(-1, keepdim=True)
                moment = moments(patches, self.blocks[layer])
                self.add(("inputs", layer), moment, patches.shape[0] * patches.shape[-1])

    def _plenty(self, declaration: Declaration, heard: LayerIO, examples: int) -> bool:
        size, positions = heard.first().patches(declaration).shape[1:]
        return not self.reduce and examples >= THINNED and examples * positions >= PLENTY * size

    def _numbers(self, declaration: Declaration, heard: LayerIO) -> int:
        """How many numbers one datum's patches are."""
        return heard.first().patches(declaration).numel()

    def add_gradients(self, calls: dict[str, LayerIO], gradients: Gradients) -> None:
        """Add Σ g gᵀ."""
        for layer in self.all_layers:
            if layer not in calls:
                continue
            responses = calls[layer].responses(self.layers[layer][1], gradients[layer]).flatten(0, 1)
            if self.reduce:
                responses = responses.sum(-1, keepdim=True)
            self.add(("outputs", layer), moments(responses, self.blocks_out.get(layer, 1)))

    def numbers(self, shapes: Shapes) -> dict[Key, int]:
        """Those of A for every kernel, of B for every layer."""
        kernels, layers = ([n for n in names if n in shapes] for names in (self.kernels, self.all_layers))
        found: dict[Key, int] = {("inputs", n): shapes[n].fan_in ** 2 // self.blocks[n] for n in kernels}
        return found | {("outputs", n): shapes[n].fan_out ** 2 // self.blocks_out.get(n, 1) for n in layers}

    def factors(self, sums: Sums) -> dict[str, Factors]:
        """The blocks (A, B) of every pathway whose layer was called.

        Raises:
            ValueError: a layer that was called for none of the data that A is taken of.
        """
        found = {}
        for name, (layer, pathway) in self.pathways.items():
            inputs, outputs = ("inputs", layer), ("outputs", layer)
            if outputs not in sums.tensors:
                continue
            b = sums.tensors[outputs]
            a = b.new_ones(1, 1)
            if pathway.acts == "kernel":
                if inputs not in sums.tensors:
                    raise ValueError(
                        f"layer {layer!r} was called for none of every {THINNED}th datum: take all columns "
                        "(samples=None), or add what other parts of the data have summed"
                    )
                a = sums.tensors[inputs] / sums.counts[inputs]
                if pathway.blocks > 1 and b.ndim == 2:
                    b = b.unflatten(-1, (pathway.blocks, -1)).unflatten(0, (pathway.blocks, -1)).diagonal(0, 0, 2)
                    b = b.movedim(-1, 0)
            split = pathway.reduced_factors if self.reduce and pathway.reduced_factors else pathway.factors
            found[name] = split(a, b)
        return found

    def hessian(self, sums: Sums) -> Spectra | None:
        """Eigenvalues a_i b_j of every pathway's blocks; None where no layer was called.

        Raises:
            FloatingPointError: factors that are not finite.
            ValueError: as for `factors`.
        """
        factors = self.factors(sums)
        if not factors:
            return None
        spectra = iter(spectra_of([factor for blocks in factors.values() for block in blocks for factor in block]))
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


def moments(vectors: Tensor, blocks: int) -> Tensor:
    """Σ v vᵀ over the first and the last axis of (batch, size, positions): (size, size), or that of every block of v,
    (blocks, size / blocks, size / blocks)."""
    if blocks == 1:
        return second_moment(vectors)
    rows = vectors.unflatten(1, (blocks, -1)).permute(1, 2, 0, 3).flatten(2)
    return rows @ rows.mT


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


def spectra_of(factors: list[Tensor]) -> list[Tensor]:
    """Eigenvalues of symmetric matrices, small ones of one size in one call, large ones one by one.

    In float64, where the eigensolver copes with the tiny and repeated eigenvalues of dead units; a matrix that is not
    finite has NaN for all of them.
    """
    by_size: dict[int, list[int]] = {}
    for index, factor in enumerate(factors):
        by_size.setdefault(len(factor), []).append(index)
    found: dict[int, Tensor] = {}
    for size, indices in by_size.items():
        at_once = max(1, CACHED // max(1, size**2))
        for some in (indices[i : i + at_once] for i in range(0, len(indices), at_once)):
            stacked = torch.stack([factors[i] for i in some]).double()
            finite = torch.isfinite(stacked).all(-1).all(-1)[:, None]
            values = torch.linalg.eigvalsh(torch.where(finite[..., None], stacked, 0.0)).clamp(min=0)
            values = torch.where(finite, values, torch.nan)
            found |= {i: v.to(factors[i].dtype) for i, v in zip(some, values, strict=True)}
    return [found[i] for i in range(len(factors))]

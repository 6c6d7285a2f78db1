"""Which accumulator sums which pathway, as the curvature asks: in bounded memory, batch by batch.

All that an accumulator has summed over some data is one value, its `Sums`: what was summed over two parts of the data
is added, and a derivative in these sums is all that a second pass needs.
"""

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from bayesws.evidence.capture import LayerIO, Layers
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.function_space import JointAccumulator
from bayesws.evidence.hessian import BlockDiagonal, DenseBlock, Hessian, Spectra
from bayesws.evidence.kronecker import KroneckerAccumulator
from bayesws.evidence.nesting import Nested, nested
from bayesws.evidence.rows import DenseAccumulator, DiagonalAccumulator, Gradients
from bayesws.evidence.sampling import Draw
from bayesws.evidence.shapes import Shapes
from bayesws.evidence.sums import Key, Named, Sums

LARGEST_SCALE_BLOCK = 2048  # elementwise factors: up to here their exact block, above its diagonal


class Accumulator(Protocol):
    """Sums over the data, batch by batch, and the Hessian that follows from them."""

    pathways: Named

    @property
    def sums(self) -> Sums:
        """What was summed so far, under keys of its own."""
        ...

    def add_inputs(self, calls: dict[str, LayerIO], draw: Draw) -> None:
        """Take in one batch's way forward."""
        ...

    def add_gradients(self, calls: dict[str, LayerIO], gradients: Gradients) -> None:
        """Take in some columns of the same batch's output gradients."""
        ...

    def numbers(self, shapes: Shapes) -> dict[Key, int]:
        """How many numbers its sums will be, by key, for layers of these shapes."""
        ...

    def hessian(self, sums: Sums) -> Hessian | None:
        """H from these sums, differentiable in them and in the layers' structure; None where there are none."""
        ...


def named(layers: Layers) -> Named:
    """Every pathway of the layers by its full name, "layer.pathway"."""
    return {
        f"{layer}.{pathway.name}" if layer else pathway.name: (layer, pathway)
        for layer, (_, declaration) in layers.items()
        for pathway in declaration.pathways
    }


def accumulators_for(
    curvature: Curvature, layers: Layers, function_space: bool = False, drawn: bool = False
) -> list[Accumulator]:
    """New, empty sums for every pathway of the layers; each Accumulator holds some of the pathways.

    Args:
        function_space: whether rows may stay rows where they are fewer than parameters ("full"): their determinant is
            then the smaller one, but there is no H to take derivatives in.
        drawn: whether only some of the data have rows ("full").
    """
    pathways = named(layers)
    if not pathways:
        return []
    if curvature.kind == "diag":
        return [DiagonalAccumulator(layers, pathways)]
    if curvature.kind == "full":
        kind = JointAccumulator if function_space else DenseAccumulator
        return [kind(layers, pathways, curvature.samples or 1, drawn)]
    if curvature.kind != "kron":
        return _dense(layers, pathways, curvature.kind)
    sizes: dict[str, int] = {}
    for layer, pathway in pathways.values():
        sizes[_whole(layers, layer)] = sizes.get(_whole(layers, layer), 0) + pathway.numel
    small = {n: lp for n, lp in pathways.items() if sizes[_whole(layers, lp[0])] <= curvature.exact_up_to}
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


def joint_hessian(accumulators: Iterable[Accumulator], sums: Sums) -> Hessian:
    """H of all pathways, from the sums of all accumulators."""
    accumulators = list(accumulators)
    within = nested({name: p for accumulator in accumulators for name, (_, p) in accumulator.pathways.items()})
    found = [part for accumulator in accumulators if (part := accumulator.hessian(sums)) is not None]
    parts = _together(found, within)
    return parts[0] if len(parts) == 1 else BlockDiagonal(tuple(parts))


def _together(parts: list[Hessian], within: Nested) -> list[Hessian]:
    """The same parts, but one for all that are known by eigenvalues, and for blocks of one nested pathway each."""
    spectra: dict[str, Tensor] = {}
    others: list[Hessian] = []
    of_nests = {name for inner, (outer, _) in within.items() for name in (inner, outer)}
    for part in parts:
        if isinstance(part, Spectra):
            spectra |= part.eigenvalues
        elif isinstance(part, DenseBlock) and len(part.sizes) == 1 and of_nests.issuperset(part.sizes):
            spectra |= part.spectrum()
        else:
            others.append(part)
    if not spectra:
        return others
    coupled = {name: place for name, place in within.items() if name in spectra and place[0] in spectra}
    return [*others, Spectra(spectra, coupled)]


def _dense(layers: Layers, pathways: Named, kind: str) -> list[Accumulator]:
    blocks: dict[str, Named] = {}
    for name, (layer, pathway) in pathways.items():
        blocks.setdefault(_whole(layers, layer) if kind == "layer" else name, {})[name] = (layer, pathway)
    return [DenseAccumulator(layers, block) for block in blocks.values()]


def _whole(layers: Layers, name: str) -> str:
    """The layer that a declaring module is a part of, its own name where it is a layer itself."""
    part_of = layers[name][1].part_of
    return name if part_of is None else part_of

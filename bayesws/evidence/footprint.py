"""What an evidence takes of memory, from what the layers declare and from the shapes of one datum."""

from collections import Counter
from collections.abc import Iterable

from bayesws.evidence.accumulators import Accumulator, accumulators_for
from bayesws.evidence.capture import CACHED, Layers
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.kronecker import KroneckerAccumulator
from bayesws.evidence.memory import BESIDE, IN_FLOAT64, matrices_bytes
from bayesws.evidence.rows import DenseAccumulator, DiagonalAccumulator
from bayesws.evidence.shapes import Shapes, numbers_in_a_row

ELEMENTWISE = 3  # of all eigenvalues at once: themselves, in pieces, and a function of them


def held_numbers(curvature: Curvature, layers: Layers, shapes: Shapes, rows: int) -> int:
    """How many numbers the sums over the data are: rows or P² of "full", the blocks of "layer", the factors of "kron".

    Args:
        curvature, layers, shapes: what is summed, of what.
        rows: as many as there are in function space, see `thinning.rows_for`.
    """
    if in_function_space(curvature, layers, rows):
        return rows * numbers_in_a_row(layers, shapes)
    return sum(sum(a.numbers(shapes).values()) for a in _accumulators(curvature, layers, rows))


def in_function_space(curvature: Curvature, layers: Layers, rows: int) -> bool:
    """Whether H stays as its rows."""
    return curvature.kind == "full" and 0 < rows < sum(_sizes(layers))


def peak_bytes(curvature: Curvature, layers: Layers, shapes: Shapes, rows: int, batch: int, number: int) -> int:
    """Bytes at the peak of an evidence that keeps no graph, beside the network and the data.

    The sums stay; beside them there are first the signals of a batch, then what eigenvalues or determinants take.

    Args:
        curvature, layers, shapes, rows: as for `held_numbers`.
        batch: how many data are in the network at once.
        number: bytes of a number.
    """
    accumulators = _accumulators(curvature, layers, rows)
    sums = held_numbers(curvature, layers, shapes, rows) * number
    passing = (_signals(shapes, batch) + max((_beside(a, shapes, batch) for a in accumulators), default=0)) * number
    eigenvalues = sum(
        p.numel for a in accumulators if not isinstance(a, DenseAccumulator) for _, p in a.pathways.values()
    )
    if in_function_space(curvature, layers, rows):
        return sums + max(passing, matrices_bytes(len(_sizes(layers)), rows))
    return sums + max(passing, ELEMENTWISE * eigenvalues * number + _factorising(accumulators, shapes, number))


def _accumulators(curvature: Curvature, layers: Layers, rows: int) -> list[Accumulator]:
    """Those of so many rows: of as many as are drawn there may be more data, whose halves are then summed apart."""
    drawn = curvature.samples is not None and rows >= curvature.rows * curvature.samples
    return accumulators_for(curvature, layers, drawn=drawn)


def _sizes(layers: Layers) -> list[int]:
    """Numbers of parameters, pathway by pathway."""
    return [p.numel for _, declaration in layers.values() for p in declaration.pathways]


def _signals(shapes: Shapes, batch: int) -> int:
    """Inputs and outputs of all layers, and the outputs' gradients; outputs are copied, or are some activation's."""
    return batch * sum(shape.inputs + 3 * shape.outputs for shape in shapes.values())


def _beside(accumulator: Accumulator, shapes: Shapes, batch: int) -> int:
    """What an accumulator makes of a batch's signals: patches, rows of samples."""
    of = {layer: shapes[layer] for layer, _ in accumulator.pathways.values() if layer in shapes}
    patches = {layer: shape.fan_in * shape.positions for layer, shape in of.items()}
    if isinstance(accumulator, KroneckerAccumulator):
        return max((max(CACHED, p) if p * batch > CACHED else p * batch for p in patches.values()), default=0) * 2
    kept = batch * sum(patches.values())
    if isinstance(accumulator, DiagonalAccumulator):
        return kept + 2 * max((max(CACHED, s.fan_in * s.fan_out) for s in of.values()), default=0)
    return kept + 2 * batch * sum(p.numel for _, p in accumulator.pathways.values())


def _factorising(accumulators: Iterable[Accumulator], shapes: Shapes, number: int) -> int:
    """Copies of the largest block, or of the factors that one call takes."""
    largest = 0
    for accumulator in accumulators:
        numbers = accumulator.numbers(shapes)
        if isinstance(accumulator, DenseAccumulator):
            largest = max(largest, BESIDE * number * max(numbers.values(), default=0))
        elif isinstance(accumulator, KroneckerAccumulator):
            together = [max(n, min(n * count, CACHED)) for n, count in Counter(numbers.values()).items()]
            largest = max(largest, IN_FLOAT64 * max(together, default=0))
    return largest

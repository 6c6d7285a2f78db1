"""What an evidence takes of time: measured on some data and two columns, and on slices of what grows with its cube."""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from bayesws.evidence.accumulators import Accumulator, accumulators_for
from bayesws.evidence.capture import LayerIO, Layers, output_gradients, run_forward
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.footprint import in_function_space
from bayesws.evidence.function_space import FunctionSpace
from bayesws.evidence.gathering import COLUMNS_AT_ONCE
from bayesws.evidence.hessian import DenseBlock, Spectra
from bayesws.evidence.kronecker import KroneckerAccumulator, spectra_of
from bayesws.evidence.likelihood import Likelihood
from bayesws.evidence.rows import DenseAccumulator, Gradients, RowAccumulator
from bayesws.evidence.sampling import Draw, Signs
from bayesws.evidence.thinning import rows_for

SLICE = 1536  # rows and columns of a large matrix that its time is measured on
MANY = 2**20  # eigenvalues that the time of all is measured on
COLUMNS = 2  # that are sent back to measure one
ENOUGH, TURNS = 0.3, 7  # for how many seconds, and how often at most, a measurement is repeated

SIGNALS, BACK, FACTORS = "signals and patches", "output gradients", "eigenvalues and determinants"


def seconds_of(work: Callable[[], object], device: torch.device, turns: int = TURNS) -> float:
    """The median of several turns, fewer where one takes long but three: others may use the machine, too."""
    found: list[float] = []
    while len(found) < min(turns, 3) or (len(found) < turns and sum(found) < ENOUGH):
        start = _now(device)
        work()
        found.append(_now(device) - start)
    return statistics.median(found)


def seconds_by_part(
    net: nn.Module,
    layers: Layers,
    curvature: Curvature,
    likelihood: Likelihood,
    some: tuple[Tensor, Tensor],
    copies: bool,
    data: int,
    in_a_row: int,
) -> dict[str, float]:
    """Seconds of an evidence's signals, of its way back, and of its factorisations; to be called without gradients.

    Args:
        net, layers, curvature, likelihood: what is asked for.
        some: data (x, y) as they go through the network at once.
        copies: see `run_forward`.
        data: how many are looked at in all; where rows are drawn, all are taken to have some.
        in_a_row: numbers of a row in function space.
    """
    (x, y), device = some, some[0].device
    curvature = replace(curvature, seed=0)  # so that the first datum is among those that A is taken of
    signs = None if curvature.samples is None else Signs(curvature.seed, curvature.samples)
    draw = Draw(torch.arange(len(x)), data, signs)
    accumulators: list[Accumulator | _Rows] = [
        _Rows(layers, a.pathways) if isinstance(a, DenseAccumulator) else a for a in accumulators_for(curvature, layers)
    ]
    signals: list[float] = []
    back: list[float] = []
    columns = 0
    while not back or (len(back) < TURNS and sum(signals) + sum(back) < ENOUGH):
        start = _now(device)
        forward = run_forward(net, layers, x, copies)
        calls = {name: heard.detached() for name, heard in forward.calls.items()}
        for accumulator in accumulators:
            accumulator.add_inputs(calls, draw)
        likelihood.log_prob(forward.outputs.detach(), y)
        root = draw.combine(likelihood.hessian_root(forward.outputs.detach()))
        between, columns = _now(device), root.shape[-1]
        for gradients in output_gradients(forward, root[..., :COLUMNS], False, COLUMNS_AT_ONCE):
            for accumulator in accumulators:
                accumulator.add_gradients(calls, gradients)
        signals.append(between - start)
        back.append((_now(device) - between) / min(COLUMNS, columns))
    times, a_column = data / len(x), statistics.median(back)
    rows = rows_for(replace(curvature, subset=1.0), data, columns)
    if in_function_space(curvature, layers, rows):
        factors = _seconds_of_function_space(rows, in_a_row, curvature.samples or 1, curvature.rows < data, x)
    else:
        a_column += sum(_seconds_of_gram(len(x), a.size, x) for a in accumulators if isinstance(a, _Rows))
        factors = _seconds_of_factors(accumulators, x)
    return {SIGNALS: times * statistics.median(signals), BACK: times * columns * a_column, FACTORS: factors}


class _Rows(RowAccumulator):
    """The rows of a dense block, without the block."""

    @property
    def size(self) -> int:
        return sum(pathway.numel for _, pathway in self.pathways.values())

    def add_gradients(self, calls: dict[str, LayerIO], gradients: Gradients) -> None:
        rows = list(self.rows(calls, gradients).values())
        if rows:
            torch.cat(rows, -1)


def _seconds_of_gram(rows: int, size: int, like: Tensor) -> float:
    """Of one product rowsᵀ rows that is added to a block (size, size): it grows with the square of the size."""
    part = min(size, SLICE)
    some, total = like.new_ones(rows, part), like.new_zeros(part, part)
    return seconds_of(lambda: total.addmm_(some.mT, some), like.device) * (size / part) ** 2


def _seconds_of_function_space(rows: int, in_a_row: int, samples: int, drawn: bool, like: Tensor) -> float:
    """Of the Gram matrices of all rows, and of their determinants: in the second and third power of the rows.

    With several samples there are as many determinants more, each of the rows but one column's, and where rows are
    drawn those of two halves (see `jackknife`).
    """
    part, columns = min(rows, SLICE), min(in_a_row, SLICE)
    some = like.new_ones(part, columns)
    space = FunctionSpace.of({"": [some]})
    of_gram = seconds_of(lambda: FunctionSpace.of({"": [some]}), like.device)
    of_factors = seconds_of(lambda: _evaluate(space), like.device)
    determinants = 1 + samples * (1 - 1 / samples) ** 3 + 2 * 0.5**3 * (drawn and samples > 1)
    return of_gram * (rows / part) ** 2 * in_a_row / columns + of_factors * determinants * (rows / part) ** 3


def _seconds_of_factors(accumulators: "list[Accumulator | _Rows]", like: Tensor) -> float:
    """Of the eigenvalues or determinants of all blocks, and of the evidence that is made of them."""
    total = 0.0
    dense = Counter((a.size, len(a.pathways)) for a in accumulators if isinstance(a, _Rows))
    for (size, pathways), count in dense.items():
        total += count * _seconds_of_block(size, pathways, like)
    eigenvalues = sum(p.numel for a in accumulators if not isinstance(a, _Rows) for _, p in a.pathways.values())
    if eigenvalues:
        part = min(eigenvalues, MANY)
        spectra = Spectra({"": like.new_ones(part)})
        total += seconds_of(lambda: _evaluate(spectra), like.device) * eigenvalues / part
    for accumulator in accumulators:
        if isinstance(accumulator, KroneckerAccumulator):
            start = _now(like.device)
            blocks = [block for found in accumulator.factors(accumulator.sums).values() for block in found]
            total += _now(like.device) - start
            total += _seconds_of_spectra([factor for pair in blocks for factor in pair])
    return total


def _seconds_of_spectra(factors: list[Tensor]) -> float:
    """Of the eigenvalues of symmetric matrices: they grow with the third power of the size."""
    slices = {min(len(factor), SLICE): factor[:SLICE, :SLICE].contiguous() for factor in factors}
    of_part = {part: seconds_of(partial(spectra_of, [some]), some.device) for part, some in slices.items()}
    return sum(of_part[min(len(f), SLICE)] * max(1.0, len(f) / SLICE) ** 3 for f in factors)


def _seconds_of_block(size: int, pathways: int, like: Tensor) -> float:
    """Of a dense block's determinants and inverse, in the third power of its size."""
    part = min(size, SLICE)
    sizes = {str(i): part // pathways + (i < part % pathways) for i in range(pathways)}
    block = DenseBlock(torch.eye(part, dtype=like.dtype, device=like.device), sizes)
    return seconds_of(lambda: _evaluate(block), like.device) * (size / part) ** 3


def _evaluate(hessian: DenseBlock | FunctionSpace | Spectra) -> None:
    """All that an evidence asks of H, at log precisions 0."""
    if isinstance(hessian, DenseBlock):
        tensors = dict.fromkeys(hessian.sizes, hessian.matrix)
    else:
        tensors = hessian.grams if isinstance(hessian, FunctionSpace) else hessian.eigenvalues
    logs = {name: tensor.new_zeros(()) for name, tensor in tensors.items()}
    hessian.occam_by_pathway(logs)
    hessian.effective(logs)
    hessian.occam(logs)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

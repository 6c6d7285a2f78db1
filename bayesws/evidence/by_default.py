"""The curvature where nobody asks for one: as exact as it can be afforded, and the same on every machine."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from bayesws.evidence.curvature import ROWS, Curvature
from bayesws.evidence.likelihood import Likelihood
from bayesws.evidence.shapes import multiplications_back, numbers_in_a_row, shapes_of
from bayesws.evidence.thinning import root_of
from bayesws.layers.contract import declarations

AT_THE_END = 5 * 10**10  # multiplications of a determinant at the end of a fit, or that networks are ranked by
IN_A_STEP = 10**9  # of one that is computed again and again
ROW_NUMBERS = 25 * 10**7  # numbers in the rows of a determinant in function space: 1 GB
STEP_ROWS = 500  # data in that of a step
STEP_ROW_NUMBERS = 10**8
ALL_COLUMNS = 2 * 10**8  # multiplications a datum up to which all columns go back
LEAST_ROWS = 500  # of a determinant at the end
COLUMNS = 2  # that are sampled a datum, where it has several: of one, nothing tells how far off it is (`jackknife`)
MANY_COLUMNS = 1000
UNKNOWN = 2000  # parameters up to which H is taken whole where nobody knows the number of data


@dataclass(frozen=True)
class Size:
    """How large the rows of H are.

    Attributes:
        parameters: P, those that are trained.
        in_a_row: W ≤ P, how many numbers a row is held as in function space (see `products`).
    """

    parameters: int
    in_a_row: int

    @classmethod
    def of(cls, net: nn.Module, x: Tensor) -> "Size":
        """Of a network that takes such inputs."""
        layers = declarations(net)
        return cls(parameters_of(net), numbers_in_a_row(layers, shapes_of(net, layers, x)[0]))


def parameters_of(net: nn.Module) -> int:
    """P, the trained parameters that H is of."""
    return sum(p.numel for _, declaration in declarations(net).values() for p in declaration.pathways)


def determinant_cost(size: Size, rows: int) -> int:
    """Multiplications of det(I + Λ⁻¹ H) in the smaller of the two spaces: P² R, or R² W of the Gram matrices and R³."""
    return size.parameters**2 * rows if rows >= size.parameters else rows**2 * max(size.in_a_row, rows)


def sharpest_curvature(
    net: nn.Module, count: int, example: Callable[[], Tensor | None], likelihood: Likelihood
) -> Curvature:
    """ "full", the whole exact H, where it can be afforded; else by sampled columns of the data; else "kron".

    By as many columns as `full_curvature` says; where it says none, as `kronecker_curvature` does.

    Args:
        net: the network.
        count: N; -1 where nobody knows.
        example: gives some inputs, or None where they cannot be looked at beforehand; called only if they are needed.
        likelihood: of the outputs.
    """
    parameters = parameters_of(net)
    if 0 <= count and determinant_cost(Size(parameters, parameters), count * MANY_COLUMNS) <= AT_THE_END:
        return Curvature("full")  # whatever C is
    x = None if count < 0 and parameters <= UNKNOWN else example()
    if x is None or count < 0:
        if parameters <= UNKNOWN:
            return Curvature("full")
        return Curvature("kron", samples=1) if x is None else kronecker_curvature(net, x, likelihood)[0]
    sharpest = full_curvature(Size.of(net, x), count, columns_of(net, x, likelihood))
    return kronecker_curvature(net, x, likelihood)[0] if sharpest is None else sharpest


def step_curvature(
    net: nn.Module, count: int, x: Tensor, likelihood: Likelihood, structured: bool
) -> tuple[Curvature, str | None]:
    """The same for the steps of a fit, which take it some thirty times; and what is to be told of it.

    All columns where `determinant_cost` is at most `IN_A_STEP`; one sampled column of at most 500 data where their rows
    have at most `STEP_ROW_NUMBERS` numbers. Else, and where a structure is learned, as `kronecker_curvature` says.
    """
    if count >= 0 and not structured:
        size = Size.of(net, x)
        if determinant_cost(size, count * columns_of(net, x, likelihood)) <= IN_A_STEP:
            return Curvature("full"), None
        if min(count, STEP_ROWS) * size.in_a_row <= STEP_ROW_NUMBERS:
            return Curvature("full", samples=1, rows=STEP_ROWS), None
    return kronecker_curvature(net, x, likelihood)


def full_curvature(size: Size, count: int, columns: int) -> Curvature | None:
    """ "full" of such rows: by all columns, or by as many sampled rows as can be afforded; None where too few can.

    All where `determinant_cost` is at most `AT_THE_END`. Else as many rows as cost that, or 2000 where these are more;
    fewer where they have more than `ROW_NUMBERS` numbers, but no less than 500. They are of as many columns as there
    are rows for, of all data or of 2000, or of two columns of fewer data: nearly exact (see `jackknife`).

    Args:
        size: of the rows.
        count: N, known.
        columns: C, all that a datum has.
    """
    if determinant_cost(size, count * columns) <= AT_THE_END:
        return Curvature("full")
    most, data = min(max(ROWS, affordable_rows(size)), ROW_NUMBERS // size.in_a_row), min(count, ROWS)
    if (samples := min(most // data, columns - 1)) >= COLUMNS:
        return Curvature("full", samples=samples)
    samples = min(COLUMNS, columns)
    fewer = most // samples
    if samples * min(data, fewer) < min(count, LEAST_ROWS):
        return None
    return Curvature("full", samples=samples, rows=min(fewer, ROWS))


def affordable_rows(size: Size) -> int:
    """The most rows, fewer than P, whose determinant costs at most `AT_THE_END`: R² W, or R³ where R is above W."""
    by_width = math.isqrt(AT_THE_END // max(1, size.in_a_row))
    return by_width if by_width <= size.in_a_row else math.floor(AT_THE_END ** (1 / 3))


def columns_of(net: nn.Module, x: Tensor, likelihood: Likelihood) -> int:
    """C, the columns of the likelihood's Hessian root for a datum."""
    return root_of(net, x, likelihood).shape[-1]


def kronecker_curvature(net: nn.Module, x: Tensor, likelihood: Likelihood) -> tuple[Curvature, str | None]:
    """Kronecker factors with all columns, or with one sampled column a datum where all would cost too much, and why.

    They cost too much where columns × Σ positions × weights is above `ALL_COLUMNS`: a count, and so the same whatever
    the number of data and the machine.
    """
    layers = declarations(net)
    shapes, outputs = shapes_of(net, layers, x)
    columns = likelihood.hessian_root(outputs).shape[-1]
    cost = columns * multiplications_back(layers, shapes)
    if cost <= ALL_COLUMNS:
        return Curvature("kron"), None
    return Curvature("kron", samples=1), (
        f"steps on the evidence took one sampled column a datum: all {columns} take {cost:.1e} multiplications "
        f"(above {ALL_COLUMNS:.0e}); curvature='kron' takes all in every step"
    )

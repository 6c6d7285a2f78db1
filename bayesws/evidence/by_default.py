"""The curvature where nobody asks for one: as exact as the network allows, and the same on every machine."""

from collections.abc import Callable

from torch import Tensor, nn

from bayesws.evidence.curvature import Curvature
from bayesws.evidence.likelihood import Likelihood
from bayesws.evidence.shapes import multiplications_back, shapes_of
from bayesws.layers.contract import declarations

WHOLE = 10_000  # parameters up to which H is taken whole: 10⁸ numbers
ALL_COLUMNS = 2 * 10**8  # multiplications a datum up to which all columns go back


def sharpest_curvature(net: nn.Module, example: Callable[[], Tensor | None], likelihood: Likelihood) -> Curvature:
    """ "full" for at most `WHOLE` parameters; else as `kronecker_curvature` says.

    Args:
        net: the network.
        example: gives some inputs, or None where they cannot be looked at beforehand; called only if they are needed.
        likelihood: of the outputs.
    """
    if sum(p.numel for _, d in declarations(net).values() for p in d.pathways) <= WHOLE:
        return Curvature("full")
    x = example()
    return Curvature("kron", samples=1) if x is None else kronecker_curvature(net, x, likelihood)[0]


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
        f"steps on the evidence took one sampled column a datum, the evidence at the end all {columns}: together they "
        f"take {cost:.1e} multiplications (above {ALL_COLUMNS:.0e}); curvature='kron' takes all in every step"
    )

"""The curvature where nobody asks for one follows from the numbers of data, columns and parameters alone."""

import pytest
import torch
from torch import nn

from bayesws import Curvature
from bayesws.evidence import by_default
from bayesws.evidence.by_default import Size
from bayesws.evidence.likelihood import Categorical

ONE_COLUMN, STEP = Curvature("full", samples=1), Curvature("full", samples=1, rows=500)


def at_the_end(net, count, x=None):
    x = torch.zeros(1, net.in_features) if x is None else x
    return by_default.sharpest_curvature(net, count, lambda: x, Categorical())


def in_a_step(net, count, structured=False):
    x = torch.zeros(1, net.in_features)
    return by_default.step_curvature(net, count, x, Categorical(), structured)[0]


def wide(parameters):
    """Two outputs, one column each for a datum, and so many weights."""
    return nn.Linear(parameters // 2, 2, bias=False)


def test_all_columns_where_the_determinant_is_cheap():
    of = by_default.determinant_cost
    assert of(Size(10, 10), 3) == of(Size(3, 3), 10) == 90
    assert of(Size(10, 5), 3) == 45 and of(Size(10, 5), 7) == 343 and of(Size(10, 5), 10) == 1000  # rows as products
    # R = N rows: P² R = 5 · 10⁷ is cheap in a step, 5 · 10⁹ at the end of a fit
    assert in_a_step(wide(100), 5000) == at_the_end(wide(100), 500_000) == Curvature("full")
    assert in_a_step(wide(100), 500_000) == STEP
    assert at_the_end(wide(10_000), 5000) == ONE_COLUMN
    assert at_the_end(wide(10_000), 100) == Curvature("full")  # few rows are as good as few parameters


def test_kronecker_factors_where_not_even_the_rows_are():
    """A row of n weights at one position, of two outputs, is held as n / 2 + 2 numbers."""
    assert at_the_end(wide(240_000), 5000) == ONE_COLUMN
    assert at_the_end(wide(260_000), 5000) == Curvature("full", samples=1, rows=1923)  # of 130 002 numbers each: 1 GB
    assert at_the_end(wide(990_000), 5000).rows >= 500 and at_the_end(wide(1_010_000), 5000).kind == "kron"
    assert in_a_step(wide(390_000), 5000) == STEP and in_a_step(wide(410_000), 5000).kind == "kron"
    assert in_a_step(wide(100), 5000, structured=True).kind == "kron"


def test_two_columns_where_there_are_several():
    net, x = nn.Linear(1000, 20, bias=False), torch.zeros(1, 1000)
    assert in_a_step(net, 5000) == STEP
    assert at_the_end(net, 900, x) == Curvature("full", samples=4)  # 3684 rows of 1020 numbers cost 5 · 10¹⁰
    assert at_the_end(net, 5000, x) == Curvature("full", samples=2, rows=1842)
    assert at_the_end(nn.Linear(1000, 2000), 5000, x) == Curvature("full", samples=2, rows=1581)


@pytest.mark.parametrize("parameters, kind", [(2000, "full"), (2002, "kron")])
def test_an_unknown_number_of_data(parameters, kind):
    assert at_the_end(wide(parameters), -1).kind == kind


def test_inputs_that_cannot_be_looked_at():
    assert by_default.sharpest_curvature(wide(5000), 10, lambda: None, Categorical()) == Curvature("kron", samples=1)

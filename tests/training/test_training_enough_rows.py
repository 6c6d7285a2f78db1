"""Steps on the precisions take as many sampled rows as the data ask for, and go back to fewer where these will do."""

from dataclasses import dataclass
from itertools import islice

import pytest
import torch
from torch import nn

from bayesws import Categorical, Curvature, Schedule
from bayesws.evidence.batches import Batches
from bayesws.training.enough_rows import TOO_FEW, EnoughRows
from bayesws.training.objectives.objective import Setting


@dataclass
class Found:
    """An evidence of so many effective parameters."""

    filled: float
    sampled_rows: int | None
    examples: int = 1000

    @property
    def saturated(self):
        return self.filled > 0.75


def rows(curvature, count=1000, monkeypatch=None):
    data = Batches((torch.randn(count, 20), torch.arange(count) % 10))
    net = nn.Sequential(nn.Linear(20, 300), nn.Tanh(), nn.Linear(300, 10))
    return EnoughRows(curvature, Setting(net, data, Categorical(), Schedule(), curvature, 0))


def taken(found, gamma):
    """The curvatures of one step whose true γ is this, as (columns, data), until one is enough."""
    tried = []
    for curvature in found:
        tried.append((curvature.samples, curvature.rows) if curvature.kind == "full" else curvature.kind)
        sampled = None if curvature.kind == "kron" else curvature.samples * min(1000, curvature.rows)
        if found.enough(Found(0.0 if sampled is None else gamma / sampled, sampled)):
            return tried


def test_more_rows_where_they_are_filled_and_fewer_where_they_are_idle():
    found = rows(Curvature("full", samples=2, rows=250))
    assert taken(found, 200) == [(2, 250)]
    assert taken(found, 700) == [(2, 250), (2, 500), (2, 1000)]
    assert taken(found, 700) == [(2, 1000)]  # where the last one ended
    assert taken(found, 300) == [(2, 1000)] and taken(found, 300) == [(2, 1000)]  # more than a quarter of 1000
    assert taken(found, 200) == [(2, 1000)] and taken(found, 120) == [(2, 500)] and taken(found, 120) == [(2, 250)]
    assert not found.notes()


def test_kronecker_factors_where_the_most_rows_are_too_few_and_only_there():
    found = rows(Curvature("full", samples=2, rows=250, seed=3))
    assert taken(found, 1600) == [(2, 250), (2, 500), (2, 1000), "kron"] and found.notes() == [TOO_FEW]
    assert taken(found, 1400) == [(2, 1000)] and not found.notes()  # 0.7 of them: below what is told as saturated
    assert all(c.seed == 3 for c in found.curvatures)


def test_where_nothing_is_sampled_there_is_one_curvature():
    for curvature in (Curvature("full"), Curvature("kron"), Curvature("kron", samples=1)):
        found = rows(curvature)
        assert list(islice(found, 1)) == found.curvatures == [curvature]
        assert found.enough(Found(0.0, None)) and not found.notes()


def test_a_subset_is_never_more():
    found = rows(Curvature("full", samples=1, subset=0.5))
    assert [c.kind for c in found.curvatures] == ["full", "kron"]


def test_where_it_is_goes_through_a_checkpoint():
    found, again = (rows(Curvature("full", samples=2, rows=250)) for _ in range(2))
    taken(found, 700)
    again.restore(found.state())
    assert taken(again, 700) == [(2, 1000)]


@pytest.mark.parametrize("gamma", [10, 300, 900, 5000])
def test_every_step_ends(gamma):
    found = rows(Curvature("full", samples=2, rows=250))
    for _ in range(5):
        assert len(taken(found, gamma)) <= 4

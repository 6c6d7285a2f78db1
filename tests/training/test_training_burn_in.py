"""When the first step on the hyperparameters is taken, and what the first prior is."""

import math
from itertools import pairwise

import pytest
import torch

import bayesws as bws
from bayesws.training.burn_in import LATEST, WITH_STRUCTURE, BurnIn
from bayesws.training.schedule import Schedule


def ended(values, **plan):
    """Epochs of the burn-in of a run that descends through these values, one an epoch."""
    found = BurnIn(Schedule(**{"every": 5, "epochs": 100} | plan), structured=False)
    for epoch, value in enumerate(values, 1):
        found.look(epoch, value)
    return found.epochs


def test_it_ends_when_the_descent_has_settled():
    falling = [2.0 * 0.9**epoch for epoch in range(20)]  # by 41 % in five epochs
    flat = [falling[-1]] * 20
    assert ended(falling) is None
    # flat from epoch 20 on: the last five are, and of the five before less than four are not
    assert 20 + 5 < ended(falling + flat) + 1 < 20 + 10
    assert ended([1.0] * 30) == 2 * 5 - 1


def test_it_ends_at_the_latest_at_its_share_of_the_run():
    falling = [0.9**epoch for epoch in range(100)]
    assert ended(falling) == round(LATEST * 100)
    assert ended([1.0, 0.5, 0.2], epochs=4) == 1  # a short run takes its steps all the same


@pytest.mark.parametrize("structured", [False, True])
def test_a_share_that_is_told_is_kept(structured):
    found = BurnIn(Schedule(epochs=50, burn_in=0.3), structured)
    assert found.epochs == 15 and not found.over(15) and found.over(16)
    found.look(20, 1.0)
    assert found.epochs == 15 and found.descent == []
    assert BurnIn(Schedule(epochs=50), True).epochs == round(WITH_STRUCTURE * 50)


def test_every_layer_starts_shared_unless_it_is_told_not_to():
    torch.manual_seed(0)
    net, data = bws.models.WSCNN(hidden_channels=2), (torch.randn(8, 1, 8, 8), torch.arange(8) % 10)
    settings = {"epochs": 1, "progress": False, "keep_posterior": False}  # no step on the precisions
    with pytest.warns(UserWarning, match="only 0 steps"):
        shared, declared = bws.fit(net, data, **settings), bws.fit(net, data, shared_start=None, **settings)
    head = 1 / 4**2  # of a mean over four copies
    expected = [[w / (w + v) for w in (1, 1, head)] for v in (math.exp(-4), 1.0)]  # prior variances of R w, and of v
    assert [row.strength for row in shared.sharing] == pytest.approx(expected[0])
    assert [row.strength for row in declared.sharing] == pytest.approx(expected[1])


def test_steps_that_gain_little_are_taken_less_and_less_often(monkeypatch):
    """A wait twice as long as the last, up to four times `every`; of steps that gain enough, `every`."""
    torch.manual_seed(0)
    net, data = torch.nn.Linear(3, 2), (torch.randn(20, 3), torch.arange(20) % 2)

    def waits():
        fit = bws.fit(net, data, epochs=60, every=2, burn_in=0.1, progress=False, keep_posterior=False)
        steps = [record["epoch"] for record in fit.history if "log_evidence" in record]
        return [after - before for before, after in pairwise(steps)]

    found = waits()
    assert found[0] == 2 and max(found) == 8
    assert all(after in (2, min(2 * before, 8)) for before, after in pairwise(found))
    monkeypatch.setattr("bayesws.training.objectives.by_evidence.SMALL_GAIN", -math.inf)
    assert set(waits()) == {2}

"""An evidence that says more than held-out data is doubted, wherever both are told."""

from dataclasses import replace

import torch
from torch import nn

import bayesws as bws
from bayesws.trials.doubt import doubts
from bayesws.trials.spec import train_and_score

QUICK = {"epochs": 10, "burn_in": 0.2, "every": 2, "keep_posterior": False, "progress": False}
BY_HEART = QUICK | {"objective": "task", "weight_decays": (0.0,), "epochs": 100}


def noise(seed, count=200):
    """Labels that say nothing of the inputs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 30, generator=generator), torch.randint(0, 2, (count,), generator=generator)


def test_it_is_doubted_where_it_is_above_held_out_data_by_two_standard_errors():
    fit, (x, y) = bws.fit(nn.Linear(30, 2), noise(0, 100), **QUICK), noise(1)
    losses = -fit.predict(x, kind="map").log()[torch.arange(200), y].double()
    error = float(losses.std()) * (1 / 200 + 1 / 100) ** 0.5
    for off, doubted in ((-1.0, False), (0.0, False), (1.0, False), (3.5, True), (30.0, True)):
        said = replace(fit.evidence, log_evidence=100 * (off * error - float(losses.mean())))
        assert bool(doubts(fit, said, x, y)) == doubted, off  # of twenty groups: the error of the error is a sixth
    assert "do not compare by it" in doubts(fit, said, x, y)[0] and not doubts(fit, said, x[:1], y[:1])


def test_exact_evidences_are_seldom_doubted():
    """Linear regressions with their true prior and noise, where Laplace is exact: at most a tenth of 40."""
    found = 0
    for seed in range(40):
        torch.manual_seed(seed)
        w = torch.randn(4)
        x = torch.randn(300, 4)
        y = (x @ w + torch.randn(300)).unsqueeze(1)
        fit = bws.fit(nn.Linear(4, 1, bias=False), (x[:100], y[:100]), "regression", **QUICK | {"curvature": "full"})
        found += len(doubts(fit, fit.evidence, x[100:], y[100:]))
    assert found <= 4


def test_trials_and_rankings_note_what_was_learned_by_heart(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 64), nn.Tanh(), nn.Linear(64, 2))
    _, trial = train_and_score(net, noise(0, 100), noise(1), seed=0, **BY_HEART)
    assert trial.log_evidence / 100 > -0.69  # than a coin says
    assert any("do not compare by it" in note for note in trial.notes)
    ranking = bws.select({"net": lambda: nn.Linear(30, 2)}, noise(0), test=noise(1), **QUICK)
    assert not any("do not compare by it" in note for row in ranking.rows for note in row.notes)
    monkeypatch.setattr("bayesws.trials.doubt.ERRORS", -1e6)
    ranking = bws.select({"net": lambda: nn.Linear(30, 2)}, noise(0), test=noise(1), **QUICK)
    assert any("do not compare by it" in note for row in ranking.rows for note in row.notes)

"""An evidence that says more than held-out data is doubted, wherever both are told."""

import math

import pytest
import torch
from torch import nn

import bayesws as bws
from bayesws.trials.doubt import doubts
from bayesws.trials.spec import train_and_score


@pytest.mark.parametrize(
    "log_evidence, nll, doubted", [(-50.0, 0.4, False), (-50.0, 0.6, True), (math.nan, 0.6, False), (30.0, -0.2, True)]
)
def test_it_is_doubted_where_it_is_above_the_log_likelihood_of_what_was_held_out(log_evidence, nll, doubted):
    assert [("do not compare by it" in note) for note in doubts(log_evidence, 100, nll)] == [True] * doubted


def test_an_exact_evidence_is_below_it_in_the_mean():
    """Linear regression with its true prior and noise, 200 draws: of new data the posterior says more, by 0.1 nats."""
    torch.manual_seed(0)
    n, p, gaps = 12, 4, []
    for _ in range(200):
        x, w = torch.randn(2 * n, p, dtype=torch.float64), torch.randn(p, dtype=torch.float64)
        y = x @ w + torch.randn(2 * n, dtype=torch.float64)
        of_all = torch.distributions.MultivariateNormal(torch.zeros(2 * n).double(), torch.eye(2 * n) + x @ x.mT)
        of_first = torch.distributions.MultivariateNormal(torch.zeros(n).double(), torch.eye(n) + x[:n] @ x[:n].mT)
        evidence = float(of_first.log_prob(y[:n]))
        gaps.append((float(of_all.log_prob(y)) - evidence) / n - evidence / n)
    assert torch.tensor(gaps).mean() > 0.1 and min(gaps) < 0  # in the mean, not in every draw


def test_trials_and_rankings_note_it():
    """Labels that say nothing: learned by heart, they are predicted as badly as can be."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 30), torch.randint(0, 2, (40,))
    test = torch.randn(40, 30), torch.randint(0, 2, (40,))
    settings = {"objective": "task", "weight_decays": (0.0,), "epochs": 60, "keep_posterior": False, "progress": False}
    _, trial = train_and_score(nn.Linear(30, 2), (x, y), test, seed=0, **settings)
    expected = trial.log_evidence / 40 > -trial.nll
    assert any("do not compare by it" in note for note in trial.notes) == expected
    assert expected, (trial.log_evidence / 40, trial.nll)
    quick = {"epochs": 10, "burn_in": 0.2, "every": 2, "keep_posterior": False}
    ranking = bws.select({"net": lambda: nn.Linear(30, 2)}, (x, y), test=(test[0], y.flip(0)), **quick)
    (row,) = ranking.rows
    assert any("do not compare by it" in n for n in row.notes) == (row.log_evidence / 40 > -row.test_nll)

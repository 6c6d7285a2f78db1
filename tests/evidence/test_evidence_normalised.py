"""Weights right before a normalisation: the truth knows no scale of their prior, and the fixed point finds one."""

import math
import warnings

import pytest
import torch
from oracles import sampled_evidence
from torch import nn

import bayesws as bws

SCALE = 3.0  # of the logits


class Scaled(nn.Module):
    def forward(self, x):
        return SCALE * x


def problem(features, classes, examples, seed):
    """A linear map whose outputs are normalised, without affine part: a planted one, and labels drawn from it."""
    torch.manual_seed(seed)
    norm = nn.LayerNorm(classes, elementwise_affine=False)
    net = nn.Sequential(nn.Linear(features, classes, bias=False), norm, Scaled()).double()
    x = torch.randn(examples, features, dtype=torch.float64)
    with torch.no_grad():
        y = torch.distributions.Categorical(logits=net(x)).sample()
    return net, x, y


def at_its_best_direction(net, x, y):
    """The prior pulls along the weights, where nothing changes, and what all outputs have in common to zero."""
    descent = torch.optim.LBFGS(net.parameters(), max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def loss():
        descent.zero_grad()
        value = nn.functional.cross_entropy(net(x), y, reduction="sum")
        value.backward()
        return value

    descent.step(loss)
    with torch.no_grad():
        net[0].weight.sub_(net[0].weight.mean(0))


def at_the_fixed_point(net, x, y):
    """log δ with δ ‖θ‖² = γ(δ), by iteration, and the evidence there."""
    log_delta, size = 0.0, float(net[0].weight.detach().square().sum())
    for _ in range(60):
        found = bws.log_evidence(net, (x, y), prior=log_delta, curvature="full")
        (pathway,) = found.by_pathway.values()
        log_delta = math.log(float(pathway.effective) / size)
    return log_delta, float(found)


@pytest.mark.parametrize("examples", [40, 80])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_evidence_at_the_fixed_point_is_the_true_one(examples, seed):
    """To 0.7 nats of some 20: the posterior of four directions is no Gaussian. Elsewhere it is lower by more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a layer normalises
        net, x, y = problem(2, 3, examples, seed)
        at_its_best_direction(net, x, y)
        log_delta, evidence = at_the_fixed_point(net, x, y)
        far = [float(bws.log_evidence(net, (x, y), prior=log_delta + by, curvature="full")) for by in (-2.0, 2.0)]
    few = [sampled_evidence(net, x, y, factor * math.exp(log_delta), samples=1000)[0] for factor in (1, 10)]
    assert few[0] == pytest.approx(few[1], abs=1e-5)  # it knows no δ, but for what keeps a variance from being zero
    truth, error = sampled_evidence(net, x, y, math.exp(log_delta))
    assert -3 * error < evidence - truth < 0.7 + 3 * error
    assert all(other < evidence - 1.5 for other in far)

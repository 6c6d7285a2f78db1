"""A linear network with Gaussian noise: the Laplace evidence is the log marginal likelihood, in closed form."""

import networks
import oracles
import pytest
import torch

from bayesws import Gaussian, log_evidence
from bayesws.layers.contract import starting_log_precisions

NOISE, N = 0.6, 7
every_net = pytest.mark.parametrize("sharing", networks.SHARING, ids=networks.SHARING_IDS)


def problem(sharing):
    net = networks.Linear(*sharing)
    x = torch.randn(N, 4, dtype=torch.float64)
    y = torch.randn(N, 2 * sharing[2], dtype=torch.float64)
    return net, x, y


def by_row(net, names):
    prior = starting_log_precisions(net)
    rows = [prior[oracles.pathway_of(net, n)].exp().detach().expand(net.get_parameter(n).numel()) for n in names]
    return torch.cat(rows)


def move_to_map(net, x, y, names):
    phi, precisions = oracles.linear_features(net, x, names), by_row(net, names)
    theta = oracles.linear_gaussian_map(phi, y, precisions, NOISE)
    with torch.no_grad():
        for name, part in zip(names, theta.split([net.get_parameter(n).numel() for n in names]), strict=True):
            net.get_parameter(name).copy_(part.reshape(net.get_parameter(name).shape))
    return phi, precisions


@every_net
def test_equals_the_closed_form_at_the_map(sharing):
    net, x, y = problem(sharing)
    phi, precisions = move_to_map(net, x, y, oracles.weight_names(net))
    found = log_evidence(net, (x, y), Gaussian(NOISE, dtype=torch.float64), "full")
    expected = oracles.linear_gaussian_log_evidence(phi, y, precisions, NOISE)
    # exact: the MAP's error enters squared, what is left is rounding in two determinants
    assert float(found) == pytest.approx(expected, rel=1e-10)


@every_net
def test_is_lower_away_from_the_map(sharing):
    net, x, y = problem(sharing)
    names = oracles.weight_names(net)
    move_to_map(net, x, y, names)
    likelihood = Gaussian(NOISE, dtype=torch.float64)
    best = float(log_evidence(net, (x, y), likelihood, "full"))
    with torch.no_grad():
        net.get_parameter(names[0]).add_(0.1)
    assert float(log_evidence(net, (x, y), likelihood, "full")) < best


@every_net
def test_gradient_is_that_of_the_closed_form(sharing, tight_sinkhorn):
    """At the MAP the weights' own motion adds nothing: the gradient with fixed weights is the whole one."""
    net, x, y = problem(sharing)
    names = oracles.weight_names(net)
    move_to_map(net, x, y, names)
    likelihood = Gaussian(NOISE, dtype=torch.float64)
    log_evidence(net, (x, y), likelihood, "full").total.backward()

    def closed_form():
        phi, noise = oracles.linear_features(net, x, names), likelihood.log_noise.exp().item()
        return oracles.linear_gaussian_log_evidence(phi, y, by_row(net, names), noise)

    hyper = [*net.map.log_precisions.values(), *net.map.structure(), likelihood.log_noise]
    scale = max(p.grad.abs().max().item() for p in hyper)
    for parameter in hyper:
        expected = oracles.central_gradient(closed_form, parameter)
        # differences: 1e-15 · |evidence| / step ≈ 1e-9 of rounding
        torch.testing.assert_close(parameter.grad / scale, expected / scale, rtol=0, atol=1e-6)


def test_correlated_copies_are_seen_in_the_evidence():
    """Data drawn with ρ near one: the evidence of a strongly shared prior is higher, and equals scipy's."""
    net, x, _ = problem(("fixed", networks.BOTH, 2))
    names = oracles.weight_names(net)
    with torch.no_grad():
        net.map.free.zero_()
        y = net(x) + NOISE * torch.randn(N, 4, dtype=torch.float64)
    totals = {}
    for log_beta in (-1.0, 5.0):
        with torch.no_grad():
            net.map.log_precisions["free"].fill_(log_beta)
        phi, precisions = move_to_map(net, x, y, names)
        found = log_evidence(net, (x, y), Gaussian(NOISE, dtype=torch.float64), "full")
        expected = oracles.linear_gaussian_log_evidence(phi, y, precisions, NOISE)
        assert float(found) == pytest.approx(expected, rel=1e-10)
        totals[log_beta] = float(found)
    assert totals[5.0] > totals[-1.0]

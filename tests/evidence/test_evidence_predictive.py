"""The posterior predictive: its integrals against quadrature, and `FitResult` against dense linear algebra."""

from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from torch import nn

import bayesws as bws
from bayesws.evidence.laplace import fitted_posterior
from bayesws.evidence.predictive import DRAWS


def covariances(n, outputs):
    root = torch.randn(n, outputs, outputs, dtype=torch.float64)
    return root @ root.mT


def test_two_classes_against_quadrature():
    """E[sigmoid(z)], z ~ N(m, s²), by Gauss-Hermite quadrature with 80 points."""
    mean, covariance = 3 * torch.randn(50, 2, dtype=torch.float64), covariances(50, 2)
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    points, weights = torch.tensor(points), torch.tensor(weights) / np.sqrt(2 * np.pi)
    variance = covariance[:, 0, 0] + covariance[:, 1, 1] - 2 * covariance[:, 0, 1]
    z = (mean[:, 0] - mean[:, 1])[:, None] + variance.sqrt()[:, None] * points
    expected = (torch.sigmoid(z) * weights).sum(1)
    # the error of 1024 Sobol points; as many random draws would have standard errors of up to 0.5 / √1024 = 0.016
    torch.testing.assert_close(bws.Categorical().expected_mean(mean, covariance)[:, 0], expected, rtol=0, atol=2e-3)


def test_ten_classes_against_monte_carlo():
    mean, covariance = 3 * torch.randn(4, 10, dtype=torch.float64), covariances(4, 10)
    draws = 200_000
    normal = torch.distributions.MultivariateNormal(mean, covariance)
    expected = normal.sample((draws,)).softmax(-1).mean(0)
    found = bws.Categorical().expected_mean(mean, covariance)
    # their standard error is at most 0.5 / √200 000 = 0.001, ours is that of DRAWS points: below 0.005
    assert DRAWS == 1024 and (found - expected).abs().max() < 0.009
    torch.testing.assert_close(found.sum(-1), torch.ones(4, dtype=torch.float64))


def test_no_uncertainty_is_softmax_and_a_singular_covariance_will_do():
    mean = torch.randn(5, 3)
    torch.testing.assert_close(bws.Categorical().expected_mean(mean, torch.zeros(5, 3, 3)), mean.softmax(-1))
    together = torch.ones(5, 3, 3)  # all logits move together, which softmax does not see
    torch.testing.assert_close(bws.Categorical().expected_mean(mean, together), mean.softmax(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_log_probability(kind):
    mean, covariance = torch.randn(6, 3, dtype=torch.float64), covariances(6, 3)
    if kind == "classification":
        y = torch.arange(6) % 3
        expected = bws.Categorical().expected_mean(mean, covariance)[torch.arange(6), y].log().sum()
        found = bws.Categorical().predictive_log_prob(mean, covariance, y)
    else:
        y, noise = torch.randn(6, 3, dtype=torch.float64), 0.7
        total = covariance + noise**2 * torch.eye(3, dtype=torch.float64)
        expected = torch.distributions.MultivariateNormal(mean, total).log_prob(y).sum()
        found = bws.Gaussian(noise, dtype=torch.float64).predictive_log_prob(mean, covariance, y)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)


def linear_problem():
    x = torch.randn(30, 3, dtype=torch.float64)
    y = x @ torch.randn(3, 4, dtype=torch.float64) + 0.5 * torch.randn(30, 4, dtype=torch.float64)
    return x, y.unflatten(1, (2, 2))


def folded():
    """A linear map with outputs (batch, 2, 2)."""
    return nn.Sequential(nn.Linear(3, 4, dtype=torch.float64), nn.Unflatten(1, (2, 2)))


def test_regression_is_exact_for_a_linear_network(tmp_path):
    """log N(y; f, φ (H + Λ)⁻¹ φᵀ + σ² I) for every datum, and its moments, whatever the shape of its outputs.

    In float64 throughout; 1e-7 is what two routes to one inverse leave, whose condition is about that of a small noise.
    """
    x, y = linear_problem()
    new, new_y = linear_problem()
    likelihood = bws.Gaussian(dtype=torch.float64)
    fit = bws.fit(folded(), (x, y), likelihood, curvature="full", epochs=30, progress=False)
    assert torch.equal(fit.predict(new), fit.predict(new, "posterior"))
    noise = fit.likelihood.log_noise.exp().item()
    covariance = oracles.output_covariance(fit.model, x, new, oracles.gaussian_hessian(noise), fit.prior)
    mean = fit.model(new).detach()
    for counted in (True, False):
        total = covariance + counted * noise**2 * torch.eye(4)
        found = fit.predict_moments(new, noise=counted, batch_size=7)
        torch.testing.assert_close(found[0], mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(found[1], total.diagonal(dim1=1, dim2=2).reshape(30, 2, 2), rtol=1e-7, atol=0)
    assert 0 < noise and not torch.equal(*(fit.predict_moments(new, noise=counted)[1] for counted in (True, False)))
    normal = torch.distributions.MultivariateNormal(mean.flatten(1), covariance + noise**2 * torch.eye(4))
    expected = -normal.log_prob(new_y.flatten(1)).mean().item()
    assert fit.nll(new, new_y) == fit.nll(new, new_y, "posterior") == pytest.approx(expected, rel=1e-7)
    assert fit.nll(new, new_y, batch_size=7) == pytest.approx(fit.nll(new, new_y), rel=1e-10)
    fit.save(tmp_path / "fit")
    back = bws.FitResult.load(tmp_path / "fit", model=folded(), likelihood=bws.Gaussian(dtype=torch.float64))
    assert back.nll(new, new_y) == pytest.approx(fit.nll(new, new_y), rel=1e-12)
    torch.testing.assert_close(back.predict_moments(new), fit.predict_moments(new), rtol=1e-12, atol=0)


def test_variance_of_a_network_that_is_not_linear_grows_away_from_the_data():
    x, y = linear_problem()
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    fit = bws.fit(net, (x, y.flatten(1)[:, :2]), bws.Gaussian(dtype=torch.float64), curvature="full", epochs=60)
    noise = fit.likelihood.log_noise.exp().item()
    new = torch.cat([x, 3 * x])
    mean, variance = fit.predict_moments(new, noise=False)
    expected = oracles.output_covariance(fit.model, x, new, oracles.gaussian_hessian(noise), fit.prior)
    torch.testing.assert_close(variance, expected.diagonal(dim1=1, dim2=2), rtol=1e-8, atol=0)
    assert mean.shape == variance.shape == (60, 2) and variance[30:].mean() > 1.5 * variance[:30].mean()


@pytest.mark.parametrize("curvature", ["kron", "full", "diag"])
@pytest.mark.parametrize("stack", ["fixed", "dense"])
def test_classification_is_the_average_over_the_linearised_network(stack, curvature):
    data = bws.data.load("digits", task="upright", seed=0, train_size=60, test_size=20)
    net = bws.models.WSCNN(
        hidden_channels=1, group_size=2, stack=stack, group="half-turns" if stack == "fixed" else None
    )
    fit = bws.fit(net, data.train, curvature=curvature, epochs=2, progress=False, burn_in=0.5)
    x, y = data.test
    p = fit.predict(x, "posterior")
    torch.testing.assert_close(p.sum(-1), torch.ones(20))
    torch.testing.assert_close(fit.predict(x, "posterior", batch_size=6), p, rtol=1e-4, atol=1e-5)  # float32
    assert fit.nll(x, y, "posterior") == pytest.approx(-p[torch.arange(20), y].log().mean().item(), rel=1e-4)
    assert not torch.equal(p, fit.predict(x))
    with pytest.raises(ValueError, match=r"likelihood 'classification': expected a regression; use predict\(x\), or"):
        fit.predict_moments(x)
    again = fitted_posterior(fit.model, data.train, "classification", curvature, fit.prior)
    moments = again._glm_predictive_distribution(x)
    # float32, and for "full" another route to the inverse
    torch.testing.assert_close(p, bws.Categorical().expected_mean(*moments), rtol=1e-3, atol=1e-4)


def test_errors():
    x, y = linear_problem()
    fit = bws.fit(folded(), (x, y), "regression", epochs=1, progress=False)
    with pytest.raises(ValueError, match="kind='mean': expected one of map, posterior"):
        fit.predict(x, "mean")
    with pytest.raises(ValueError, match="inputs hold 1 NaN or infinite values"):
        fit.nll(torch.where(x == x[0, 0], torch.nan, x), y)
    fit = replace(fit, posterior={})
    for ask in (lambda: fit.nll(x, y), lambda: fit.predict_moments(x)):
        with pytest.raises(ValueError, match="saved without a posterior: fit again with keep_posterior=True, or use"):
            ask()
    assert fit.predict(x).shape == y.shape and fit.nll(x, y, "map") > 0


def test_a_classification_needs_no_posterior_to_predict():
    x, y = torch.randn(30, 3), torch.arange(30) % 3
    fit = bws.fit(nn.Linear(3, 3), (x, y), epochs=1, keep_posterior=False, progress=False)
    p = fit.model(x).softmax(-1).detach()
    assert torch.equal(fit.predict(x), p) and torch.equal(fit.predict(x, "map"), p)
    assert fit.nll(x, y) == fit.nll(x, y, "map") == pytest.approx(-p[torch.arange(30), y].log().mean().item())
    with pytest.raises(ValueError, match="saved without a posterior"):
        fit.predict(x, "posterior")

"""Likelihoods of a user's own: counts, and a noise that the gradient finds. Nothing in the library knows them."""

import math

import oracles
import pytest
import torch
from torch import nn

import bayesws as bws
from bayesws.evidence import Likelihood


class Poisson(Likelihood):
    """log p(y | f) = y f - exp(f) - log y!, counts y with rate exp(f); the Hessian of -log p is diag(exp(f))."""

    name = "counts"

    def check(self, outputs, targets):
        if not torch.isfinite(outputs).all():
            raise ValueError("the network's outputs hold NaN or infinite values")
        if targets.shape != outputs.shape or (targets < 0).any():
            raise ValueError(f"targets of shape {tuple(targets.shape)}: expected counts {tuple(outputs.shape)}")

    def log_prob(self, outputs, targets):
        return (targets * outputs - outputs.exp() - torch.lgamma(targets + 1)).sum()

    def hessian_root(self, outputs):
        return torch.diag_embed((0.5 * outputs).exp())

    def mean(self, outputs):
        return outputs.exp()


class Wide(bws.Gaussian):
    """A Gaussian that does not say where its noise is stationary: the loop must follow the gradient."""

    settles = False


def counts(n=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    rate = (x @ torch.tensor([[0.6, 0.0], [0.3, 0.5], [0.0, -0.4]], dtype=torch.float64) + 0.5).exp()
    return x, torch.poisson(rate, generator=generator)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2, dtype=torch.float64))


def fitted(**settings):
    return bws.fit(network(), counts(), Poisson(), epochs=60, batch_size=20, progress=False, **settings)


@pytest.mark.parametrize("kind", ["full", "layer", "pathway"])
def test_evidence_is_that_of_the_dense_hessian(kind):
    """One linear layer has one block: Σ Jᵀ diag(exp f) J by torch.func, exact to rounding (1e-10)."""
    net, (x, y) = network(), counts()
    found = bws.log_evidence(net, (x, y), Poisson(), kind)
    jacobian = oracles.dense_jacobian(net, x, oracles.weight_names(net))
    rates = net(x).detach().exp()
    h = torch.einsum("bcp,bc,bcq->pq", jacobian, rates, jacobian)
    blocks = [h] if kind != "pathway" else [h[:6, :6], h[6:, 6:]]
    occam = 0.5 * sum(torch.logdet(torch.eye(len(b), dtype=b.dtype) + b) for b in blocks)
    log_prob = torch.distributions.Poisson(rates).log_prob(y).sum()
    theta = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert float(found) == pytest.approx(float(log_prob - 0.5 * theta @ theta - occam), rel=1e-10)


def test_fit_predicts_better_than_the_mean_and_its_posterior_integrates():
    fit = fitted(every=2, curvature="full")
    x, y = counts(200, seed=1)
    constant = -float(Poisson().log_prob(counts()[1].mean(0).log().expand(200, 2), y)) / 200
    assert fit.nll(x, y) < constant and fit.nll(x, y, "posterior") < constant
    # E[exp(f)] for f ~ N(m, s²) is exp(m + s²/2): the draws' error is below 1 % at these variances
    assert torch.allclose(fit.predict(x), fit.model(x).exp())
    moments = [torch.cat(part) for part in zip(*fit._output_moments(x, 50), strict=True)]
    expected = (moments[0] + 0.5 * moments[1].diagonal(dim1=1, dim2=2)).exp()
    torch.testing.assert_close(fit.predict(x, "posterior"), expected, rtol=0.01, atol=0)


def test_it_is_saved_and_asked_for_when_loaded(tmp_path):
    fit = fitted(every=2)
    fit.save(tmp_path / "fit")
    with pytest.raises(ValueError, match="likelihood of its own, 'counts': pass one as likelihood="):
        bws.FitResult.load(tmp_path / "fit", network())
    with pytest.raises(ValueError, match="with likelihood 'counts': likelihood='regression' came"):
        bws.FitResult.load(tmp_path / "fit", network(), bws.Gaussian())
    back = bws.FitResult.load(tmp_path / "fit", network(), Poisson())
    x = counts()[0]
    assert torch.equal(back.predict(x, "posterior"), fit.predict(x, "posterior")) and back.evidence == fit.evidence


class Blind(nn.Module):
    """Sees nothing of its inputs."""

    def forward(self, x):
        return 0 * x


def test_networks_are_ranked_by_it():
    networks = {"sees": network(), "blind": nn.Sequential(Blind(), nn.Linear(3, 2)).double()}
    ranking = bws.select(networks, counts(), Poisson(), epochs=60, every=2, progress=False)
    assert ranking.best.name == "sees" and ranking.log_bayes_factors["blind"] < -10


def test_a_noise_without_a_closed_form_is_found_by_the_gradient():
    """σ̂ of 800 residuals has a relative standard error of 1/√1600 = 2.5 %; four of them, as for the closed form."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=generator)
    y = x @ torch.randn(5, 2, generator=generator) + 0.3 * torch.randn(400, 2, generator=generator)
    torch.manual_seed(0)
    fit = bws.fit(nn.Linear(5, 2), (x, y), Wide(), curvature="full", epochs=80, batch_size=50, progress=False)
    assert fit.likelihood.log_noise.exp().item() == pytest.approx(0.3, rel=0.1)
    assert math.isfinite(fit.log_evidence)


def test_a_class_in_the_place_of_a_likelihood_is_told():
    with pytest.raises(ValueError, match=r"likelihood=<class .*'regression', or an instance"):
        bws.fit(network(), counts(), Poisson)

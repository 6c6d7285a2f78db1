"""The round trip through laplace-torch: our backend against its own on plain nets, against dense matrices on ours."""

from dataclasses import replace

import networks
import oracles
import pytest
import torch
from laplace import Laplace, marglik_training
from laplace.curvature import CurvlinopsGGN, GGNInterface
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayesws import Categorical, Gaussian, log_evidence
from bayesws.evidence.batches import Batches
from bayesws.evidence.hessian import Spectra
from bayesws.evidence.laplace import (
    PathwayGGN,
    PathwayKron,
    curvature_tensors,
    fitted_posterior,
    frozen_hyperparameters,
    prior_precisions,
    restored_posterior,
)
from bayesws.evidence.objective import laplace_pass
from bayesws.layers import WSLinear, structure
from bayesws.layers.contract import starting_log_precisions

NOISE, N, OUTPUTS = 0.7, 7, 3
LIKELIHOODS = {
    "classification": (Categorical, oracles.softmax_hessian),
    "regression": (lambda: Gaussian(NOISE, dtype=torch.float64), oracles.gaussian_hessian(NOISE)),
}
KINDS = ["full", "diag", "kron"]
every_net = pytest.mark.parametrize("sharing", networks.SHARING, ids=networks.SHARING_IDS)
every_likelihood = pytest.mark.parametrize("kind", LIKELIHOODS)
every_kind = pytest.mark.parametrize("curvature", KINDS)
FIXED, SOFT = networks.SHARING[0], networks.SHARING[3]


def problem(sharing, kind, net=networks.EveryLayer, outputs=OUTPUTS):
    likelihood, hessian = LIKELIHOODS[kind]
    return net(*sharing, outputs), networks.images(N), networks.targets(kind, N, outputs), likelihood(), hessian


def plain(outputs=OUTPUTS):
    net = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Conv2d(2, 2, 2, bias=False), nn.Flatten(), nn.Linear(8, 4), nn.Tanh()
    )
    return net.append(nn.Linear(4, outputs)).double()


def loader(x, y, batch_size=N):
    return DataLoader(TensorDataset(x, y), batch_size)


def assert_close(found, expected, rtol):
    """Relative to the largest entry: sums of products in another order."""
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=rtol)


def dense_curvature(net, x, hessian, curvature):
    """H of a kind as a matrix over all weights, the long way."""
    names = oracles.weight_names(net)
    if curvature == "kron":
        blocks = oracles.kron_blocks(net, x, hessian)
        return torch.block_diag(*[blocks[oracles.pathway_of(net, name)] for name in names])
    h = oracles.dense_ggn(net, x, hessian, names)
    return h if curvature == "full" else torch.diag(h.diagonal())


# On sharing nets: against our own evidence, and against dense matrices


@every_net
@every_likelihood
@every_kind
def test_marginal_likelihood_is_the_log_evidence(sharing, kind, curvature):
    net, x, y, likelihood, _ = problem(sharing, kind)
    la = fitted_posterior(net, (x, y), likelihood, curvature, batch_size=3)  # 3 + 3 + 1
    expected = log_evidence(net, (x, y), likelihood, curvature)
    occam = occam_in_blocks(net, (x, y), likelihood, curvature)
    found = la.log_marginal_likelihood().item()
    assert found == pytest.approx((expected.data_fit - expected.scatter).item() - occam, rel=1e-10)
    assert la.log_likelihood.item() == pytest.approx(expected.data_fit.item(), rel=1e-10)
    assert 0.5 * la.scatter.item() == pytest.approx(expected.scatter.item(), rel=1e-10)
    assert 0.5 * la.log_det_ratio.item() == pytest.approx(occam, rel=1e-10)


def occam_in_blocks(net, data, likelihood, curvature, prior=None):
    """As laplace-torch has it, which does not know that two pathways act through the same directions."""
    done = laplace_pass(net, Batches(data), likelihood, curvature)
    log_precisions = starting_log_precisions(net) if prior is None else prior
    if isinstance(done.hessian, Spectra):
        return replace(done.hessian, within={}).occam(log_precisions).item()
    return done.hessian.occam(log_precisions).item()


@every_net
@every_likelihood
@every_kind
def test_functional_variance_is_the_dense_one(sharing, kind, curvature, tight_sinkhorn):
    net, x, y, likelihood, hessian = problem(sharing, kind)
    la = fitted_posterior(net, (x, y), likelihood, curvature, batch_size=4)
    precision = dense_curvature(net, x, hessian, curvature) + torch.diag(la.prior_precision_diag.detach())
    new = networks.images(4)
    jacobian = oracles.dense_jacobian(net, new, oracles.weight_names(net))
    expected = jacobian @ torch.linalg.solve(precision, jacobian.mT)
    mean, variance = la._glm_predictive_distribution(new)
    assert_close(mean, net(new).detach(), 1e-12)
    assert_close(variance, expected, 1e-10)
    flat = jacobian.flatten(0, 1)
    assert_close(la.functional_covariance(jacobian).detach(), flat @ torch.linalg.solve(precision, flat.mT), 1e-10)
    if kind == "classification":
        kappa = (1 + torch.pi / 8 * expected.diagonal(dim1=1, dim2=2)).rsqrt()
        assert_close(la(new), (kappa * net(new).detach()).softmax(-1), 1e-10)
    else:
        assert_close(la(new)[1], expected, 1e-10)


@every_net
@every_likelihood
def test_jacobians_and_gradients(sharing, kind):
    net, x, y, _, _ = problem(sharing, kind)
    with frozen_hyperparameters(net):
        backend = PathwayGGN(net, kind)
    expected = oracles.dense_jacobian(net, x, oracles.weight_names(net))
    jacobians, outputs = backend.jacobians(x)
    assert not jacobians.requires_grad and not outputs.requires_grad
    assert_close(jacobians, expected, 1e-12)
    assert_close(outputs, net(x).detach(), 1e-12)
    gradients, loss = backend.gradients(x, y)
    losses = [-(oracles.log_probability(net(x[i : i + 1]), y[i : i + 1], 1.0 if kind == "regression" else None))
              for i in range(N)]  # fmt: skip
    for found, one in zip(gradients, losses, strict=True):
        by_hand = torch.autograd.grad(one, backend.params, retain_graph=True)
        assert_close(found, torch.cat([g.flatten() for g in by_hand]), 1e-12)
    constant = 0.5 * N * OUTPUTS * torch.log(torch.tensor(2 * torch.pi)) if kind == "regression" else 0.0
    assert loss.item() == pytest.approx((sum(losses) - constant).item(), rel=1e-6)
    chosen, _ = backend.selected_output_jacobians(x, torch.arange(N) % OUTPUTS)
    assert_close(chosen[:, 0], expected[torch.arange(N), torch.arange(N) % OUTPUTS], 1e-12)


@every_kind
@pytest.mark.parametrize("sharing", [FIXED, SOFT], ids=["fixed", "dense"])
def test_backpropagation_to_the_inputs(sharing, curvature, tight_sinkhorn):
    net, x, y, likelihood, _ = problem(sharing, "classification", networks.Small, 2)
    la = fitted_posterior(net, (x, y), likelihood, curvature, enable_backprop=True)
    new = networks.images(1).requires_grad_()

    def total():
        probabilities, (mean, variance) = la(new), la._glm_predictive_distribution(new)
        return probabilities[0, 0] + mean.sum() + variance.sum()

    (gradient,) = torch.autograd.grad(total(), new)
    along = torch.randn_like(new)
    # step 1e-4: s² / 6 ≈ 1e-9 times a third derivative
    expected = oracles.central_derivative(total, [new], [along])
    assert (gradient * along).sum().item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


# Gradients of the marginal likelihood


@every_kind
@every_likelihood
@pytest.mark.parametrize("sharing", [FIXED, *networks.SHARING[3:]], ids=["fixed", *networks.SHARING_IDS[3:]])
def test_gradients_against_finite_differences(sharing, kind, curvature, tight_sinkhorn):
    """In the prior precisions, handed over or the layers' own, the noise and the logits."""
    net, x, y, likelihood, _ = problem(sharing, kind, networks.Small, 2)
    own = [p for name, p in net.named_parameters() if "log_precisions" in name]
    tensors = [*own, *structure(net), *likelihood.hyperparameters()]

    def total():
        return fitted_posterior(net, (x, y), likelihood, curvature, batch_size=4).log_marginal_likelihood()

    gradients = torch.autograd.grad(total(), tensors)
    for _ in range(2):
        along = [torch.randn_like(t) for t in tensors]
        found = sum((g * u).sum().item() for g, u in zip(gradients, along, strict=True))
        # step 1e-4: s² / 6 ≈ 1e-9 times a third derivative, and rounding 1e-14 · |evidence| / step ≈ 1e-9
        assert found == pytest.approx(oracles.central_derivative(total, tensors, along), rel=1e-6, abs=1e-6)
    with torch.no_grad():
        la = fitted_posterior(net, (x, y), likelihood, curvature)
    deltas = la.prior_precision.detach().clone().requires_grad_()
    sigma = torch.tensor(0.8, dtype=torch.float64, requires_grad=True) if kind == "regression" else None
    given = [deltas] if sigma is None else [deltas, sigma]
    for _ in range(2):  # laplace-torch differentiates one fitted posterior many times
        gradients = torch.autograd.grad(la.log_marginal_likelihood(deltas, sigma), given)
    for tensor, gradient in zip(given, gradients, strict=True):
        expected = oracles.central_gradient(lambda: la.log_marginal_likelihood(deltas, sigma), tensor)
        assert_close(gradient, expected, 1e-6)


def test_what_is_frozen_keeps_no_graph():
    net, x, y, likelihood, _ = problem(SOFT, "classification")
    with frozen_hyperparameters(net):
        la = fitted_posterior(net, (x, y), likelihood, "kron")
    assert not la.log_marginal_likelihood().requires_grad
    assert structure(net) and all(p.requires_grad for p in net.parameters())
    with torch.no_grad():
        assert not fitted_posterior(net, (x, y), likelihood, "full").H.requires_grad


# On plain nets: against laplace-torch's own backends


class PlainDiagonal(GGNInterface):
    """laplace-torch's own exact diagonal, by dense Jacobians; Curvlinops has it column by column only."""


@every_likelihood
@every_kind
def test_plain_nets_agree_with_laplace_torch(kind, curvature):
    net, x, y = plain(), networks.images(N), networks.targets(kind, N, OUTPUTS)
    deltas = torch.rand(len(list(net.parameters())), dtype=torch.float64) + 0.5
    settings = {"subset_of_weights": "all", "hessian_structure": curvature, "prior_precision": deltas}
    if kind == "regression":
        settings["sigma_noise"] = NOISE
    ours, theirs = (
        Laplace(net, kind, backend=backend, **settings)
        for backend in (PathwayGGN, PlainDiagonal if curvature == "diag" else CurvlinopsGGN)
    )
    for la in (ours, theirs):
        la.fit(loader(x, y))
    # B7 asks for 1e-5. The same sums in another order; but CurvlinopsGGN's full matrix is as good as float32
    rtol = 1e-6 if curvature == "full" else 1e-9
    assert ours.log_marginal_likelihood().item() == pytest.approx(theirs.log_marginal_likelihood().item(), rel=rtol)
    new = networks.images(4)
    calls = [{}] if kind == "regression" else [{"link_approx": link} for link in ("probit", "bridge", "bridge_norm")]
    for call in calls:
        found, expected = ours(new, **call), theirs(new, **call)
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b, rtol)
    # the same numbers are drawn; weights only without Kronecker factors, whose eigenvectors may have another sign
    for la in (ours, theirs):
        torch.manual_seed(1)
        la.drawn = la.predictive_samples(new, n_samples=20)
    assert_close(ours.drawn, theirs.drawn, rtol)
    if curvature != "kron":
        for la in (ours, theirs):
            torch.manual_seed(1)
            la.drawn = la(new, pred_type="nn", link_approx="mc", n_samples=20)
        for a, b in zip(ours.drawn, theirs.drawn, strict=True):
            assert_close(a, b, rtol)


# Everything that laplace-torch offers runs, and samples have the covariance that they should


@every_likelihood
@every_kind
@pytest.mark.parametrize("sharing", [FIXED, SOFT], ids=["fixed", "dense"])
def test_every_predictive(sharing, kind, curvature):
    net, x, y, likelihood, _ = problem(sharing, kind)
    with torch.no_grad():  # else every step below would walk one and the same graph to the logits
        la = fitted_posterior(net, (x, y), likelihood, curvature)
    before, new = [p.detach().clone() for p in net.parameters()], networks.images(4)
    if kind == "classification":
        for call in [
            *({"link_approx": link} for link in ("probit", "bridge", "bridge_norm", "mc")),
            {"link_approx": "mc", "diagonal_output": True},
            {"pred_type": "nn", "link_approx": "mc"},
        ]:
            p = la(new, n_samples=50, **call)
            torch.testing.assert_close(p.sum(-1), torch.ones(4, dtype=torch.float64))
            assert p.shape == (4, OUTPUTS) and (p >= 0).all()
    else:
        assert la(new)[1].shape == (4, OUTPUTS, OUTPUTS)
        assert la(new, diagonal_output=True)[1].shape == (4, OUTPUTS)
        assert la(new, joint=True)[1].shape == (4 * OUTPUTS, 4 * OUTPUTS)
        assert la(new, pred_type="nn", link_approx="mc", n_samples=50)[1].shape == (4, OUTPUTS)
    for draw in (la.functional_samples, la.predictive_samples):
        for pred_type in ("glm", "nn"):
            assert draw(new, pred_type=pred_type, n_samples=5).shape == (5, 4, OUTPUTS)
    la.optimize_prior_precision(n_steps=3, prior_structure="layerwise", init_prior_prec=1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@every_kind
@pytest.mark.parametrize("sharing", [FIXED, SOFT], ids=["fixed", "dense"])
def test_samples_have_the_posterior_covariance(sharing, curvature, tight_sinkhorn):
    net, x, y, likelihood, hessian = problem(sharing, "regression", networks.Small, 2)
    la = fitted_posterior(net, (x, y), likelihood, curvature)
    precision = dense_curvature(net, x, hessian, curvature) + torch.diag(la.prior_precision_diag.detach())
    draws = 20_000
    with torch.no_grad():
        centred = la.sample(draws) - la.mean
        white = centred @ torch.linalg.cholesky(precision)  # N(0, I)
        # entries of a sample covariance of N(0, I): standard error √(2 / draws) at most; five of them
        covariance = white.mT @ white / draws
        assert (covariance - torch.eye(len(covariance))).abs().max() < 5 * (2 / draws) ** 0.5
        value = la.mean + 0.1
        expected = 0.01 * precision.sum()
        assert la.square_norm(value).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("sharing", networks.SHARING[3:5], ids=networks.SHARING_IDS[3:5])
def test_stacked_blocks_are_the_matrix(sharing, tight_sinkhorn):
    net, x, y, likelihood, hessian = problem(sharing, "regression", networks.Small, 2)
    with torch.no_grad():
        la = fitted_posterior(net, (x, y), likelihood, "kron")
    expected = NOISE**2 * dense_curvature(net, x, hessian, "kron")  # laplace-torch keeps H at σ = 1
    kron, decomposed = la.H_facs, la.H + la.prior_precision
    weights = torch.randn(2, 1, len(expected), dtype=torch.float64)
    assert_close(kron.to_matrix(), expected, 1e-10)
    assert_close(kron.diag(), expected.diagonal(), 1e-10)
    assert_close(kron.bmm(weights), weights @ expected, 1e-10)
    assert_close((2 * kron).to_matrix(), 2 * expected, 1e-10)
    expected = expected + torch.diag(la.prior_precision_diag)
    assert_close(decomposed.to_matrix(), expected, 1e-10)
    assert_close(decomposed.diag(-1), torch.linalg.inv(expected).diagonal(), 1e-9)
    assert_close(decomposed.bmm(weights, -1), torch.linalg.solve(expected, weights.mT).mT, 1e-9)
    regular = PathwayKron([[f + torch.eye(f.shape[-1]) for f in factors] for factors in kron.kfacs])
    assert regular.logdet().item() == pytest.approx(regular.to_matrix().logdet().item(), rel=1e-10)


@every_kind
def test_online_data_and_restored_posteriors(curvature):
    net, x, y, likelihood, _ = problem(SOFT, "regression")
    with torch.no_grad():
        whole = fitted_posterior(net, (x, y), likelihood, curvature)
        parts = fitted_posterior(net, (x[:4], y[:4]), likelihood, curvature)
        parts.fit(loader(x[4:], y[4:]), override=False)
    assert parts.log_marginal_likelihood().item() == pytest.approx(whole.log_marginal_likelihood().item(), rel=1e-10)
    back = restored_posterior(net, curvature_tensors(whole), likelihood, curvature)
    new = networks.images(4)
    for a, b in zip(back(new), whole(new), strict=True):
        assert torch.equal(a, b)


def test_a_layer_that_is_not_called_keeps_its_prior():
    net, x = plain(), networks.images(N)
    net.spare = nn.Linear(3, 2, dtype=torch.float64)
    net.forward = nn.Sequential(*list(net)[:-1]).forward
    y = networks.targets("classification", N, OUTPUTS)
    for curvature in KINDS:
        la = fitted_posterior(net, (x, y), "classification", curvature)
        assert la.n_params == sum(p.numel() for p in net.parameters())
        expected = log_evidence(net, (x, y), "classification", curvature)
        assert la.log_marginal_likelihood().item() == pytest.approx(float(expected), rel=1e-10)


def test_outputs_of_any_shape():
    """laplace-torch counts the last dimension alone when it normalises a density."""
    net = nn.Sequential(nn.Linear(3, 4, dtype=torch.float64), nn.Unflatten(1, (2, 2)))
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, 2, dtype=torch.float64)
    for curvature in KINDS:
        la = fitted_posterior(net, (x, y), "regression", curvature)
        expected = log_evidence(net, (x, y), "regression", curvature)
        assert la.log_marginal_likelihood().item() == pytest.approx(float(expected), rel=1e-10)
        assert la(x)[1].shape == (5, 4, 4)


@pytest.mark.parametrize("curvature", ["full", "diag"])
def test_a_subnetwork_is_a_part_of_the_matrix(curvature):
    net, x, y, _, hessian = problem(FIXED, "classification")
    chosen = torch.arange(0, 20, 3)
    with frozen_hyperparameters(net):
        la = Laplace(net, "classification", "subnetwork", curvature, subnetwork_indices=chosen, backend=PathwayGGN)
    la.fit(loader(x, y))
    h = dense_curvature(net, x, hessian, curvature)
    expected = h[chosen][:, chosen] if curvature == "full" else h.diagonal()[chosen]
    assert_close(la.H.detach(), expected, 1e-10)
    assert la(networks.images(2)).shape == (2, OUTPUTS)


# Training by laplace-torch


@pytest.mark.parametrize("curvature", ["kron", "full"])
@pytest.mark.parametrize("name", ["plain", "fixed", "dense"])
def test_marglik_training(name, curvature):
    x = torch.randn(60, 4, dtype=torch.float64)
    y = (x[:, 0] + x[:, 2] > 0).long()
    sharing = {"dtype": torch.float64, "group_size": 2}
    net = {
        "plain": lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double(),
        "fixed": lambda: nn.Sequential(
            WSLinear(4, 2, stack="fixed", group=networks.half_shift(4), **sharing), nn.Flatten(), nn.Tanh(),
            nn.Linear(4, 2).double(),
        ),
        "dense": lambda: nn.Sequential(
            WSLinear(4, 2, stack="dense", **sharing), nn.Flatten(), nn.Tanh(), nn.Linear(4, 2).double()
        ),
    }[name]()  # fmt: skip
    with frozen_hyperparameters(net):
        la, model, margliks, _ = marglik_training(
            net,
            loader(x, y, 20),
            "classification",
            curvature,
            backend=PathwayGGN,
            n_epochs=8,
            optimizer_kwargs={"lr": 0.05},
            n_hypersteps=3,
        )
    assert margliks[-1] < margliks[0]  # laplace-torch lists negative evidences
    log_precisions = dict(zip([n for n, p in model.named_parameters() if p.requires_grad and "log" not in n],
                              la.prior_precision.log(), strict=True))  # fmt: skip
    if name != "dense":  # a soft stack's own precisions shape its kernel
        again = log_evidence(model, (x, y), "classification", curvature, log_precisions)
        occam = occam_in_blocks(model, (x, y), Categorical(), curvature, log_precisions)
        expected = (again.data_fit - again.scatter).item() - occam
        assert la.log_marginal_likelihood().item() == pytest.approx(expected, rel=1e-10)


# Bad input


def test_errors():
    net, x, y, likelihood, _ = problem(SOFT, "classification")
    with pytest.raises(ValueError, match="curvature='lowrank': expected one of full, layer"):
        fitted_posterior(net, (x, y), likelihood, "lowrank")
    with pytest.raises(ValueError, match=r"prior for 'lift\.free': the stack is soft"):
        fitted_posterior(net, (x, y), likelihood, prior={"lift.free": 3.0})
    with pytest.raises(ValueError, match="prior for 'nothing': expected pathways among"):
        prior_precisions(net, {"nothing": 1.0})
    with pytest.raises(ValueError, match="labels from 0 to 7: expected 0 to 2"):
        fitted_posterior(net, (x, torch.tensor([0, 1, 2, 0, 1, 2, 7])), likelihood)
    with pytest.raises(ValueError, match=r"inputs of type dict with \['x'\]: expected a tensor, or a mapping with one"):
        PathwayGGN(net, "classification").jacobians({"x": x})
    tensors = curvature_tensors(fitted_posterior(net, (x, y), likelihood))
    with pytest.raises(ValueError, match="no tensor 'H' of a curvature 'full'"):
        restored_posterior(net, tensors, likelihood, "full")
    with pytest.raises(ValueError, match="a curvature of 4 weights: the network has"):
        restored_posterior(net, {"H": torch.ones(4)}, likelihood, "diag")


def test_weights_that_laplace_torch_took_for_more_are_refused():
    """It counts what requires a gradient when it is built, and adds up Kronecker factors without a word."""
    net, x, y, _, _ = problem(SOFT, "classification")
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("log_precisions" not in name)  # its Kron refuses scalars by itself
    la = Laplace(net, "classification", subset_of_weights="all", hessian_structure="kron", backend=PathwayGGN)
    with pytest.raises(ValueError, match=r"build it where log precisions and logits are frozen"):
        la.fit(loader(x, y))


def test_precisions_are_in_the_order_of_the_parameters():
    net, *_ = problem(FIXED, "classification")
    own = starting_log_precisions(net)
    expected = [own[oracles.pathway_of(net, name)].exp() for name in oracles.weight_names(net)]
    assert torch.equal(prior_precisions(net), torch.stack(expected))

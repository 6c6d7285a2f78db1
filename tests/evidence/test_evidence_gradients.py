"""Gradients of the log evidence, weights fixed, in precisions, noise and logits against central differences."""

import networks
import oracles
import pytest
import torch

from bayesws import Categorical, Curvature, Gaussian, evidence_gradient, log_evidence
from bayesws.evidence.batches import Batches
from bayesws.evidence.gradient import gradient_in
from bayesws.layers.contract import starting_log_precisions, structure
from bayesws.sharing import doubly_stochastic

SOFT = [s for s in networks.SHARING if s[0] != "fixed"]
CASES = [*SOFT, ("fixed", networks.BOTH, 2)]
IDS = [f"{stack}-{'+'.join(pathways)}-{size}" for stack, pathways, size in CASES]
every_net = pytest.mark.parametrize("sharing", CASES, ids=IDS)
N = 4


def precisions(net):
    return [p for name, p in net.named_parameters() if "log_precisions" in name]


def close(pairs):
    scale = max(abs(expected) for _, expected in pairs)
    for found, expected in pairs:
        # step 1e-4: s² / 6 ≈ 1e-9 times a third derivative, and rounding 1e-14 · |evidence| / step ≈ 1e-9
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6 * scale)


def check_scalars(f, tensors):
    gradients = torch.autograd.grad(f(), tensors)
    expected = [oracles.central_derivative(f, [t], [torch.ones_like(t)]) for t in tensors]
    close([(g.item(), e) for g, e in zip(gradients, expected, strict=True)])


def check_along_random_directions(f, tensors, directions=3):
    """A wrong entry shows in every direction."""
    gradients = torch.autograd.grad(f(), tensors)
    pairs = []
    for _ in range(directions):
        along = [torch.randn_like(t) for t in tensors]
        found = sum((g * u).sum().item() for g, u in zip(gradients, along, strict=True))
        pairs.append((found, oracles.central_derivative(f, tensors, along)))
    close(pairs)


@every_net
@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("curvature", ["full", "diag", "kron"])
def test_gradients_against_finite_differences(sharing, kind, curvature, tight_sinkhorn):
    net, x = networks.Small(*sharing), networks.images(N)
    y = networks.targets(kind, N, 2)
    likelihood = Categorical() if kind == "classification" else Gaussian(0.7, dtype=torch.float64)

    def total():
        return log_evidence(net, (x, y), likelihood, curvature).total

    check_along_random_directions(total, [*precisions(net), *likelihood.hyperparameters()])
    if logits := structure(net):
        check_along_random_directions(total, logits)


@every_net
@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("curvature", ["full", "layer", "diag", "kron"])
def test_two_passes_give_the_gradient_of_one(sharing, kind, curvature, tight_sinkhorn):
    """Which the test above holds against finite differences. Parts of several batches, sampled columns, a subset."""
    net, x, y = networks.Small(*sharing), networks.images(11), networks.targets(kind, 11, 2)
    likelihood = Categorical() if kind == "classification" else Gaussian(0.7, dtype=torch.float64)
    wanted = [*precisions(net), *likelihood.hyperparameters(), *structure(net)]
    for asked in (Curvature(curvature), Curvature(curvature, samples=1, subset=0.8, seed=3)):
        problem = net, Batches((x, y), batch_size=6), likelihood, asked, starting_log_precisions(net), wanted
        one, expected = gradient_in(*problem, way="once")
        two, found = gradient_in(*problem, way="twice")
        assert float(two) == pytest.approx(float(one), rel=1e-12)
        for a, b in zip(found, expected, strict=True):
            # the same products in another order
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * max(1.0, float(b.abs().max())))


@every_net
@pytest.mark.parametrize("curvature", ["full", "diag", "kron"])
def test_local_gradient_takes_signals_as_constants(sharing, curvature, tight_sinkhorn):
    """One linear layer, regression: its inputs and output gradients do not depend on the stack; local is exact."""
    net, x = networks.Linear(*sharing), torch.randn(7, 4, dtype=torch.float64)
    y, likelihood = torch.randn(7, net(x).shape[1], dtype=torch.float64), Gaussian(0.7, learn=False)
    wanted = [*precisions(net), *structure(net)]
    problem = net, Batches((x, y), batch_size=4), likelihood, curvature, starting_log_precisions(net), wanted
    _, expected = gradient_in(*problem, way="once")
    _, found = gradient_in(*problem, way="local")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * max(1.0, float(b.abs().max())))


@every_net
def test_gradients_by_name(sharing, tight_sinkhorn):
    net, x, y = networks.Small(*sharing), networks.images(5), networks.targets("regression", 5, 2)
    likelihood = Gaussian(0.7, dtype=torch.float64)
    evidence, found = evidence_gradient(net, (x, y), likelihood, "kron", batch_size=2)
    names = {n for n, p in net.named_parameters() if any(p is t for t in [*precisions(net), *structure(net)])}
    assert set(found) == names | {"log_noise"}
    total = log_evidence(net, (x, y), likelihood, "kron").total
    assert float(evidence) == pytest.approx(total.item(), rel=1e-12)
    tensors = [likelihood.log_noise if n == "log_noise" else net.get_parameter(n) for n in found]
    for a, b in zip(found.values(), torch.autograd.grad(total, tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * max(1.0, float(b.abs().max())))


def test_stacks_are_projected_once_a_pass_however_many_batches(monkeypatch):
    """Small has three soft layers, each with one Sinkhorn projection."""
    calls, real = [], doubly_stochastic.sinkhorn
    monkeypatch.setattr(doubly_stochastic, "sinkhorn", lambda *a, **k: calls.append(1) or real(*a, **k))
    net, x, y = networks.Small("dense", networks.BOTH, 2), networks.images(8), networks.targets("classification", 8, 2)
    log_evidence(net, (x, y), curvature="kron", batch_size=2)
    assert len(calls) == 3


def test_gradient_in_a_prior_handed_over_by_name():
    net = networks.softmax_regression(16, 3)
    x, y = networks.images(6), torch.arange(6) % 3
    (name, *_) = starting_log_precisions(net)
    prior = {name: torch.tensor(0.4, dtype=torch.float64, requires_grad=True)}
    _, found = evidence_gradient(net, (x, y), prior=prior)
    total = log_evidence(net, (x, y), curvature="kron", prior=prior).total
    assert set(found) == {f"prior.{name}"}
    torch.testing.assert_close(found[f"prior.{name}"], torch.autograd.grad(total, prior[name])[0])


def test_a_sampled_second_pass_is_unbiased(tight_sinkhorn):
    """The mean over 60 seeds within 4.5 standard errors of the exact gradient, in every logit and precision."""
    net, x, y = networks.Small("dense", networks.BOTH, 2), networks.images(6), networks.targets("regression", 6, 2)
    _, exact = evidence_gradient(net, (x, y), "regression")
    drawn = [
        evidence_gradient(net, (x, y), "regression", Curvature("kron", seed=seed), second_samples=1)[1]
        for seed in range(60)
    ]
    for name, expected in exact.items():
        values = torch.stack([d[name] for d in drawn])
        error = values.std(0) / len(values) ** 0.5
        assert bool(((values.mean(0) - expected).abs() <= 4.5 * error + 1e-9 * expected.abs().max()).all()), name


def test_a_soft_stack_s_prior_is_the_layer_s_own():
    net, x, y = networks.Small(*SOFT[0]), networks.images(4), networks.targets("classification", 4, 2)
    with pytest.raises(ValueError, match=r"prior for 'lift\.shared': the stack is soft"):
        evidence_gradient(net, (x, y), prior={"lift.shared": 0.3})


def test_unknown_way():
    net, data = networks.Small(*SOFT[0]), Batches((networks.images(4), networks.targets("classification", 4, 2)))
    with pytest.raises(ValueError, match="way='thrice': expected one of once, twice, local"):
        gradient_in(net, data, Categorical(), "kron", starting_log_precisions(net), [], "thrice")


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("pathways", [networks.BOTH, networks.SHARED])
def test_gradients_with_frozen_logits(kind, pathways, tight_sinkhorn):
    """A soft stack that is not learned: the precisions still shape the free pathway's prior, and so the kernel."""
    net, x, y = networks.Small("dense", pathways, 2), networks.images(N), networks.targets(kind, N, 2)
    for logits in structure(net):
        logits.requires_grad_(False)
    likelihood = Categorical() if kind == "classification" else Gaussian(0.7, learn=False, dtype=torch.float64)
    check_scalars(lambda: log_evidence(net, (x, y), likelihood, "full").total, precisions(net))


@pytest.mark.parametrize("curvature", ["full", "diag", "kron"])
@pytest.mark.parametrize("sharing", [networks.SHARING[0], networks.SHARING[3]], ids=["fixed", "dense"])
def test_gradients_in_a_prior_that_is_handed_over(sharing, curvature, tight_sinkhorn):
    net, x, y = networks.Small(*sharing), networks.images(N), networks.targets("classification", N, 2)
    prior = {
        name: torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        for name in ("lift.shared", "linear.free", "linear.bias")
    }
    check_scalars(lambda: log_evidence(net, (x, y), "classification", curvature, prior).total, list(prior.values()))


@every_net
def test_no_gradient_reaches_the_weights(sharing):
    net, x, y = networks.Small(*sharing), networks.images(N), networks.targets("classification", N, 2)
    before = [p.detach().clone() for p in net.parameters()]
    total = log_evidence(net, (x, y)).total
    weights = [net.get_parameter(n) for n in oracles.weight_names(net)]
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    total.backward()
    assert all(p.grad is not None for p in [*precisions(net), *structure(net)])
    assert weights

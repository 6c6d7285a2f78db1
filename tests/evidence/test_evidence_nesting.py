"""Pathways through the same directions: one sum, accounted for once, whatever its split."""

import math

import oracles
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import bayesws as bws
from bayesws.evidence.batches import Batches
from bayesws.evidence.hessian import Spectra
from bayesws.evidence.nesting import Sum, nested, rebalance
from bayesws.evidence.objective import laplace_pass
from bayesws.evidence.precision import ascend_precisions, update_precisions
from bayesws.layers.contract import Pathway, Within, named_pathways, starting_log_precisions

PROBLEMS = 300
CLOSED = 60.0  # log precision, in float64


pytestmark = pytest.mark.usefixtures("double")


def random_problem(seed):
    """H of the outer coordinates, R of random permutations, Rᵀ R = G I; of any rank and size."""
    draw = torch.Generator().manual_seed(seed)
    copies, size = (int(torch.randint(1, 6, (), generator=draw)) for _ in range(2))
    rank = int(torch.randint(1, copies * size + 3, (), generator=draw))
    roots = torch.randn(copies * size, rank, generator=draw) * (2 * torch.randn(rank, generator=draw)).exp()
    r = torch.cat([torch.eye(size)[torch.randperm(size, generator=draw)] for _ in range(copies)])
    return roots @ roots.mT, r, 4 * torch.randn(2, generator=draw)


def coupled(h, r, logs):
    """The coupled Occam factor and γ, from the eigenvalues of both blocks."""
    spectra = {"w": torch.linalg.eigvalsh(r.mT @ h @ r).clamp(min=0), "v": torch.linalg.eigvalsh(h).clamp(min=0)}
    found = Spectra(spectra, {"w": ("v", len(r) / r.shape[1])})
    logs = dict(zip("wv", logs, strict=True))
    return found.occam(logs), torch.stack([found.effective(logs)[name] for name in "wv"])


def joint(h, r, logs):
    """½ log det(I + Σ H), Σ = β⁻¹ I + α⁻¹ R Rᵀ."""
    alpha, beta = logs.exp()
    return 0.5 * torch.linalg.slogdet(torch.eye(len(h)) + (torch.eye(len(h)) / beta + r @ r.mT / alpha) @ h).logabsdet


def blocks(h, r, logs):
    """The same of separate blocks of w and v."""
    alpha, beta = logs.exp()
    both = ((r.mT @ h @ r, alpha), (h, beta))
    return 0.5 * sum(torch.linalg.slogdet(torch.eye(len(m)) + m / delta).logabsdet for m, delta in both)


def test_the_coupled_occam_factor_lies_between_the_exact_one_and_that_of_blocks():
    apart = []
    for seed in range(PROBLEMS):
        h, r, logs = random_problem(seed)
        exact, found, separate = joint(h, r, logs), coupled(h, r, logs)[0], blocks(h, r, logs)
        rounding = 1e-9 * max(1.0, float(separate))
        assert exact - rounding <= found <= separate + rounding
        apart.append(float(separate - found) > 0.1)
        for corner in (torch.stack([torch.tensor(CLOSED), logs[1]]), torch.stack([logs[0], torch.tensor(CLOSED)])):
            assert float(coupled(h, r, corner)[0] - joint(h, r, corner)) == pytest.approx(0, abs=rounding)
    assert sum(apart) > PROBLEMS / 4  # the difference is no matter of rounding


def test_effective_parameters_are_the_occam_factors_derivatives():
    for seed in range(PROBLEMS):
        h, r, logs = random_problem(seed)
        logs.requires_grad_()
        occam, effective = coupled(h, r, logs)
        (slope,) = torch.autograd.grad(occam, logs)
        torch.testing.assert_close(effective.detach(), -2 * slope, rtol=1e-9, atol=1e-9)


def test_a_chain_of_three_is_accounted_for_jointly():
    """Within one another: R₁₂ᵀ R₁₂ = 2 I, R₂₃ᵀ R₂₃ = 3 I; exact where two are closed, γ the derivative, a bound."""
    draw = torch.Generator().manual_seed(0)
    inner, outer = torch.eye(4).repeat(2, 1)[torch.randperm(8, generator=draw)], torch.eye(8).repeat(3, 1)
    roots = torch.randn(24, 10, generator=draw)
    h = {"c": roots @ roots.mT}
    h |= {"b": outer.mT @ h["c"] @ outer}
    h |= {"a": inner.mT @ h["b"] @ inner}
    spectra = Spectra(
        {name: torch.linalg.eigvalsh(m).clamp(min=0) for name, m in h.items()}, {"a": ("b", 2.0), "b": ("c", 3.0)}
    )

    def exact(logs):
        lifts = {"a": outer @ inner, "b": outer, "c": torch.eye(24)}
        variance = sum(lift @ lift.mT / logs[name].exp() for name, lift in lifts.items())
        return 0.5 * torch.linalg.slogdet(torch.eye(24) + variance @ h["c"]).logabsdet

    for alone in "abc":
        logs = {name: torch.tensor(0.7 if name == alone else CLOSED) for name in "abc"}
        assert float(spectra.occam(logs)) == pytest.approx(float(exact(logs)), rel=1e-9)
    logs = {name: torch.tensor(value, requires_grad=True) for name, value in zip("abc", (0.3, 1.2, 2.0), strict=True)}
    found = spectra.occam(logs)
    shares = spectra.occam_by_pathway(logs)
    assert exact(logs) < found < sum(0.5 * torch.log1p(spectra.eigenvalues[n] / logs[n].exp()).sum() for n in "abc")
    assert float(found) == pytest.approx(float(sum(shares.values())), rel=1e-12)
    slopes = torch.autograd.grad(found, list(logs.values()))
    for name, slope in zip(logs, slopes, strict=True):
        assert float(spectra.effective(logs)[name]) == pytest.approx(-2 * float(slope), rel=1e-9)


def sharing_net(stack, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        bws.layers.WSLinear(
            4, 3, group_size=4, stack=stack, bias=False, group="cyclic-shifts" if stack == "fixed" else None
        ),
        nn.Flatten(),
    )
    with torch.no_grad():
        for name in ("shared", "free"):
            getattr(net[0], name).normal_()
        net[0].log_precisions["shared"].fill_(0.4)
        net[0].log_precisions["free"].fill_(1.1)
    x = torch.randn(25, 4)
    return net, (x, net(x).detach() + 0.3 * torch.randn(25, 12))


@pytest.mark.parametrize("stack", ["fixed", "dense"])
def test_rebalancing_keeps_the_function_and_has_the_least_scatter(stack):
    net, (x, _) = sharing_net(stack)
    pathways, prior = dict(named_pathways(net)), starting_log_precisions(net)
    before, layer = net(x), net[0]

    def scatter():
        return float(sum(prior[n].exp() * p.parameter.square().sum() for n, p in pathways.items()))

    kernel = layer.kernel().detach().flatten()
    rebalance(pathways, prior)
    torch.testing.assert_close(net(x), before, rtol=1e-10, atol=1e-10)
    # min_θ θᵀ Λ θ with K = E θ is Kᵀ (E Λ⁻¹ Eᵀ)⁻¹ K
    columns = []
    for parameter in (layer.shared, layer.free):
        kept = parameter.detach().clone()
        rest = layer.kernel().detach().flatten()
        for i in range(parameter.numel()):
            with torch.no_grad():
                parameter.view(-1)[i] += 1.0
                columns.append((layer.kernel().flatten() - rest) / prior[f"0.{_name(layer, parameter)}"].exp().sqrt())
                parameter.copy_(kept)
    embedding = torch.stack(columns, -1).detach()
    assert scatter() == pytest.approx(float(kernel @ torch.linalg.solve(embedding @ embedding.mT, kernel)), rel=1e-9)


def _name(layer, parameter):
    return "shared" if parameter is layer.shared else "free"


def test_rebalancing_changes_no_output_in_single_precision():
    torch.set_default_dtype(torch.float32)
    net = bws.models.WSCNN(hidden_channels=4, num_classes=3, layers=2, group_size=4)
    x, pathways = torch.randn(30, 1, 10, 10), dict(named_pathways(net))
    for logs in ((0.0, 4.0), (3.0, 0.0), (-8.0, 16.0), (16.0, -8.0)):
        prior = {n: torch.tensor(logs[0] if n.endswith("shared") else logs[1]) for n in pathways}
        before = net.eval()(x)
        rebalance(pathways, prior)
        assert float((net(x) - before).abs().max()) <= 1e-6 * float(before.abs().max())


@pytest.mark.parametrize("seed", range(4))
def test_the_steps_end_at_the_optimum_of_the_coupled_evidence(seed):
    """The weights' sum held: scipy's optimum, from several starts, of -½ Wᵀ Σ⁻¹ W - Occam in both log precisions."""
    net, data = sharing_net("fixed", seed)
    if seed % 2:  # a sum that shares all, or nothing: the optimum is at the border
        with torch.no_grad():
            net[0].free.zero_() if seed == 1 else net[0].shared.zero_()
    pathways = dict(named_pathways(net))
    done = laplace_pass(net, Batches(data), bws.Gaussian(0.3), bws.Curvature("pathway"))
    w = net[0].kernel().detach().flatten()
    r = embedding_of(net[0])
    prior = {name: t.detach().clone() for name, t in starting_log_precisions(net).items()}
    update_precisions(net, done.hessian, prior, steps=500, damping=0.5)

    def lost(z):
        logs = torch.as_tensor(z, dtype=torch.float64)
        variance = torch.eye(len(w)) / logs[1].exp() + r @ r.mT / logs[0].exp()
        occam = done.hessian.occam({"0.shared": logs[0], "0.free": logs[1]})
        return float(0.5 * w @ torch.linalg.solve(variance, w) + occam)

    reached = lost([float(prior["0.shared"]), float(prior["0.free"])])
    starts = ((0.0, 0.0), (8.0, 0.0), (0.0, 8.0))
    bounds = [(-8.0, 16.0)] * 2
    best = min(minimize(lost, start, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14}).fun for start in starts)
    assert reached == pytest.approx(best, abs=1e-6 * max(1.0, abs(best)))
    rebalance(pathways, prior)
    scatter = sum(0.5 * prior[n].exp() * p.parameter.square().sum() for n, p in pathways.items())
    assert float(scatter + done.hessian.occam(prior)) == pytest.approx(reached, rel=1e-9)


def embedding_of(layer):
    """R (out·G·in, out·in) of a layer with a fixed stack, column by column."""
    columns = []
    with torch.no_grad():
        kept = layer.free.clone(), layer.shared.clone()
        layer.free.zero_()
        for i in range(layer.shared.numel()):
            layer.shared.zero_().view(-1)[i] = 1.0
            columns.append(layer.kernel().flatten().clone())
        layer.free.copy_(kept[0])
        layer.shared.copy_(kept[1])
    return torch.stack(columns, -1)


def test_nested_pathways_of_one_precision_take_one_step_together():
    """δ ← δ · (Σ γ / δ Σ ‖θ‖²)^damping, once; and a pathway whose outer one rests steps by itself."""
    net, data = sharing_net("fixed")
    done = laplace_pass(net, Batches(data), bws.Gaussian(0.3), bws.Curvature("pathway"))
    pathways, one = dict(named_pathways(net)), torch.tensor(0.3)
    prior = dict.fromkeys(pathways, one)
    rebalance(pathways, prior)
    gamma = sum(done.hessian.effective(prior).values())
    weight = one.exp() * sum(p.parameter.detach().square().sum() for p in pathways.values())
    expected = 0.3 + 0.2 * float(torch.log(gamma / weight))
    update_precisions(net, done.hessian, prior, steps=1, damping=0.2, largest_step=9.0)
    assert float(one) == pytest.approx(expected, rel=1e-9)
    prior = {name: torch.tensor(0.3) for name in pathways}
    ascend_precisions(net, prior, [prior["0.free"]], [torch.tensor(1.0)])
    assert float(prior["0.shared"]) == pytest.approx(0.3) and float(prior["0.free"]) > 0.3


def test_a_chain_is_rebalanced_to_the_least_scatter():
    """Three pathways within one another, a layer's and a layer's of layers: K = θ_c + R₂₃ (θ_b + R₁₂ θ_a)."""
    draw = torch.Generator().manual_seed(0)
    inner, outer = torch.eye(3).repeat(2, 1)[torch.randperm(6, generator=draw)], torch.eye(6).repeat(3, 1)
    places = {
        "a": Within("b", 2.0, lambda t: inner @ t, lambda t: inner.mT @ t),
        "b": Within("c", 3.0, lambda t: outer @ t, lambda t: outer.mT @ t),
    }
    sizes, logs = {"a": 3, "b": 6, "c": 18}, {"a": 0.4, "b": -0.7, "c": 1.3}
    logs = {name: torch.tensor(value) for name, value in logs.items()}
    pathways = {
        name: Pathway(
            name,
            nn.Parameter(torch.randn(size, generator=draw)),
            None,
            lambda g: g,
            lambda a, b: [(a, b)],
            within=places.get(name),
        )
        for name, size in sizes.items()
    }
    lifts = {"a": outer @ inner, "b": outer, "c": torch.eye(18)}

    def whole():
        return sum(lifts[name] @ p.parameter.detach() for name, p in pathways.items())

    kernel, variance = whole(), sum(lift @ lift.mT / logs[name].exp() for name, lift in lifts.items())
    rebalance(pathways, logs)
    torch.testing.assert_close(whole(), kernel)
    scatter = sum(float(logs[n].exp() * p.parameter.square().sum()) for n, p in pathways.items())
    assert scatter == pytest.approx(float(kernel @ torch.linalg.solve(variance, kernel)), rel=1e-10)


def test_what_a_layer_declares_is_its_own_embedding():
    net, _ = sharing_net("fixed")
    pathways = dict(named_pathways(net))
    within, r = pathways["0.shared"].within, embedding_of(net[0])
    torch.testing.assert_close(r.mT @ r, within.kappa * torch.eye(r.shape[1]))
    split = Sum.of(pathways)
    torch.testing.assert_close(split.whole["0.free"], net[0].kernel().squeeze(2).reshape(split.whole["0.free"].shape))
    torch.testing.assert_close(r.mT @ split.rest["0.free"].flatten(), torch.zeros(r.shape[1]))
    assert nested(pathways) == {"0.shared": ("0.free", 4.0)}


@pytest.mark.parametrize("rho", [0.2, 0.5, 0.8, 1.0])
def test_a_planted_strength_is_found_from_the_worst_start(rho):
    """G = 4, d = 20, y = W x + noise: at most 0.1 nats of the exact evidence below its highest, from every corner."""
    draw = torch.Generator().manual_seed(int(10 * rho))
    net = bws.layers.WSLinear(20, 2, group_size=4, stack="fixed", group="cyclic-shifts-by-5", bias=False)
    r = net.representations()
    shared = torch.randn(2, 1, 20, generator=draw) * math.sqrt(rho)
    kernel = torch.einsum("gnm,oim->ogin", r, shared)
    kernel = kernel + math.sqrt(1 - rho) * torch.randn(kernel.shape, generator=draw)
    x = torch.randn(60, 20, generator=draw)
    y = torch.einsum("ogin,bn->bog", kernel, x)
    y = y + 0.5 * torch.randn(y.shape, generator=draw)
    names = ["shared", "free"]
    embed = oracles.dense_jacobian(net, torch.eye(20), names).flatten(0, 1)  # all that K is, from θ
    design = torch.kron(x, torch.eye(8))  # outputs from K, as rows of the Jacobian are ordered
    phi, target = design @ embed, y.flatten()

    def exact(logs):
        """log N(y; 0, σ² I + Φ Λ⁻¹ Φᵀ) up to a constant, by the smaller matrix."""
        delta = torch.cat([logs[n].exp().expand(net.get_parameter(n).numel()) for n in names])
        a = gram / 0.25 + torch.diag(delta)
        mean = torch.linalg.solve(a, pull / 0.25)
        fit = 0.5 * (target @ target / 0.25 - pull @ mean / 0.25)
        return -fit - 0.5 * torch.linalg.slogdet(a).logabsdet + 0.5 * delta.log().sum(), mean

    gram, pull = phi.mT @ phi, phi.mT @ target
    best = max(
        -minimize(
            lambda z: -float(exact({"shared": torch.tensor(z[0]), "free": torch.tensor(z[1])})[0]),
            start,
            method="L-BFGS-B",
            bounds=[(-8.0, 16.0)] * 2,
        ).fun
        for start in ((0.0, 0.0), (6.0, 0.0), (0.0, 6.0))
    )
    hessians = {  # the network is linear: at any weights
        kind: laplace_pass(net, Batches((x, y)), bws.Gaussian(0.5), bws.Curvature(kind)).hessian
        for kind in ("full", "pathway")
    }
    for start, kind in (((6.0, -2.0), "full"), ((6.0, -2.0), "pathway"), ((-2.0, 6.0), "pathway")):
        logs = {name: torch.tensor(value) for name, value in zip(names, start, strict=True)}
        for _ in range(60):
            _, mean = exact(logs)
            with torch.no_grad():
                for name, part in zip(names, mean.split([40, 160]), strict=True):
                    net.get_parameter(name).view(-1).copy_(part)
            update_precisions(net, hessians[kind], logs, steps=5, damping=0.5)
        assert best - float(exact(logs)[0]) <= 0.1, (start, kind)

"""The determinant in function space: the dense one's value and gradients, sampled without bias, drawn by place."""

import math
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from operator import add

import networks
import oracles
import pytest
import torch
from refusals import assert_refused
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayesws as bws
from bayesws import Categorical, Curvature, Gaussian, log_evidence
from bayesws.evidence import products, thinning
from bayesws.evidence.batches import Batches
from bayesws.evidence.function_space import FunctionSpace, Part
from bayesws.evidence.gathering import gather
from bayesws.evidence.gradient import gradient_in
from bayesws.evidence.hessian import DenseBlock
from bayesws.evidence.objective import assemble, finish, laplace_pass
from bayesws.evidence.sampling import sampled_batches
from bayesws.layers.contract import declarations, starting_log_precisions
from bayesws.trials.comparable import log_bayes_factor

LIKELIHOODS = {"classification": Categorical, "regression": lambda: Gaussian(0.7, dtype=torch.float64)}
every_likelihood = pytest.mark.parametrize("kind", LIKELIHOODS)


class Twice(nn.Module):
    """One layer called twice, and one that is not called."""

    def __init__(self):
        super().__init__()
        self.twice, self.idle = nn.Linear(4, 4, dtype=torch.float64), nn.Linear(2, 2, dtype=torch.float64)
        self.head = nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, x):
        return self.head(torch.tanh(self.twice(torch.tanh(self.twice(x.flatten(1)[:, :4])))))


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def convolution():
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Conv2d(2, 2, 2, groups=2), nn.Flatten(), nn.Linear(8, 3))


NETS = {
    "plain": plain,
    "convolution": lambda: convolution().double(),
    "fixed": lambda: networks.EveryLayer("fixed", networks.BOTH, 2),
    "soft": lambda: networks.EveryLayer("dense", networks.BOTH, 2),
    "residual": lambda: networks.EveryLayer("dense", networks.SHARED, 2),
    "twice and never": Twice,
}


def problem(kind, make=plain, n=6):
    return make(), (networks.images(n), networks.targets(kind, n, 3))


def walk(net, data, likelihood, curvature, function_space=True, graph="none"):
    with torch.set_grad_enabled(graph != "none"):
        return gather(net, data, likelihood, curvature, graph, check=False, function_space=function_space)


def evidence_of(net, data, likelihood, curvature, function_space=True):
    done = finish(walk(net, data, likelihood, curvature, function_space))
    return done.hessian, assemble(net, done, starting_log_precisions(net))


def assert_same(found, expected):
    assert float(found) == pytest.approx(float(expected), rel=1e-10)
    assert found.occam.item() == pytest.approx(expected.occam.item(), rel=1e-10)
    for name, share in expected.by_pathway.items():
        # 1 - (a diagonal entry of an inverse): cancellation, hence an absolute tolerance
        assert found.by_pathway[name].effective.item() == pytest.approx(share.effective.item(), rel=1e-10, abs=1e-9)


# the same numbers as in the space of parameters


@every_likelihood
@pytest.mark.parametrize("name", NETS)
def test_all_columns_equal_the_dense_matrix(name, kind):
    """With fewer rows than parameters and with more, in any batches, and as the brute force has it."""
    net, likelihood = NETS[name](), LIKELIHOODS[kind]()
    parameters = sum(p.numel for _, d in declarations(net).values() for p in d.pathways)
    for n, batch in ((5, 2), (parameters // 2 + 1, 50)):
        data = Batches((networks.images(n), networks.targets(kind, n, 3)), batch)
        space, found = evidence_of(net, data, likelihood, Curvature("full"))
        dense, expected = evidence_of(net, data, likelihood, Curvature("full"), function_space=False)
        assert isinstance(space, FunctionSpace if n == 5 else DenseBlock) and isinstance(dense, DenseBlock)
        assert_same(found, expected)
        assert all(share.occam is None for share in found.by_pathway.values())


@every_likelihood
def test_log_evidence_equals_brute_force(kind):
    net, (x, y) = problem(kind)
    hessian = oracles.softmax_hessian if kind == "classification" else oracles.gaussian_hessian(0.7)
    names = oracles.weight_names(net)
    h, spans = oracles.dense_ggn(net, x, hessian, names), oracles.spans(net, names)
    prior = {name: 0.3 * i - 0.5 for i, name in enumerate(names)}
    deltas = torch.cat([torch.full((s.stop - s.start,), prior[n], dtype=torch.float64).exp() for n, s in spans.items()])
    found = log_evidence(net, (x, y), LIKELIHOODS[kind](), "full", prior)
    assert found.occam.item() == pytest.approx(oracles.occam_factor(h, deltas), rel=1e-10)
    gammas = oracles.effective_parameters(h, deltas)
    for name, span in spans.items():
        assert found.by_pathway[name].effective.item() == pytest.approx(gammas[span].sum().item(), rel=1e-9)


def test_a_pathway_alone_has_the_whole_occam_factor():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False, dtype=torch.float64))
    found = log_evidence(net, problem("classification", n=2)[1], curvature="full")
    assert found.by_pathway["1.weight"].occam.item() == found.occam.item() > 0


@pytest.mark.parametrize("bounds", [[0, 3, 10], [0, 20, 40], [0, 40, 42]])
def test_parts_added_equal_the_whole(bounds):
    """Of both spaces: two parts in function space may be too many rows together, or one of them by itself."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, dtype=torch.float64))  # 34 parameters, one column a datum
    n = bounds[-1]
    x, y = networks.images(n), networks.targets("classification", n, 2)
    places = torch.arange(n)
    for curvature in (Curvature("full"), Curvature("full", samples=1, seed=3)):
        parts = [
            walk(net, Batches((x[a:b], y[a:b]), 4, places=places[a:b], total=n), Categorical(), curvature)
            for a, b in pairwise(bounds)
        ]
        whole = finish(walk(net, Batches((x, y), 7), Categorical(), curvature))
        for added in (finish(reduce(add, parts)), finish(reduce(add, parts[::-1]))):
            assert type(added.hessian) is type(whole.hessian)
            logs = starting_log_precisions(net)
            assert_same(assemble(net, added, logs), assemble(net, whole, logs))


def test_wide_pathways_are_taken_column_by_column(monkeypatch):
    """Some columns at a time: the same Gram matrices."""
    rows = [torch.randn(n, 19, dtype=torch.float64) for n in (3, 1, 2)]
    whole = torch.cat(rows)
    monkeypatch.setattr("bayesws.evidence.products.CACHED", 1)
    torch.testing.assert_close(products.gram(rows), whole @ whole.mT, rtol=1e-12, atol=1e-12)


class Sequences(nn.Module):
    """One linear map of every step of a sequence, then their sum."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, x):
        return self.linear(x).sum(1) ** 2


def rows_by_pathway(net, data, curvature):
    """Of one column a datum."""
    return {key[-1]: parts for key, parts in walk(net, data, Categorical(), curvature).sums.rows.items()}


def test_rows_of_a_kernel_at_one_position_are_held_as_products():
    """Of the head alone, 18 + 2 numbers for 36."""
    net, data = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(18, 2)).double(), problem("classification")[1]
    data = data[0], data[1] % 2
    found = rows_by_pathway(net, Batches(data), Curvature("full"))
    assert {name for name, parts in found.items() if isinstance(parts[0], products.Products)} == {"2.weight"}
    (rows,) = found["2.weight"]
    jacobian = oracles.dense_jacobian(net, data[0], ["2.weight"])
    expected = torch.einsum("nck,ncp->nkp", Categorical().hessian_root(net(data[0]).detach()), jacobian)
    torch.testing.assert_close(rows.dense(), expected.flatten(0, 1))
    assert sum(t.numel() for t in rows) == len(rows) * 20 < expected.numel() == len(rows) * 36


@pytest.mark.parametrize("steps", [1, 3])
def test_products_of_a_map_of_one_step_and_rows_of_several(steps):
    x, y = torch.randn(6, steps, 4, dtype=torch.float64), torch.arange(6) % 3
    net = Sequences()
    (rows,) = (
        parts for name, parts in rows_by_pathway(net, Batches((x, y), 3), Curvature("full")).items() if "weight" in name
    )
    assert {isinstance(some, products.Products) for some in rows} == {steps == 1}
    assert_same(
        *(evidence_of(net, Batches((x, y), 3), Categorical(), Curvature("full"), way)[1] for way in (True, False))
    )


# gradients


@every_likelihood
@pytest.mark.parametrize("stack", ["fixed", "dense"])
def test_gradients(stack, kind, tight_sinkhorn):
    """ "once", through all rows, against central differences along a direction and against two passes with H itself."""
    net, likelihood = networks.Small(stack, networks.BOTH, 2, 3), LIKELIHOODS[kind]()
    data = Batches((networks.images(3), networks.targets(kind, 3, 3)), 2)
    logs = starting_log_precisions(net)
    logits = [t for layer in (net.lift, net.conv, net.linear) for t in layer.structure()]
    groups = [group for group in (list(logs.values()), likelihood.hyperparameters(), logits) if group]
    wanted = [tensor.requires_grad_() for group in groups for tensor in group]
    _, once = gradient_in(net, data, likelihood, Curvature("full"), logs, wanted, "once")
    _, twice = gradient_in(net, data, likelihood, Curvature("full"), logs, wanted, "twice")
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * float(b.abs().max()))

    def total():
        space, found = evidence_of(net, data, likelihood, Curvature("full"))
        assert isinstance(space, FunctionSpace)
        return found.total

    gradients = iter(once)
    for group in groups:
        along = [torch.randn_like(tensor) for tensor in group]
        slope = sum(float((next(gradients) * u).sum()) for u in along)
        assert slope == pytest.approx(oracles.central_derivative(total, group, along), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("way", ["once", "twice"])
def test_gradients_with_drawn_rows(way):
    """In the precisions, for which the rows that were drawn are what they are."""
    net, data = problem("classification", n=20)
    logs = {name: torch.zeros((), dtype=torch.float64, requires_grad=True) for name in starting_log_precisions(net)}
    curvature = Curvature("full", samples=1, rows=8, seed=1)
    wanted, batches = list(logs.values()), Batches(data, 6)
    found, gradients = gradient_in(net, batches, Categorical(), curvature, logs, wanted, way)
    for (name, share), gradient in zip(found.by_pathway.items(), gradients, strict=True):
        squares = net.get_parameter(name).square().sum()
        torch.testing.assert_close(gradient, 0.5 * (share.effective - squares))  # ½ (γ - δ‖θ‖²), δ = 1


def test_both_ways_agree_in_the_noise_and_the_structure_with_drawn_rows(tight_sinkhorn):
    net, likelihood = networks.Small("dense", networks.BOTH, 2, 3), Gaussian(0.7, dtype=torch.float64)
    data = Batches((networks.images(12), networks.targets("regression", 12, 3)), 5)
    wanted = [*likelihood.hyperparameters(), *net.lift.structure()]
    logs = starting_log_precisions(net)
    curvature = Curvature("full", samples=1, rows=5)
    _, once = gradient_in(net, data, likelihood, curvature, logs, wanted, "once")
    _, twice = gradient_in(net, data, likelihood, curvature, logs, wanted, "twice")
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * float(b.abs().max()))


# sampled columns and rows


SEEDS = 400
SAMPLED = {"columns": {"samples": 1}, "rows": {"samples": 1, "rows": 7}, "rows of three": {"samples": 3, "rows": 12}}


def rows_of_all(net, data, curvature):
    rows = walk(net, data, Categorical(), curvature).sums.rows
    columns = sorted({key[:-1] for key in rows})
    dense = [
        [torch.cat([products.dense(some) for some in rows[key]]) for key in rows if key[:-1] == c] for c in columns
    ]
    return torch.cat([torch.cat(pathways, -1) for pathways in dense])


@pytest.mark.parametrize("name", SAMPLED)
def test_the_estimate_of_h_is_unbiased(name):
    """Of rows (Sε)ᵀJ: their mean Gram matrix over 400 seeds within 4.5 standard errors of H, in each of 49 entries; and
    these rows are those that a walk keeps.
    """
    net, (x, y) = problem("classification", n=21)
    net[1].weight.data *= 2  # some data are sure, and seldom drawn
    jacobian = oracles.dense_jacobian(net, x, ["1.weight", "1.bias", "3.weight", "3.bias"])
    root = Categorical().hessian_root(net(x).detach())
    thin = jacobian[:, :, ::12]
    h = torch.einsum("nck,ncp,ndk,ndq->pq", root, thin, root, thin)
    found, counts = [], []
    for seed in range(SEEDS):
        curvature = Curvature("full", seed=seed, **SAMPLED[name])
        drawn = thinning.thinned(net, Batches((x, y)), Categorical(), curvature)
        ((_, _, draw),) = sampled_batches(Batches((x, y)), curvature, 1, drawn)
        combined = draw.combine(root)
        rows = torch.einsum("nck,ncp->nkp", combined, thin).flatten(0, 1)
        found.append(rows.mT @ rows)
        counts.append(21.0 if draw.kept is None else float(len(draw.kept)))
        if seed < 3:
            expected = torch.einsum("nck,ncp->knp", combined, jacobian)
            kept = expected if draw.kept is None else expected[:, draw.kept]
            rows = rows_of_all(net, Batches((x, y)), curvature)  # those of each half together
            assert len(rows) == kept.shape[0] * kept.shape[1]
            torch.testing.assert_close(rows.mT @ rows, torch.einsum("knp,knq->pq", kept, kept))
    drawn, sizes = torch.stack(found), torch.tensor(counts)
    error = drawn.std(0) / SEEDS**0.5
    off = (drawn.mean(0) - h).abs()
    assert error.max() > 0 and bool((off <= 4.5 * error).all()), (off / error).max()
    if "rows" in SAMPLED[name]:
        assert abs(sizes.mean() - SAMPLED[name]["rows"]) < 0.5 and sizes.std() > 0  # some chances are one


def trained(seed, n):
    """A small classifier, some steps into its training, with precisions of order one to ten."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    x, y = torch.randn(n, 6, dtype=torch.float64), torch.randint(0, 4, (n,))
    optimiser = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(10):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net, (x, y), {name: 2.3 * torch.rand((), dtype=torch.float64) for name in starting_log_precisions(net)}


def test_one_column_a_datum_is_about_the_exact_occam_factor():
    """Over 20 networks of γ effective parameters, it is below, as log det is concave, by about γ / 5N of it."""
    n, ratios, gammas = 160, [], []
    for seed in range(20):
        net, data, prior = trained(seed, n)
        exact, one = (
            finish(walk(net, Batches(data), Categorical(), c)).hessian
            for c in (Curvature("full"), Curvature("full", samples=1, seed=seed))
        )
        ratios.append(float(one.occam(prior) / exact.occam(prior)))
        gammas.append(float(sum(exact.effective(prior).values())))
    found, gamma = torch.tensor(ratios), sum(gammas) / 20
    print(f"N = {n}, γ = {gamma:.1f}: one column / all columns {found.mean():.4f} ± {found.std():.4f}")
    assert 0.15 * gamma / n < 1 - found.mean() < 0.3 * gamma / n
    assert found.mean() > 0.95 and found.std() < 0.03


def corrected(f, parts, share):
    """f(Ĥ) + (m/N) Δ_columns + (1 - m/N) Δ_data of what columns and halves add up to, (k, 2, P, P)."""
    k, whole = len(parts), f(parts.sum((0, 1)))
    by_column = [f(k / (k - 1) * (parts.sum((0, 1)) - part.sum(0))) for part in parts]
    by_half = [f(2 * parts[:, half].sum(0)) for half in (0, 1)]
    columns, data = (k - 1) * (whole - sum(by_column) / k), whole - sum(by_half) / 2
    return whole + share * columns + (1 - share) * data


@pytest.mark.parametrize("n, k, rows", [(6, 3, 2000), (30, 3, 2000), (30, 2, 9), (60, 2, 20)])
def test_the_jackknife(n, k, rows):
    """Of columns, and of halves of the data that were drawn: as brute force has it, in both spaces, to 1e-10."""
    net, (x, y) = problem("classification", n=n)
    names = oracles.weight_names(net)
    curvature, parameters = Curvature("full", samples=k, seed=5, rows=rows), sum(p.numel() for p in net.parameters())
    prior = {name: torch.tensor(0.4 * i - 0.5, dtype=torch.float64) for i, name in enumerate(names)}
    deltas = torch.cat([prior[name].exp().expand(net.get_parameter(name).numel()) for name in names])
    drawn = thinning.thinned(net, Batches((x, y)), Categorical(), curvature)
    ((_, _, draw),) = sampled_batches(Batches((x, y)), curvature, 1, drawn)
    root = draw.combine(Categorical().hessian_root(net(x).detach()))
    every = torch.einsum("nck,ncp->knp", root, oracles.dense_jacobian(net, x, names))
    second = torch.zeros(n, dtype=torch.bool) if drawn is None else drawn.second
    parts = torch.stack([every[:, which].mT @ every[:, which] for which in (~second, second)], 1)
    share = 1.0 if drawn is None else len(draw.kept) / n
    assert (share == 1) == (rows > n)
    occam = corrected(lambda h: oracles.occam_factor(h, deltas), parts, share)
    gammas = corrected(lambda h: oracles.effective_parameters(h, deltas), parts, share)
    for function_space in (True, False):
        found = finish(walk(net, Batches((x, y), 4), Categorical(), curvature, function_space)).hessian
        assert isinstance(found, FunctionSpace) == (function_space and round(k * n * share) < parameters)
        assert float(found.occam(prior)) == pytest.approx(float(occam), rel=1e-10)
        for name, span in oracles.spans(net, names).items():
            gamma = float(found.effective(prior)[name])
            assert gamma == pytest.approx(float(gammas[span].sum()), rel=1e-9)
            slope = oracles.central_derivative(lambda h=found: h.occam(prior), [prior[name]], [torch.ones(())])
            assert gamma == pytest.approx(-2 * slope, rel=1e-6, abs=1e-8)


def test_two_jackknifed_columns_are_nearly_exact():
    """Over 20 networks: a tenth of one column's bias, and a spread of a per cent of the Occam factor."""
    n, ratios = 160, []
    for seed in range(20):
        net, data, prior = trained(seed, n)
        exact, two = (
            finish(walk(net, Batches(data), Categorical(), c)).hessian.occam(prior)
            for c in (Curvature("full"), Curvature("full", samples=2, seed=seed))
        )
        ratios.append(float(two / exact))
    found = torch.tensor(ratios)
    print(f"N = {n}: two columns / all columns {found.mean():.4f} ± {found.std():.4f}")
    assert abs(found.mean() - 1) < 0.006 and found.std() < 0.03


@pytest.mark.parametrize("rows, off, less", [(20, 0.05, 0.15), (40, 0.02, 0.07), (80, 0.02, 0.02)])
def test_drawn_rows_are_nearly_exact(rows, off, less):
    """Of 160 data that determine 22 parameters, over 20 networks: what is left of the bias, and what there was."""
    ratios, plain = [], []
    for seed in range(20):
        net, data, prior = trained(seed, 160)
        exact = finish(walk(net, Batches(data), Categorical(), Curvature("full"))).hessian
        drawn = finish(
            walk(net, Batches(data), Categorical(), Curvature("full", samples=2, rows=rows, seed=seed))
        ).hessian
        ratios.append(float(drawn.occam(prior) / exact.occam(prior)))
        whole = replace(drawn, parts=(Part(),)) if isinstance(drawn, FunctionSpace) else drawn.whole
        plain.append(float(whole.occam(prior) / exact.occam(prior)))
    found, uncorrected = torch.tensor(ratios), torch.tensor(plain)
    print(f"{rows} of 160: {found.mean():.4f} ± {found.std():.4f}, not corrected {uncorrected.mean():.4f}")
    assert abs(found.mean() - 1) < off and uncorrected.mean() < 1 - less


@every_likelihood
def test_chances_follow_the_hessian_of_each_datum(kind):
    """By hand: π = min(1, M w / Σ w), w = tr S Sᵀ + 0.1 · mean, and tr S Sᵀ = 1 - ‖p‖² of class probabilities."""
    net, (x, y) = problem(kind, n=300)
    outputs = 6 * net(x).detach()
    net[-1].weight.data *= 6
    net[-1].bias.data *= 6
    curvature = Curvature("full", samples=1, rows=100, seed=2)
    weights = thinning.thinned(net, Batches((x, y), 70), LIKELIHOODS[kind](), curvature).weights
    traces = 1 - outputs.softmax(-1).square().sum(-1) if kind == "classification" else torch.full((300,), 3 / 0.49)
    w = traces.double() + 0.1 * traces.double().mean()
    chances = (100 * w / w.sum()).clamp(max=1)
    drawn = weights > 0
    torch.testing.assert_close(weights[drawn], chances[drawn] ** -0.5, rtol=1e-12, atol=0)
    spread = (chances * (1 - chances)).sum().sqrt()
    assert abs(drawn.sum() - chances.sum()) < 4 * spread
    again = thinning.thinned(net, Batches((x, y)), LIKELIHOODS[kind](), other(curvature)).weights
    assert not torch.equal(drawn, again > 0)


def other(curvature):
    return Curvature("full", samples=1, rows=curvature.rows, seed=curvature.seed + 1)


def test_a_draw_depends_on_the_datum_and_its_place_alone():
    """In any batches, from tensors and from a loader, in chunks and not: the same rows, half by half."""
    net, (x, y) = problem("classification", n=30)
    curvature = Curvature("full", samples=1, rows=9, seed=4)
    loader = DataLoader(TensorDataset(x, y), 7)
    expected = rows_of_all(net, Batches((x, y), 250), curvature)
    assert 4 < len(expected) < 15
    for data in (Batches((x, y), 4), Batches((x, y), 1), Batches(loader)):
        torch.testing.assert_close(rows_of_all(net, data, curvature), expected, rtol=1e-12, atol=1e-14)
    again = log_evidence(net, loader, curvature=curvature)
    assert float(again) == pytest.approx(float(log_evidence(net, (x, y), curvature=curvature)), rel=1e-12)
    assert again.examples == 30 and again.data_fit.item() == pytest.approx(
        log_evidence(net, (x, y), curvature="diag").data_fit.item(), rel=1e-12
    )


def test_as_many_rows_as_data_draw_none():
    net, data = problem("classification", n=8)
    one = log_evidence(net, data, curvature=Curvature("full", samples=1))
    assert float(log_evidence(net, data, curvature=Curvature("full", samples=1, rows=8))) == float(one)
    assert float(log_evidence(net, data, curvature=Curvature("full", samples=1, rows=7))) != float(one)


def test_rows_of_a_subset():
    """They are of the data that the subset bound looks at."""
    net, data = problem("classification", n=40)
    few = Curvature("full", samples=1, subset=0.5, rows=6)
    found = walk(net, Batches(data, 8), Categorical(), few)
    assert found.seen == 20 and 0 < len(rows_of_all(net, Batches(data, 8), few)) < 14
    assert math.isfinite(float(log_evidence(net, data, curvature=few)))
    all_of_it, none_drawn = (
        float(log_evidence(net, data, curvature=Curvature("full", samples=1, subset=0.5, rows=rows)))
        for rows in (20, 2000)
    )
    assert all_of_it == none_drawn


class Fresh(torch.utils.data.Sampler):
    """One datum more in every walk."""

    def __init__(self):
        self.length = 9

    def __len__(self):
        return self.length

    def __iter__(self):
        self.length += 1
        return iter(range(self.length))


def test_refusals():
    net, data = problem("classification", n=20)
    drawn = Curvature("full", samples=1, rows=5)
    growing = DataLoader(TensorDataset(*data), 1, sampler=Fresh())
    cases = [
        (lambda: Curvature("kron", samples=1, rows=5), r"rows=5 with kind='kron'.*Curvature\('full', samples=1, rows"),
        (lambda: Curvature("full", rows=5), "rows=5 with kind='full', samples=None"),
        (lambda: Curvature("full", samples=1, rows=0), "rows=0: expected at least 1"),
        (lambda: walk(net, Batches(data).part(0, 2), Categorical(), drawn), "10 of 20 data.*use rows=20 or more"),
        (lambda: log_evidence(net, growing, curvature=drawn), "the loader gives more than the 1. data"),
    ]
    for call, pattern in cases:
        assert_refused(call, pattern)


def test_rows_that_are_not_finite_are_told():
    """A root at zero: outputs are finite, and their derivatives are not."""

    class Root(nn.Module):
        def forward(self, x):
            return (x - x.detach()).abs().sqrt() + x

    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, dtype=torch.float64), Root())
    assert_refused(
        lambda: walk(net, Batches(problem("classification")[1]), Categorical(), Curvature("full")), "not finite"
    )


# what a fit ends with


@pytest.mark.parametrize(
    "log_delta, curvature, expected",
    [
        (-6.0, Curvature("full", samples=1, rows=10), True),  # γ is nearly 10
        (-6.0, Curvature("full", samples=1, subset=0.2), True),  # the same of 12 data
        (2.0, Curvature("full", samples=1, rows=10), False),  # γ is some 3
        (-6.0, Curvature("full", samples=1, rows=60), False),  # γ is at most 40, the parameters, of 60 rows
        (-6.0, Curvature("full"), False),  # all rows are no draw
    ],
)
def test_rows_that_cannot_hold_what_the_data_determine(log_delta, curvature, expected):
    torch.manual_seed(0)
    net, data = nn.Linear(10, 4, bias=False), Batches((torch.randn(60, 10), torch.arange(60) % 4))
    done = laplace_pass(net, data, Categorical(), curvature)
    assert assemble(net, done, {"weight": torch.tensor(log_delta)}).saturated == expected


def test_an_evidence_of_too_few_rows_is_told():
    torch.manual_seed(0)
    net, data = nn.Linear(10, 4, bias=False), (torch.randn(60, 10), torch.arange(60) % 4)
    with pytest.warns(UserWarning, match="than 10 sampled rows can hold.*take curvature='kron', or more rows"):
        log_evidence(net, data, prior=-6.0, curvature=Curvature("full", samples=1, rows=10))


def test_all_columns_of_all_data_are_no_draw():
    net, data = nn.Linear(40, 1, bias=False), Batches((torch.randn(20, 40), torch.randn(20, 1)))
    done = laplace_pass(net, data, Gaussian(), Curvature("full", samples=1))
    assert not assemble(net, done, {"weight": torch.tensor(-9.0)}).saturated  # γ is nearly 20, and so is the rank of H


def test_exact_drops_what_is_drawn():
    assert Curvature("full", samples=2, rows=9, seed=5, subset=0.5).exact() == Curvature("full")
    assert Curvature("kron", "reduce", 7, samples=1).exact() == Curvature("kron", "reduce", 7)


def test_a_fit_ends_exact_where_that_is_affordable(monkeypatch):
    """All columns while parameters or rows are few; else those that were drawn, and fits compare by the same signs."""
    x, y = torch.randn(12, 5), torch.arange(12) % 3
    settings = {"epochs": 3, "burn_in": 0.0, "keep_posterior": False, "progress": False}

    def fitted(seed=0, n=12):
        torch.manual_seed(0)
        return bws.fit(nn.Linear(5, 3), (x[:n], y[:n]), curvature=Curvature("full", samples=1, seed=seed), **settings)

    few = fitted()
    assert few.evidence.curvature == Curvature("full") and few.recipe.curvature == Curvature("full", samples=1)
    again = log_evidence(few.model, (x, y), few.likelihood, "full", few.prior)
    assert few.log_evidence == pytest.approx(float(again), rel=1e-5)
    monkeypatch.setattr("bayesws.evidence.by_default.AT_THE_END", 18**2 * 24)  # 18 parameters, 24 rows
    assert fitted(2).evidence.curvature == Curvature("full")
    monkeypatch.setattr("bayesws.evidence.by_default.AT_THE_END", 18**2 * 24 - 1)
    sampled = fitted(2)
    assert sampled.evidence.curvature == Curvature("full", samples=1, seed=2)
    assert fitted(2, n=8).evidence.curvature == Curvature("full")  # 16 rows
    assert log_bayes_factor(sampled, fitted(2)) == 0
    for another in (fitted(3), few):
        with pytest.raises(ValueError, match="expected the same"):
            log_bayes_factor(sampled, another)


def test_a_fit_keeps_no_posterior_that_does_not_fit(monkeypatch):
    """laplace-torch holds H itself, whatever the evidence needs."""
    monkeypatch.setattr("bayesws.evidence.memory.memory_at_hand", lambda device: 40_000)
    with pytest.warns(UserWarning, match="no posterior was kept.*'full' takes 42"):
        fit = bws.fit(nn.Linear(16, 3), (torch.randn(4, 16), torch.arange(4) % 3), curvature="full", epochs=2)
    assert fit.posterior == {} and fit.evidence.curvature == Curvature("full")

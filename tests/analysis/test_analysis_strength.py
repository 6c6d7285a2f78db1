"""The posterior of the sharing strength: its surface is the closed-form evidence, its samples are those of a grid."""

import copy
import json
import math
import warnings
from dataclasses import replace

import pytest
import torch
from oracles import linear_features, linear_gaussian_log_evidence

import bayesws as bws
from bayesws.analysis.quadrature import drawn, refined
from bayesws.analysis.strength import _Posterior, _sampled
from bayesws.evidence import laplace
from bayesws.evidence.batches import Batches
from bayesws.evidence.surface import Coupled, Separate, log_likelihood_gradient, surface
from bayesws.io.tables import as_text
from bayesws.layers import WSLinear, layers_of, named_pathways
from bayesws.sharing import known_group

SHIFTS = known_group("cyclic-shifts-by-2", 4)
PATHWAYS = ("shared", "free")
NOISE = 0.5


def planted(rho, examples=20, outputs=3, pathways=PATHWAYS, seed=0):
    """y_g = (R_g w + v_g) · x + noise, every weight of variance one, copies of correlation ρ."""
    generator = torch.Generator().manual_seed(seed)
    new = {"dtype": torch.float64, "generator": generator}
    net = WSLinear(
        4, outputs, bias=False, group_size=2, stack="fixed", group=SHIFTS, pathways=pathways, dtype=torch.float64
    )
    kernel = (1 - rho) ** 0.5 * torch.randn(outputs, 2, 1, 4, **new)
    kernel += rho**0.5 * torch.einsum("gnm,oim->ogin", SHIFTS.matrices(), torch.randn(outputs, 1, 4, **new))
    x = torch.randn(examples, 4, **new)
    f = torch.einsum("ogin,bn->bog", kernel, x)
    return net, x, f + NOISE * torch.randn(f.shape, **new)


CASES = [
    (PATHWAYS, "full"),
    (PATHWAYS, "kron"),
    (PATHWAYS, "diag"),
    (("free",), "full"),
    (("free",), "kron"),
    (("free",), "diag"),
    (("shared",), "kron"),
]


@pytest.mark.parametrize("pathways, kind", CASES)
def test_surface_is_the_closed_form_at_every_precision(pathways, kind):
    """A quadratic likelihood, and curvatures that are exact here (one Kronecker product; orthogonal inputs, of which
    two pathways ask even with Kronecker factors: their spectra then say all of their sum)."""
    net, x, y = planted(0.7, pathways=pathways)
    if kind == "diag" or (pathways == PATHWAYS and kind == "kron"):
        x = torch.eye(4, dtype=torch.float64).repeat(5, 1)
    phi = linear_features(net, x, pathways)
    sizes = [getattr(net, name).numel() for name in pathways]

    def precisions(log_precisions):
        logs = zip(log_precisions.values(), sizes, strict=True)
        return torch.cat([log.exp().expand(size) for log, size in logs])

    def dense(log_precisions):
        return linear_gaussian_log_evidence(phi, y, precisions(log_precisions), NOISE)

    prior = {name: torch.tensor(0.4 * i - 0.3, dtype=torch.float64) for i, name in enumerate(pathways)}
    likelihood = bws.Gaussian(NOISE, learn=False, dtype=torch.float64)
    la = laplace.fitted_posterior(net, (x, y), likelihood, kind, prior)
    gradient = log_likelihood_gradient(net, Batches((x, y), 7), likelihood)
    kept = laplace.curvature_tensors(la) | {f"gradient.{name}": g for name, g in gradient.items()}
    found = surface(net, kept, likelihood)
    reference = dict.fromkeys(pathways, torch.zeros((), dtype=torch.float64))
    for a in (-4.0, 0.0, 1.0, 6.0):
        for b in (-4.0, 0.0, 1.0, 6.0):
            logs = dict(zip(pathways, torch.tensor([a, b], dtype=torch.float64), strict=False))
            got = float(found(logs) - found(reference))
            assert got == pytest.approx(dense(logs) - dense(reference), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("stack", ["fixed", "dense"])
def test_surface_of_kronecker_blocks_is_that_of_their_matrix(stack):
    """½ bᵀ (H + Λ)⁻¹ b - ½ log det(I + Λ⁻¹ H) with the dense H that the blocks stand for, at any weights."""
    torch.manual_seed(0)
    group = "flips" if stack == "fixed" else None
    settings = {
        "group": group,
        "stack": stack,
        "pathways": ("shared",),
    }  # a pair of nested ones is more than its blocks
    net = bws.models.WSCNN(num_classes=3, hidden_channels=1, group_size=2, **settings).double()
    x, y = torch.randn(12, 1, 7, 7, dtype=torch.float64), torch.arange(12) % 3
    likelihood = bws.Categorical()
    la = laplace.fitted_posterior(net, (x, y), likelihood, "kron")
    gradient = log_likelihood_gradient(net, Batches((x, y), 5), likelihood)
    found = surface(net, laplace.curvature_tensors(la) | {f"gradient.{n}": g for n, g in gradient.items()}, likelihood)
    names = {id(p.parameter): name for name, p in named_pathways(net)}
    owners = [names[id(p)] for p in la.params]
    h, slopes = la.H.to_matrix(), torch.cat([gradient[name].flatten() for name in owners])
    b = slopes + h @ la.mean
    logs = {name: torch.tensor(0.3 * i - 1, dtype=torch.float64) for i, name in enumerate(owners)}
    deltas = torch.cat([logs[n].exp().expand(p.numel()) for n, p in zip(owners, la.params, strict=True)])
    wanted = 0.5 * b @ torch.linalg.solve(h + deltas.diag(), b) - 0.5 * torch.logdet(
        torch.eye(len(b), dtype=torch.float64) + h / deltas[:, None]
    )
    assert float(found(logs)) == pytest.approx(float(wanted), rel=1e-9)


def posterior(rho=0.6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = {name: 30 * torch.rand(60, dtype=torch.float64, generator=generator) for name in PATHWAYS}
    variances = {"shared": rho, "free": 1 - rho}
    # b ~ N(0, λ + λ² / δ): the distribution that b has where weights are drawn with precision δ
    pulls = {
        name: (v + v.square() * variances[name]).sqrt() * torch.randn(60, dtype=torch.float64, generator=generator)
        for name, v in values.items()
    }
    return _Posterior(Separate(values, pulls), [["shared"], ["free"]], torch.zeros(2, dtype=torch.float64), 3.0)


def test_sampling_agrees_with_the_grid():
    """800 draws of NUTS beside 20 000 of the grid: means and quantiles within four standard errors."""
    target = posterior()
    modes = target.modes()
    assert len(modes) == 1
    by_grid = target.integrated(20_000, 0)
    samples = _sampled(target, modes, 2, 400, 200, 0)
    assert samples.shape == (2, 400, 2)
    for i in range(2):
        error = by_grid[:, i].std() / math.sqrt(200)  # at least so many effective draws
        assert abs(samples[..., i].mean() - by_grid[:, i].mean()) < 4 * error
        assert samples[..., i].std() == pytest.approx(float(by_grid[:, i].std()), rel=0.2)


def joint(examples, seed=0):
    """A dense H of two pathways, 3 and 6 weights drawn with precisions 1 and e."""
    generator = torch.Generator().manual_seed(seed)
    new = {"dtype": torch.float64, "generator": generator}
    features = torch.randn(examples, 9, **new)
    weights = torch.randn(9, **new) * torch.tensor([1.0] * 3 + [math.exp(-0.5)] * 6, dtype=torch.float64)
    pull = features.mT @ (features @ weights + torch.randn(examples, **new))
    found = Coupled(features.mT @ features, pull, {"shared": 3, "free": 6})
    return _Posterior(found, [["shared"], ["free"]], torch.zeros(2, dtype=torch.float64), 3.0)


def pair(copies, scale=1.0):
    """Nested pathways with so many times 60 eigenvalues each."""
    target = posterior(seed=2)
    values = {name: scale * v.repeat(copies) for name, v in target.surface.eigenvalues.items()}
    pulls = {name: scale * b.repeat(copies) for name, b in target.surface.pulls.items()}
    return replace(target, surface=Separate(values, pulls, {"shared": ("free", 2.0)}))


def few():
    """A pair of which the data say little: its posterior is as wide as the hyperprior, and bent."""
    target = pair(1, 0.1)
    values = {name: v[:6] for name, v in target.surface.eigenvalues.items()}
    pulls = {name: b[:6] for name, b in target.surface.pulls.items()}
    return replace(target, surface=Separate(values, pulls, target.surface.within))


def brute(target, low, high, points=701):
    """Log precisions (points², 2) between the ends, and their weights: by the surface itself, without a table."""
    sides = [torch.linspace(a, b, points, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    both = torch.cartesian_prod(*sides)
    if isinstance(target.surface, Separate):
        parts = [target.surface(dict(zip(PATHWAYS, part.mT, strict=True))) for part in both.split(4000)]
        logs = torch.cat(parts) - 0.5 * (both / 3).square().sum(-1)
    else:
        logs = torch.stack([target(z) for z in both])
    return both, logs.softmax(0)


QUADRATURES = {  # and half of the box of the brute force, in log δ around the mode, and its points
    "wide": (few, 15.0, 401),
    "two parts": (posterior, 3.0, 401),
    "narrow": (lambda: pair(20), 0.3, 101),  # 1200 weights each: a standard deviation of a seventh of the first cells
    "dense H": (lambda: joint(12), 13.0, 111),
}


@pytest.mark.parametrize("name", QUADRATURES)
def test_quadrature_is_the_brute_force(name):
    """Probability below the quantiles of the draws, by a plain grid: as it is asked for, to 0.001. 100 000 draws, one
    in each share, leave 1e-5; the plain grid's cells, of which each is below in part, are a fifth of a standard
    deviation at most and leave 0.2² / 24."""
    make, half, points = QUADRATURES[name]
    target = make()
    centre = target.modes()[0] if half < 10 else torch.zeros(2, dtype=torch.float64)
    both, weights = brute(target, centre - half, centre + half, points)
    draws = target.integrated(100_000, 0)
    for direction in ((-1.0, 1.0), (1.0, 0.0), (0.0, 1.0)):  # logit ρ, log α and log β
        along = torch.tensor(direction, dtype=torch.float64)
        for level in (0.025, 0.5, 0.975):
            within = ((draws @ along).quantile(level) - both @ along) * (points - 1) / (2 * half)  # in cells
            assert float(weights @ (within + 0.5).clamp(0, 1)) == pytest.approx(level, abs=0.001)


def test_a_grid_goes_as_far_as_the_mass_does():
    """Weights in units of e⁻¹², so that log δ = 24 is eight standard deviations of the hyperprior away."""
    values = torch.full((400,), math.exp(40.0), dtype=torch.float64)
    pulls = values * torch.linspace(-1.7, 1.7, 400, dtype=torch.float64) * math.exp(-12.0)
    target = _Posterior(
        Separate({"free": values}, {"free": pulls}), [["free"]], torch.zeros(1, dtype=torch.float64), 3.0
    )
    z = torch.linspace(18, 30, 4001, dtype=torch.float64)
    weights = (target.surface({"free": z}) - 0.5 * (z / 3).square()).softmax(0)
    draws = target.integrated(20_000, 0)
    assert float(draws.mean()) == pytest.approx(float(weights @ z), abs=1e-3) and float(draws.mean()) > 20


@pytest.mark.parametrize("axes", (1, 2))
def test_a_peak_between_two_points_moves_no_ends(axes):
    """A peak of a tenth of a cell, forty nats above what is flat elsewhere but for the hyperprior: a density made calm
    enough to see the peak has mass at the ends, and further out an evidence is what rounding makes of it."""
    centre, width = 1.03, {1: 0.0036, 2: 0.03}[axes]

    def density(sides):
        assert all(float(side.abs().max()) <= 18 for side in sides)
        mesh = torch.meshgrid(*sides, indexing="ij")
        peak = sum(-0.5 * ((z - centre) / width).square() for z in mesh)
        return torch.logaddexp(peak, torch.tensor(-40.0)) - 0.5 * sum((z / 3).square() for z in mesh)

    sides, logs = refined(density, (-18.0, 18.0), axes)
    draws = drawn(sides, logs, 20_000, torch.Generator().manual_seed(0))
    assert draws.mean(0).tolist() == pytest.approx([centre] * axes, abs=0.02 * width)
    assert draws.std(0).tolist() == pytest.approx([width] * axes, rel=0.02)


def test_the_lattice_is_the_surface():
    """To rounding where nothing is read from a table; to the spline's error else, 2e-8 of some 100 nats."""
    sides = [torch.tensor([-9.0, 0.3, 4.0, 11.0], dtype=torch.float64), torch.tensor([-3.0, 7.0], dtype=torch.float64)]
    for target, tolerance in ((few(), 1e-5), (pair(1), 1e-5), (joint(12), 1e-9)):
        found = target.surface.on_lattice(target.groups, sides)
        for i, a in enumerate(sides[0]):
            for j, b in enumerate(sides[1]):
                at, start = ({"shared": x, "free": y} for x, y in ((a, b), (sides[0][0], sides[1][0])))
                wanted = float(target.surface(at) - target.surface(start))
                assert float(found[i, j] - found[0, 0]) == pytest.approx(wanted, abs=tolerance)


def test_what_the_grid_can_take():
    assert posterior().dependent() == [[0], [1]] and pair(1).dependent() == [[0, 1]] and joint(12).on_grid()
    three = replace(joint(12), groups=[["shared"], ["free"], ["bias"]])
    assert not three.on_grid()


def two_modes():
    """A few weights that are small for sure, and a few that are seen badly and would have to be large."""
    values = torch.tensor([1e4, 1e4, math.exp(-4), math.exp(-4)], dtype=torch.float64)
    pulls = torch.tensor([300, 300, 4 * math.exp(-2), 4 * math.exp(-2)], dtype=torch.float64)
    target = posterior()
    surface = Separate(target.surface.eigenvalues | {"free": values}, target.surface.pulls | {"free": pulls})
    return _Posterior(surface, target.groups, target.fitted, 3.0)


def test_several_modes_are_found_and_integrated():
    target = two_modes()
    z = torch.linspace(-15, 15, 30_001, dtype=torch.float64)
    density = target.surface.of("free", z) - 0.5 * (z / 3).square()
    peaks = ((density[1:-1] > density[:-2]) & (density[1:-1] > density[2:])).nonzero().flatten() + 1
    assert len(peaks) == 2
    assert sorted(float(mode[1]) for mode in target.modes()) == pytest.approx(sorted(z[peaks].tolist()), abs=0.01)
    draws = target.integrated(100_000, 0)[:, 1]
    assert (draws > 0).double().mean() == pytest.approx(float(density.softmax(0)[z > 0].sum()), abs=0.01)


@pytest.fixture(scope="module")
def fitted():
    net, x, y = planted(0.7, examples=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bws.fit(
            net,
            (x, y),
            bws.Gaussian(NOISE, learn=False, dtype=torch.float64),
            curvature="full",
            epochs=150,
            batch_size=60,
            progress=False,
        )


def test_strength_of_a_fit(fitted, tmp_path):
    found = bws.sharing_strength(fitted)
    (row,) = found.layers
    assert found.method == "quadrature" and row.r_hat is None and not found.notes
    assert row.interval[0] < row.median < row.interval[1] and row.interval[0] < row.fitted < row.interval[1]
    assert row.fitted == fitted.sharing[0].strength and found.samples[""].shape == (1, 100_000)
    assert float(found.samples[""].median()) == pytest.approx(row.median, abs=1e-4)
    fitted.save(tmp_path / "fit")
    again = bws.sharing_strength(bws.FitResult.load(tmp_path / "fit", planted(0.7)[0]))
    assert again.layers == found.layers  # to the last bit
    assert json.loads(json.dumps(found.record()))["layers"][0]["median"] == row.median
    printed = str(found)
    assert f"{row.median:.3f}" in printed and "R-hat" not in printed and f"{row.fitted:.3f}" not in printed


def test_strength_by_nuts_where_no_grid_reaches(fitted, tmp_path, monkeypatch):
    (by_grid,) = bws.sharing_strength(fitted).layers
    monkeypatch.setattr(_Posterior, "on_grid", lambda self: False)
    state = torch.get_rng_state()
    found = bws.sharing_strength(fitted, chains=2, draws=100, warmup=60)
    assert torch.equal(torch.get_rng_state(), state)
    (row,) = found.layers
    assert found.method == "NUTS" and row.interval[0] < row.median < row.interval[1]
    assert row.fitted == fitted.sharing[0].strength and row.interval[0] < row.fitted < row.interval[1]
    assert row.r_hat < 1.1 and 20 < row.effective_samples
    assert found.samples[""].shape == (2, 100) and found.table().row_count == 1
    assert any("effective samples" in note for note in found.notes)  # so few draws are said to be too few
    fitted.save(tmp_path / "fit")
    loaded = bws.FitResult.load(tmp_path / "fit", planted(0.7)[0])
    assert bws.sharing_strength(loaded, 1, 4, 2).layers == bws.sharing_strength(fitted, 1, 4, 2).layers  # to a bit
    assert row.median == pytest.approx(by_grid.median, abs=0.05) and "R-hat" in str(found)


def test_on_every_device(device):
    data = bws.data.load("digits", task="turned", seed=0, train_size=100, test_size=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = bws.fit(bws.models.WSCNN(hidden_channels=1), data.train, epochs=3, device=device, progress=False)
    found = bws.sharing_strength(fit, 1, 20, 20)
    assert [row.name for row in found.layers] == ["lift", "group_convs.0", "head"]
    assert all(0 <= row.interval[0] <= row.interval[1] <= 1 for row in found.layers)


def test_precisions_that_had_not_converged_are_noted(fitted):
    moved = copy.deepcopy(fitted)
    moved = replace(moved, prior={name: dict(moved.model.log_precisions)[name] for name in PATHWAYS})
    with torch.no_grad():
        moved.prior["free"].fill_(-6.0)
    found = bws.sharing_strength(moved)
    assert any("had not converged" in note for note in found.notes) and found.layers[0].fitted < 0.01
    (untouched,) = bws.sharing_strength(fitted).layers
    assert found.layers[0].median == pytest.approx(untouched.median, abs=1e-6)  # the posterior does not care
    assert not untouched.interval[0] <= found.layers[0].fitted <= untouched.interval[1]
    assert f"{found.layers[0].fitted:.3f}" not in as_text(found.table())  # no point beside an interval it is outside of


def test_several_modes_are_within_the_interval_or_told(fitted, monkeypatch):
    monkeypatch.setattr(_Posterior, "of", classmethod(lambda *_: two_modes()))
    (row,) = bws.sharing_strength(fitted).layers
    assert row.interval[0] < 0.1 < 0.9 < row.interval[1]  # both of them
    monkeypatch.setattr(_Posterior, "on_grid", lambda self: False)
    with pytest.warns(UserWarning, match="2 modes"):
        found = bws.sharing_strength(fitted, 1, 10, 10)
    assert found.method == "NUTS" and "2 modes" in found.notes[0]


def test_a_soft_stack_lowers_the_strength_by_its_overlap():
    net = WSLinear(4, 3, bias=False, group_size=2, stack="dense", dtype=torch.float64)
    target = posterior()
    z = torch.randn(5, 2, dtype=torch.float64)
    expected = (z[:, 1] - z[:, 0]).sigmoid() * float(net.stack_overlap())
    assert torch.allclose(target.strengths(layers_of(net)[""], z), expected) and float(net.stack_overlap()) < 1


BAD = {
    "no chains": ({"chains": 0}, "chains=0"),
    "few draws": ({"draws": 3}, "draws=3.*at least 4"),
    "spread": ({"spread": 0.0}, "spread=0.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(name, fitted):
    arguments, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        bws.sharing_strength(fitted, **arguments)


def test_fits_that_have_no_strength(fitted):
    with pytest.raises(ValueError, match="without a posterior"):
        bws.sharing_strength(replace(fitted, posterior={}))
    with pytest.raises(ValueError, match="two trained pathways that share"):
        bws.sharing_strength(replace(fitted, model=planted(0.5, pathways=("shared",))[0]))

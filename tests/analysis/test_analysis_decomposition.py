"""Orbits of weights: the closed form against dense densities, planted sharing recovered, nothing found in noise."""

import itertools
import math

import numpy as np
import pytest
import torch
from refusals import assert_refused
from scipy.integrate import quad
from scipy.stats import multivariate_normal
from torch import nn

import bayesws as bws
from bayesws.analysis.channel_matching import cycles, matching, random_matching
from bayesws.analysis.decomposition import ORDERS, best_decomposition, decomposition_table
from bayesws.analysis.equivariance import EXACT
from bayesws.analysis.orbits import Sums, products
from bayesws.io.tables import as_text


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_permutation(channels, order, seed=0):
    return random_matching(channels, order, generator(seed))


def action(p, q, transform, k=3):
    """Where a transform takes every flat index of a weight (out, in, k, k): the long way, index by index."""
    t = EXACT[transform](torch.arange(k * k).reshape(k, k)).flatten().tolist()
    triples = itertools.product(range(len(p)), range(len(q)), range(k * k))
    return [int((p[c] * len(q) + q[i]) * k * k + t[n]) for c, i, n in triples]


def planted(p, q, transform, rho, seed=0, k=3):
    """A weight (out, in, k, k) of variance one whose entries correlate by rho within the orbits of the action."""
    flat = torch.randn(len(p) * len(q) * k * k, generator=generator(seed), dtype=torch.float64)
    shared = torch.empty_like(flat)
    for orbit in cycles(action(p, q, transform, k)):
        shared[orbit] = flat[orbit[0]]
    own = torch.randn(flat.shape, generator=generator(seed + 1000), dtype=torch.float64)
    return (rho**0.5 * shared + (1 - rho) ** 0.5 * own).reshape(len(p), len(q), k, k)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9])
def test_likelihood_is_that_of_the_dense_normal_with_its_scale_integrated(rho):
    """log ∫ N(w; 0, s Σ(ρ)) ds/s - log ∫ N(w; 0, s I) ds/s by quadrature, orbits of 4, 2 and 1 weights, to 1e-10."""
    orbits = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10]]
    w = np.random.default_rng(0).normal(size=11)
    sums = Sums({}, {}, {})
    covariance = np.eye(11)
    for orbit in orbits:
        covariance[np.ix_(orbit, orbit)] = rho + (1 - rho) * np.eye(len(orbit))
        mean = w[orbit].mean()
        within, between = ((w[orbit] - mean) ** 2).sum(), len(orbit) * mean**2
        sums += Sums({len(orbit): 1}, {len(orbit): within}, {len(orbit): between})

    def evidence(sigma):
        def density(log_s):
            return np.exp(multivariate_normal.logpdf(w, cov=np.exp(log_s) * sigma) - offset)

        offset = multivariate_normal.logpdf(w, cov=sigma)
        return offset + math.log(quad(density, -12, 12, epsabs=0, epsrel=1e-12, limit=500)[0])

    expected = evidence(covariance) - evidence(np.eye(11))
    assert sums.log_likelihood_ratio(np.array([rho]))[0] == pytest.approx(expected, abs=1e-10)


def test_posterior_is_that_of_a_fine_grid():
    sums = Sums({4: 30, 2: 5}, {4: 60.0, 2: 4.0}, {4: 50.0, 2: 6.0})
    rho = np.linspace(0, 1, 1_000_001)[:-1]
    density = np.exp(sums.log_likelihood_ratio(rho))
    share = density.cumsum() / density.sum()
    median, (low, high), evidence = sums.posterior()
    assert (low, median, high) == pytest.approx(tuple(rho[np.searchsorted(share, [0.025, 0.5, 0.975])]), abs=1e-3)
    assert evidence == pytest.approx(math.log(density.mean()), abs=1e-4)


@pytest.mark.parametrize("transform", ["quarter-turn", "flip"])
def test_sums_are_those_of_the_orbits_of_the_joint_action(transform):
    order = ORDERS[transform]
    p, q = (random_permutation(n, order, seed=n) for n in (7, 5))  # cycles of every length that divides the order
    w = torch.randn(7, 5, 3, 3, generator=generator(), dtype=torch.float64)
    units = torch.tensor(action([0], q, transform))
    found = products(w.flatten(1), units, order, torch.zeros_like(units))[0].sums(p)
    expected = Sums({}, {}, {})
    for orbit in cycles(action(p, q, transform)):
        values = w.flatten()[orbit]
        within, between = float(values.var(correction=0)) * len(orbit), float(values.mean() ** 2) * len(orbit)
        expected += Sums({len(orbit): 1}, {len(orbit): within}, {len(orbit): between})
    assert found.orbits == expected.orbits
    assert found.within == pytest.approx(expected.within, abs=1e-10)
    assert found.between == pytest.approx(expected.between, abs=1e-10)


@pytest.mark.parametrize("order", [2, 4])
def test_pairing_has_the_order_and_no_exchange_improves_it(order):
    for seed in range(20):
        scores = np.random.default_rng(seed).normal(size=(9, 9))
        p = matching(scores, order)
        assert all(order % len(cycle) == 0 for cycle in cycles(p))
        total = scores[range(9), p].sum()
        for c, d in itertools.combinations(range(9), 2):
            exchange = np.arange(9)
            exchange[[c, d]] = d, c
            assert scores[range(9), exchange[p[exchange]]].sum() <= total + 1e-9


def test_pairing_finds_what_is_planted_and_keeps_ties_in_place():
    p = random_permutation(12, 4, seed=3)
    scores = np.random.default_rng(0).normal(size=(12, 12)) * 0.1
    scores[range(12), p] += 1
    assert (matching(scores, 4) == p).all()
    assert (matching(np.ones((3, 3)), 2) == np.arange(3)).all()  # grey images in three equal channels


def scrambled(net, seed=0):
    """A chain of Conv2d whose hidden channels are in another order; and the order, layer by layer."""
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    orders = [torch.randperm(conv.out_channels, generator=generator(seed + n)) for n, conv in enumerate(convs)]
    for n, (conv, order) in enumerate(zip(convs, orders, strict=True)):
        with torch.no_grad():
            conv.weight.copy_(conv.weight[order] if n == 0 else conv.weight[order][:, orders[n - 1]])
            conv.bias.copy_(conv.bias[order])
    return orders


GROUPS = [("quarter-turns", 4, "quarter-turn"), ("flips", 2, "flip"), ("half-turns", 2, "half-turn")]


@pytest.mark.parametrize("group, size, transform", GROUPS)
def test_a_group_network_with_scrambled_channels_is_all_shared(group, size, transform):
    """A hardened group network, channels in random order: ρ = 1 and the orbits are those of the group."""
    torch.manual_seed(0)
    sharing = bws.models.WSCNN(2, 3, 6, size, group=group, pathways=("shared",))
    lift, conv = (_flat(layer) for layer in sharing.convolutions())
    net = nn.Sequential(lift, nn.ReLU(), conv, nn.ReLU())
    orders = scrambled(net)
    x = torch.randn(60, 2, 9, 9, generator=generator())
    for (_, row), order in zip(bws.analysis.orbit_decompositions(net, x, transform).items(), orders, strict=True):
        assert row.explained > 0.9999 and row.shares and row.interval[0] > 0.9999
        assert row.orbits() == {size: 6}
        for cycle in cycles(row.partner):
            assert len({int(order[c]) // size for c in cycle}) == 1  # group elements of one channel lie side by side
    found = {m: bws.analysis.orbit_decompositions(net, x, m) for m in ("quarter-turn", "half-turn", "flip")}
    assert best_decomposition(rows["2"] for rows in found.values()).transform == transform


def _flat(layer):
    from bayesws.layers.fold_group import plain_weight

    weight = plain_weight(layer).detach()
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3)
    with torch.no_grad():
        conv.weight.copy_(weight)
        conv.bias.copy_(layer.flat_bias())
    return conv


@pytest.mark.parametrize("transform", ["quarter-turn", "half-turn", "flip", "transpose"])
@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_planted_strength_is_inside_its_interval(transform, rho):
    """Ten draws, 95 % intervals: fewer than seven hits have probability 0.001."""
    hits = 0
    for seed in range(10):
        p, q = (random_permutation(n, ORDERS[transform], seed=10 * seed + n) for n in (16, 24))
        weight = planted(p, q, transform, rho, seed)
        found = bws.orbit_decomposition(weight, transform, torch.from_numpy(q), seed=seed)
        hits += found.interval[0] <= rho <= found.interval[1]
        assert found.shares and found.partner == tuple(p)
    assert hits >= 7


@pytest.mark.parametrize("unequal", [False, True])
def test_noise_explains_nothing(unequal):
    """Fifty random layers and transforms, filters of equal and very unequal size: the Bayes factor stays below 20.

    Each fold's Bayes factor has mean one under independent normal weights: more than 20 has probability below 1/20.
    """
    convinced, beyond = 0, 0
    for seed, transform in itertools.product(range(25), ("quarter-turn", "flip")):
        out, channels = (32, 1) if seed % 2 else (16, 12)
        weight = torch.randn(out, channels, 3, 3, generator=generator(seed))
        if unequal:
            weight *= torch.randn(out, 1, 1, 1, generator=generator(seed)).mul(2).exp()
        q = None if channels == 1 else torch.from_numpy(random_permutation(channels, ORDERS[transform], seed))
        found = bws.orbit_decomposition(weight, transform, q, seed=seed)
        convinced += found.evidence > math.log(20)
        beyond += found.shares
    assert convinced <= 3 and beyond <= 1


SCALES = [(8, (8, 1, 1, 1)), (12, (1, 12, 1, 1))]
SHAPES = [(32, 1, "half-turn"), (32, 1, "quarter-turn"), (32, 3, "flip"), (32, 32, "quarter-turn"), (64, 64, "flip")]


@pytest.mark.slow
@pytest.mark.parametrize("unequal", ["equal", "filters", "inputs"])
def test_noise_is_convincing_as_rarely_as_the_bayes_factor_says(unequal):
    """500 random layers: more than 3 nats have probability below 1/20 each."""
    evidences, shares = [], 0
    for seed, (out, channels, transform) in itertools.product(range(100), SHAPES):
        draws = generator(seed)
        weight = torch.randn(out, channels, 3, 3, generator=draws)
        if unequal == "filters":
            weight *= torch.randn(out, 1, 1, 1, generator=draws).exp()
        elif unequal == "inputs":
            weight *= torch.randn(1, channels, 1, 1, generator=draws).exp()
        q = None if channels < 4 else torch.from_numpy(random_permutation(channels, ORDERS[transform], seed))
        found = bws.orbit_decomposition(weight, transform, q, seed=seed)
        evidences.append(found.evidence)
        shares += found.shares
    assert np.mean(np.exp(evidences)) < 1 and sum(e > 3 for e in evidences) < 10 and shares <= 2


def test_matching_without_holding_out_would_find_likeness_in_noise():
    """What the folds are for: measured on the weights that chose the pairs, noise has an evidence of many nats."""
    w = torch.randn(32, 1, 3, 3, generator=generator(), dtype=torch.float64)
    units = torch.tensor(action([0], [0], "quarter-turn"))
    (part,) = products(w.flatten(1), units, 4, torch.zeros_like(units))
    median, _, evidence = part.sums(matching(part.scores(), 4)).posterior()
    assert median > 0.25 and evidence > 20
    assert bws.orbit_decomposition(w).evidence < 3


def test_the_scale_of_a_channel_says_nothing():
    """Of a ReLU network, c · filter and 1/c · the next layer's input channel compute the same: ρ stays the same."""
    p, q = random_permutation(8, 4, 1), random_permutation(12, 4, 2)
    weight, inputs = planted(p, q, "quarter-turn", 0.8), torch.from_numpy(q)
    rows, columns = (torch.rand(n, generator=generator(n)).add(0.1).reshape(shape) for n, shape in SCALES)
    one, two = (bws.orbit_decomposition(w, inputs=inputs) for w in (weight, weight * rows * columns))
    assert two.explained == pytest.approx(one.explained, abs=1e-6) and two.partner == one.partner
    assert two.evidence == pytest.approx(one.evidence, abs=1e-3)


def test_kernels_that_are_their_own_mirror_image_share():
    weight = torch.randn(8, 4, 3, 3, generator=generator())
    found = bws.orbit_decomposition(weight + weight.flip(-1), "flip")
    assert found.explained > 0.999 and found.shares and found.orbits() == {1: 8}
    assert found.compared == 8 * 4 * 6  # the middle column is compared with itself: it does not count


def test_one_kernel_for_all_is_explained_by_any_pairing_and_chance_says_so():
    template = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])
    weight = template + 0.3 * torch.randn(16, 8, 3, 3, generator=generator())
    found = bws.orbit_decomposition(weight)
    assert found.explained > 0.8 and found.chance > 0.8 and not found.shares


def test_depthwise_channels_go_where_their_inputs_go():
    q = random_permutation(12, 4, seed=1)
    weight = torch.stack([planted([0], [0], "identity", 0.0, seed=n)[0] for n in range(12)])
    for cycle in cycles(q):
        for power, c in enumerate(cycle):  # W[q(c)] is W[c], turned
            weight[c] = weight[cycle[0]].rot90(-power, (-2, -1))
    found = bws.orbit_decomposition(weight, "quarter-turn", torch.from_numpy(q), groups=12)
    assert found.explained > 0.999 and found.partner == tuple(q)
    assert bws.orbit_decomposition(torch.randn(12, 1, 3, 3, generator=generator()), groups=12).evidence < 3


NOT_MEASURED = [
    lambda: bws.orbit_decomposition(torch.randn(4, 2, 3, 3), groups=2),  # between dense and depthwise
    lambda: bws.orbit_decomposition(torch.randn(4, 3, 1, 1)),  # nothing moves
    lambda: bws.orbit_decomposition(torch.randn(4, 1, 1, 2), "flip"),  # a single orbit cannot be held out
]


@pytest.mark.parametrize("call", NOT_MEASURED)
def test_what_cannot_be_measured_is_not_a_number(call):
    found = call()
    assert math.isnan(found.explained) and not found.shares and found.compared == 0


class Residual(nn.Module):
    """Sums, normalisation, strides, a dead channel, a depthwise, a grouped and a 1×3 layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
        self.skip = nn.Conv2d(8, 8, 1, stride=2)
        self.wide = nn.Conv2d(8, 8, (1, 3))
        with torch.no_grad():
            self.first.weight[3], self.norm.bias[3] = 0.0, -1.0

    def forward(self, x):
        x = torch.relu(self.norm(self.first(input=x)))
        return self.wide(torch.relu(self.grouped(self.depthwise(x)) + self.skip(x)))


def test_any_network_of_convolutions():
    torch.manual_seed(0)
    net, x = Residual().train(), torch.randn(20, 3, 8, 8, generator=generator())
    transforms = ("quarter-turn", "half-turn")
    found = {m: bws.analysis.orbit_decompositions(net, x, m, batch_size=7) for m in transforms}
    assert net.norm.training and int(net.norm.num_batches_tracked) == 0
    turned, half = found.values()
    assert list(turned) == ["first", "depthwise", "grouped", "skip", "wide"]
    measured = {name for name, row in turned.items() if row.compared}
    assert {"first", "depthwise"} <= measured and not {"grouped", "wide"} & measured
    assert half["wide"].compared and not any(row.shares for rows in found.values() for row in rows.values())
    assert turned["depthwise"].compared <= 7 * 9  # one channel is dead: its q is unknown
    text = as_text(decomposition_table(found))
    assert "quarter-turn" in text and "–" in text and all(len(line) <= 100 for line in text.splitlines())


def test_the_batch_size_does_not_matter():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3))
    x = torch.randn(20, 1, 8, 8, generator=generator())
    one, two = (bws.analysis.orbit_decompositions(net, x, batch_size=size)["2"] for size in (3, 20))
    assert one.explained == pytest.approx(two.explained, rel=1e-9) and one.partner == two.partner


def test_on_every_device(device):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3)).double()
    x = torch.randn(20, 1, 8, 8, generator=generator(), dtype=torch.float64)
    here = bws.analysis.orbit_decompositions(net, x)
    there = bws.analysis.orbit_decompositions(net.to(device), x.to(device))
    for name, row in here.items():
        assert there[name].explained == pytest.approx(row.explained, rel=1e-6)


WEIGHT, IMAGES = torch.randn(4, 2, 3, 3), torch.randn(4, 1, 8, 8)
NET = nn.Sequential(nn.Conv2d(1, 2, 3))
BAD = {
    "unknown transform": (lambda: bws.orbit_decomposition(WEIGHT, "turn"), "'turn'.*quarter-turn"),
    "a transform that resamples": (
        lambda: bws.analysis.orbit_decompositions(NET, IMAGES, "rotate:30"),
        "'rotate:30'.*permute",
    ),
    "no kernel": (lambda: bws.orbit_decomposition(torch.randn(4, 2)), "shape .4, 2."),
    "NaN": (lambda: bws.orbit_decomposition(WEIGHT * math.nan), "finite"),
    "not square": (lambda: bws.orbit_decomposition(torch.randn(4, 2, 1, 3)), "1×3.*square"),
    "no permutation": (lambda: bws.orbit_decomposition(WEIGHT, "flip", torch.tensor([0, 0])), "permutation of 2"),
    "too many inputs": (lambda: bws.orbit_decomposition(WEIGHT, "flip", torch.arange(3)), "permutation of 2"),
    "another order": (
        lambda: bws.orbit_decomposition(torch.randn(4, 3, 3, 3), "flip", torch.tensor([1, 2, 0])),
        "2 times over",
    ),
    "no images": (lambda: bws.analysis.orbit_decompositions(NET, torch.zeros(5, 3)), "shape .5, 3."),
    "images that are not square": (lambda: bws.analysis.orbit_decompositions(NET, IMAGES[:, :, :5]), "5×8.*square"),
    "images of other channels": (
        lambda: bws.analysis.orbit_decompositions(NET, IMAGES.expand(-1, 3, -1, -1)),
        "does not take images",
    ),
    "no convolution": (lambda: bws.analysis.orbit_decompositions(nn.Flatten(), IMAGES), "without a torch.nn.Conv2d"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name):
    assert_refused(*BAD[name])

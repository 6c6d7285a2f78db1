"""Sums know their counts: what parts of the data have summed adds up to what the whole has, whatever is drawn."""

from dataclasses import asdict, replace
from functools import reduce
from itertools import pairwise
from operator import add

import networks
import pytest
import torch
from refusals import assert_refused
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayesws import Categorical, Curvature, Gaussian
from bayesws.evidence.batches import Batches
from bayesws.evidence.gathering import gather
from bayesws.evidence.gradient import adjoints_of, gradient_in, second_pass
from bayesws.evidence.objective import assemble, finish
from bayesws.evidence.sampling import Signs, sampled_batches
from bayesws.layers import WSLiftConv2d
from bayesws.layers.contract import starting_log_precisions

N, BATCH = 16, 4
USUAL = asdict(Curvature()) | {"kind": ""}
LIKELIHOODS = {"classification": Categorical, "regression": lambda: Gaussian(0.7, dtype=torch.float64)}
KINDS = [
    Curvature("full"),
    Curvature("layer"),
    Curvature("pathway"),
    Curvature("kron"),
    Curvature("kron", "reduce"),
    Curvature("kron", exact_up_to=20),
    Curvature("diag"),
]
DRAWN = [{}, {"samples": 1}, {"samples": 3}, {"subset": 0.6}, {"samples": 1, "subset": 0.6, "seed": 2}]
EXACT = {"rtol": 1e-10, "atol": 1e-12}  # sums of some hundred products in float64, in another order


def label(value):
    """What of a curvature is not as usual."""
    if isinstance(value, str):
        return value
    given = asdict(value) if isinstance(value, Curvature) else value
    return "-".join(str(v) if k == "kind" else f"{k} {v}" for k, v in given.items() if v != USUAL.get(k)) or "all"


class Mixed(nn.Module):
    """A sharing convolution, a normalisation, and a head; a second head only for a batch whose first pixels say so."""

    def __init__(self):
        super().__init__()
        self.lift = WSLiftConv2d(1, 2, 2, group_size=2, stack="fixed", group="half-turns", dtype=torch.float64)
        self.norm = nn.LayerNorm(3, dtype=torch.float64)
        self.seldom = nn.Linear(12, 3, dtype=torch.float64)
        self.head = nn.Linear(12, 3, dtype=torch.float64)
        networks.move_from_start(self)

    def forward(self, x):
        f = self.norm(torch.tanh(self.lift(x))).mean(-1).flatten(1)
        return self.head(f) + (self.seldom(f) if (x[:, 0, 0, 0] > 2).all() else 0.0)


def problem(likelihood="classification", seldom=True):
    """The last `BATCH` data are the only ones that the second head is called for."""
    net, x = Mixed(), networks.images(N).clamp(-1.9, 1.9)
    if seldom:
        x[-BATCH:, 0, 0, 0] = 3.0
    return net, x, networks.targets(likelihood, N, 3)


def walk(net, data, curvature, likelihood="classification", graph="none"):
    with torch.set_grad_enabled(graph != "none"):
        return gather(net, data, LIKELIHOODS[likelihood](), curvature, graph, check=False)


def shares(x, y, bounds):
    """Data between bounds, as one process has them: these alone, and their places."""
    places = torch.arange(len(x))
    return [Batches((x[a:b], y[a:b]), BATCH, places=places[a:b], total=len(x)) for a, b in pairwise(bounds)]


def numbers(hessian):
    """Everything that a Hessian is made of."""
    if hasattr(hessian, "hessian"):
        return {"times": torch.tensor(hessian.times)} | numbers(hessian.hessian)
    if hasattr(hessian, "terms"):
        return {(*n, j): c * v for j, (c, of) in enumerate(hessian.terms) for n, v in numbers(of()).items()}
    if hasattr(hessian, "parts"):
        return {name: value for part in hessian.parts for name, value in numbers(part).items()}
    if hasattr(hessian, "matrix"):
        return {tuple(hessian.sizes): hessian.matrix}
    return hessian.eigenvalues


def assert_same_pass(found, expected):
    assert (found.examples, found.outputs, found.curvature) == (expected.examples, expected.outputs, expected.curvature)
    torch.testing.assert_close(found.data_fit, expected.data_fit, **EXACT)
    mine, theirs = numbers(found.hessian), numbers(expected.hessian)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-10, atol=1e-10 * float(value.abs().max()))


@pytest.fixture(autouse=True)
def every_way(monkeypatch):
    """Inputs are thinned, and normalisations have dense and diagonal blocks, however few the data."""
    monkeypatch.setattr("bayesws.evidence.kronecker.PLENTY", 0)
    monkeypatch.setattr("bayesws.evidence.accumulators.LARGEST_SCALE_BLOCK", 2)


pytestmark = pytest.mark.filterwarnings("ignore:layer 'norm' normalises")


CASES = [("classification", drawn) for drawn in DRAWN] + [("regression", drawn) for drawn in (DRAWN[1], DRAWN[-1])]


@pytest.mark.parametrize("likelihood, drawn", CASES, ids=label)
@pytest.mark.parametrize("kind", KINDS, ids=label)
def test_halves_added_equal_the_whole(kind, likelihood, drawn):
    curvature = replace(kind, **drawn)
    net, x, y = problem(likelihood, seldom="subset" not in drawn)  # a subset's batches mix the data
    data = Batches((x, y), BATCH)
    whole = walk(net, data, curvature, likelihood)
    halves = [walk(net, data.part(i, 2), curvature, likelihood) for i in range(2)]
    assert_same_pass(finish(halves[0] + halves[1]), finish(whole))
    assert (halves[0] + halves[1]).sums.counts == whole.sums.counts


@pytest.mark.parametrize("drawn", [DRAWN[1], DRAWN[-1]], ids=label)
@pytest.mark.parametrize("kind", KINDS, ids=label)
def test_three_unequal_parts_in_any_order(kind, drawn):
    """5, 3 and 8 data: places do not start where batches do."""
    curvature = replace(kind, **drawn)
    net, x, y = problem(seldom="subset" not in drawn)
    whole = finish(walk(net, Batches((x, y), BATCH), curvature))
    a, b, c = (walk(net, share, curvature) for share in shares(x, y, [0, 5, 8, N]))
    for added in ((a + b) + c, c + (b + a), b + (c + a)):
        assert_same_pass(finish(added), whole)


@pytest.mark.parametrize("kind", KINDS, ids=label)
def test_a_layer_that_one_part_alone_calls(kind):
    """Its mean is over the data of that part; the other part has nothing of it to add."""
    net, x, y = problem()
    first, last = (walk(net, share, kind) for share in shares(x, y, [0, N - BATCH, N]))
    only = {key for key in last.sums.tensors if "seldom" in " ".join(key)} - set(first.sums.tensors)
    assert bool(only) == (kind.kind != "full")
    added, whole = finish(first + last), finish(walk(net, Batches((x, y), BATCH), kind))
    assert_same_pass(added, whole)
    assert any("seldom.weight" in (n, *n) for n in numbers(whole.hessian))


def test_counts_travel_with_the_sums():
    """A is a mean: of what both have. Data that do not know their place add up, too, where nothing is drawn."""
    net, x, y = problem(seldom=False)
    whole = walk(net, Batches((x, y), BATCH), Curvature("kron"))
    first, second = (walk(net, Batches((x[s], y[s]), BATCH), Curvature("kron")) for s in (slice(6), slice(6, N)))
    assert_same_pass(finish(first + second), finish(whole))
    key = ("inputs", "lift")
    assert first.sums.counts[key] == 6 * 9 and (first + second).sums.counts[key] == N * 9
    thinned = [walk(net, share, Curvature(samples=1, seed=1)) for share in shares(x, y, [0, 6, N])]  # 1, 5 | 9, 13
    assert [part.sums.counts[key] for part in thinned] == [2 * 9, 2 * 9]


def test_more_parts_than_the_subset_has_data():
    """A part may hold none of the subset: it adds nothing but the data that it stands for."""
    curvature = Curvature("kron", samples=1, subset=0.2, seed=1)
    net, x, y = problem(seldom=False)
    data = Batches((x, y), BATCH)
    parts = [walk(net, data.part(i, 8), curvature) for i in range(8)]
    assert sum(part.seen for part in parts) == 3 and min(part.seen for part in parts) == 0
    assert_same_pass(finish(reduce(add, parts)), finish(walk(net, data, curvature)))
    empty = next(part for part in parts if not part.seen)
    assert_refused(lambda: finish(empty), "none of 2 data is in the subset: add what the other parts")


@pytest.mark.parametrize("curvature", [Curvature("full"), Curvature(samples=2), Curvature(exact_up_to=12)], ids=label)
def test_gradients_of_parts_add_up(curvature, tight_sinkhorn):
    """Through the graphs of both parts at once, and with the adjoints of the added sums part by part."""
    net = networks.Small("dense", networks.BOTH, 2)
    likelihood = Gaussian(0.7, dtype=torch.float64)
    data = Batches((networks.images(7), networks.targets("regression", 7, 2)), 3)
    log_precisions = starting_log_precisions(net)
    wanted = [*log_precisions.values(), *likelihood.hyperparameters(), *net.lift.structure()]
    _, expected = gradient_in(net, data, likelihood, curvature, log_precisions, wanted, "twice")

    parts = [data.part(i, 2) for i in range(2)]
    graphs = [gather(net, part, likelihood, curvature, "signals") for part in parts]
    evidence = assemble(net, finish(graphs[0] + graphs[1]), log_precisions)
    once = torch.autograd.grad(evidence.total, wanted, allow_unused=True)

    with torch.no_grad():
        gathered = reduce(add, (gather(net, part, likelihood, curvature) for part in parts))
    _, adjoints, direct = adjoints_of(net, gathered, log_precisions, wanted)
    several = [second_pass(net, p, likelihood, curvature, curvature, adjoints, wanted, False) for p in parts]
    for truth, graph, *terms in zip(expected, once, direct, *several, strict=True):
        close = {"rtol": 0, "atol": 1e-9 * float(truth.abs().max()) + 1e-12}  # a difference of larger terms
        torch.testing.assert_close(sum(terms), truth, **close)
        torch.testing.assert_close(torch.zeros_like(truth) if graph is None else graph, truth, **close)


@pytest.mark.parametrize("batch", [3, N])
@pytest.mark.parametrize("samples", [1, 3])
def test_signs_are_one_stream_by_place(batch, samples):
    """Bit for bit what one generator draws in sequence, whatever the batches are, and the parts draw their own."""
    root = torch.eye(5, dtype=torch.float64).expand(N, 5, 5)
    generator = torch.Generator().manual_seed(7)
    ones = torch.randint(0, 2, (N, 5, samples), generator=generator)
    expected = root @ ((2 * ones - 1).to(root) / samples**0.5)
    curvature = Curvature(samples=samples, seed=7)
    x = torch.arange(float(N))[:, None]
    data = Batches((x, x), batch)
    for parts in ([data], [data.part(i, 3) for i in range(3)], [data.part(1, 2).part(i, 2) for i in range(2)]):
        for part in parts:
            for chunks in (1, 2):
                for a, _, draw in sampled_batches(part, curvature, chunks):
                    assert torch.equal(draw.combine(root[: len(a)]), expected[a.flatten().long()])


def test_signs_far_along_the_stream(monkeypatch):
    """What lies before is dropped a little at a time; going back starts anew; gaps are left out."""
    monkeypatch.setattr("bayesws.evidence.sampling.DROPPED", 7)
    root = torch.ones(3, 1, 2, dtype=torch.float64)
    signs, ahead = Signs(3, 1), Signs(3, 1)
    everything = signs.at(torch.arange(100), root)
    for places in ([60, 61, 62], [90, 93, 99], [4, 5, 6]):
        assert torch.equal(ahead.at(torch.tensor(places), root), everything[places])


@pytest.mark.parametrize("of", [1, 2, 3, 5])
def test_parts_of_a_subset_are_those_of_the_whole(of):
    x = torch.arange(float(N))[:, None]
    data = Batches((x, x), 3)

    def drawn(part):
        sample = part.sample(0.6, torch.Generator().manual_seed(1))
        assert sample.total == round(0.6 * N)
        return {int(p): float(v) for a, _, places in sample.placed() for v, p in zip(a, places, strict=True)}

    parts = [drawn(data.part(i, of)) for i in range(of)]
    assert sum(map(len, parts)) == round(0.6 * N)
    assert {place: value for part in parts for place, value in part.items()} == drawn(data)
    assert sorted(drawn(data)) == list(range(round(0.6 * N)))


def test_refusals():
    net, x, y = problem(seldom=False)
    data = Batches((x, y), BATCH)
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, dtype=torch.float64))
    wider = nn.Sequential(nn.Flatten(), nn.Linear(16, 4, dtype=torch.float64))
    flat = walk(other, data, Curvature("kron"))
    cases = [
        (lambda: flat + walk(other, data, Curvature(samples=1)), "samples=1.*: expected those for one curvature"),
        (lambda: flat + walk(other, data, Curvature("diag")), "kind='diag'.*: expected those for one curvature"),
        (lambda: walk(net, data, Curvature()) + flat, r"only one of the sums has pathway '1.bias', \(3,\)"),
        (lambda: flat + walk(wider, data, Curvature()), r"pathway '1.bias', \(3,\): expected one network's"),
        (
            lambda: finish(walk(other, data.part(1, N), Curvature(samples=1))),
            "layer '1' was called for none of every 4th",
        ),
        (lambda: data.part(2, 2), "part 2 of 2: expected one of 0 to 1"),
        (lambda: data.part(-1, 2), "part -1 of 2"),
        (lambda: Batches(DataLoader(TensorDataset(x, y))).part(0, 2), "data from a DataLoader"),
    ]
    for call, pattern in cases:
        assert_refused(call, pattern)


def test_outputs_must_agree():
    """Networks with the same pathways and other outputs: pooled over positions, and not."""
    linear = nn.Linear(4, 3, dtype=torch.float64)
    x = torch.randn(6, 2, 4, dtype=torch.float64)
    nets = [nn.Sequential(linear, nn.Flatten()), nn.Sequential(linear, nn.AdaptiveAvgPool2d((1, 3)), nn.Flatten())]
    found = [walk(net, Batches((x, torch.zeros(6, dtype=torch.int64))), Curvature("diag")) for net in nets]
    assert_refused(lambda: found[0] + found[1], "sums of 6 and 3 outputs: expected one network's")

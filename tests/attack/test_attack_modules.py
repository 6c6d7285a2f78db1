"""Networks × loaders against brute force: each evidence is exact, or refused in one line; none is silently wrong."""

import itertools
from contextlib import contextmanager

import oracles
import pytest
import torch
from refusals import assert_refused
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from zoo_rows import NETS

import bayesws as bws
from bayesws.layers import WeightSharing
from bayesws.layers.contract import starting_log_precisions

N = 22
NOISE = 0.7
KINDS = {name: bws.Curvature(name) for name in ("full", "layer", "pathway", "diag")} | {
    "kron": bws.Curvature("kron", exact_up_to=10**6)  # the exact joint block of every layer
}
# Their evidence is exact, though torch.func cannot differentiate them: hooks, threads, control by values
BY_AUTOGRAD = (
    *("checkpointed", "in another thread", "halts by datum", "input written to before"),
    *("hook on a gradient", "hook on gradients of a layer"),
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:layer .* normalises"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
    pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm|jit.script|Lazy|nested_tensor)"),
]


def drawn():
    """Places that a sampler with replacement gives: some twice."""
    weights = torch.arange(N).double() + 1
    return WeightedRandomSampler(weights, N, generator=torch.Generator().manual_seed(0))


# what is handed over for (x, y), and the places of the data that it gives; None where these are all
LOADERS = {
    "tensors": (lambda d: d.tensors, None),
    "dataset": (lambda d: d, None),
    "shuffled": (lambda d: DataLoader(d, 5, shuffle=True), None),
    "sampler": (lambda d: DataLoader(d, 6, sampler=SubsetRandomSampler(range(12))), range(12)),
    "last dropped": (lambda d: DataLoader(d, 8, drop_last=True), range(16)),
    "sampler of batches": (lambda d: DataLoader(d, batch_sampler=BatchSampler(range(3, 13), 4, False)), range(3, 13)),
    "with replacement": (lambda d: DataLoader(d, 6, sampler=drawn()), list(drawn())),
    "a datum three times": (lambda d: DataLoader(d, 4, sampler=[5, 1, 5, 7, 5, 2]), [5, 1, 5, 7, 5, 2]),
    "last batch of one": (lambda d: DataLoader(d, 7), None),
    "batches of one": (lambda d: DataLoader(d, 1, sampler=SequentialSampler(range(9))), range(9)),
    "worker processes": (lambda d: DataLoader(d, 6, num_workers=2), None),
}
QUICK = [name for name in LOADERS if name != "worker processes"]


@contextmanager
def in_double():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def double():
    with in_double():
        yield


def problem(name, likelihood):
    make, shape, _ = NETS[name]
    torch.manual_seed(0)
    net = make().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.6 * torch.randn_like(parameter))
    x = torch.randn(N, *shape)
    y = torch.arange(N) % 3 if likelihood == "classification" else torch.randn(N, 3)
    return net, x, y


def prior_of(net):
    """The layers' own, and where none has one of its own others, no two alike."""
    own = {name: t.detach() for name, t in starting_log_precisions(net).items()}
    if any(isinstance(module, WeightSharing) for module in net.modules()):
        return own
    return {name: torch.tensor(0.3 * i - 0.5) for i, name in enumerate(own)}


def weights_of(net):
    return [name for name in oracles.weight_names(net) if net.get_parameter(name).requires_grad]


def jacobian_alone(net, x, names):
    """Every datum by itself, every output by itself, by autograd alone."""
    parameters, rows = [net.get_parameter(name) for name in names], []
    for datum in x.split(1):
        for output in net(datum.clone()).flatten():
            found = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
            pairs = zip(found, parameters, strict=True)
            rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
    return torch.stack(rows).unflatten(0, (len(x), -1))


def brute_force(net, x, y, prior, kinds, jacobian):
    """The log evidence by dense matrices, by kind of curvature."""
    names, noise = weights_of(net), None if y.dtype == torch.long else NOISE
    outputs = torch.cat([net(datum.clone()).detach() for datum in x.split(1)])
    j = jacobian(net, x.clone(), names)
    hessian = oracles.softmax_hessian(outputs) if noise is None else oracles.gaussian_hessian(noise)(outputs)
    h = torch.einsum("ncp,ncd,ndq->pq", j, hessian, j)
    spans = {name: torch.arange(net.get_parameter(name).numel()) for name in names}
    start = 0
    for name, rows in spans.items():
        spans[name], start = rows + start, start + len(rows)
    log_precisions = {name: prior[oracles.pathway_of(net, name)] for name in names}
    precisions = torch.cat([log_precisions[name].exp().expand(len(rows)) for name, rows in spans.items()])
    scatter = sum(0.5 * log_precisions[name].exp() * net.get_parameter(name).detach().square().sum() for name in names)
    fit = oracles.log_probability(outputs, y, noise)
    return {kind: float(fit - scatter) - occam_in_blocks(net, h, precisions, spans, kind) for kind in kinds}


def occam_in_blocks(net, h, precisions, spans, kind):
    if kind in ("diag", "pathway"):
        own = {name: h[rows[:, None], rows] for name, rows in spans.items()}
        values = {name: m.diagonal() if kind == "diag" else torch.linalg.eigvalsh(m) for name, m in own.items()}
        deltas = {name: precisions[rows[0]] for name, rows in spans.items()}
        return sum(float(share) for share, _ in oracles.coupled_shares(values, deltas, oracles.pairs_of(net)).values())
    block = {"full": lambda n: ""}.get(kind, lambda n: layer_of(net, n))
    blocks = {}
    for name, rows in spans.items():
        blocks.setdefault(block(name), []).append(rows)
    joined = [torch.cat(parts) for parts in blocks.values()]
    return sum(float(oracles.occam_factor(h[rows[:, None], rows], precisions[rows])) for rows in joined)


def layer_of(net, name):
    """The layer of a parameter, the container where it is one layer of several."""
    return next(n for n, layer in bws.layers.layers_of(net).items() if name.startswith(f"{n}." if n else ""))


def evidence(net, handed, likelihood, kind, prior):
    model = likelihood if likelihood == "classification" else bws.Gaussian(NOISE)
    return float(bws.log_evidence(net, handed, model, KINDS[kind], prior, batch_size=4))


def given(loader, x, y):
    make, places = LOADERS[loader]
    places = list(range(N)) if places is None else list(places)
    return make(TensorDataset(x, y)), x[places], y[places]


EXACT = [name for name, (_, _, what) in NETS.items() if not what]
REFUSED = [name for name, (_, _, what) in NETS.items() if what]
LIKELIHOODS = ("classification", "regression")


def assert_exact(name, likelihood, kinds, loaders):
    net, x, y = problem(name, likelihood)
    prior = prior_of(net)
    jacobian = jacobian_alone if name in BY_AUTOGRAD else oracles.dense_jacobian
    for loader in loaders:
        handed, seen, targets = given(loader, x, y)
        expected = brute_force(net, seen, targets, prior, kinds, jacobian)
        for kind in kinds:
            found = evidence(net, handed, likelihood, kind, prior)
            assert found == pytest.approx(expected[kind], rel=1e-8), (loader, kind)
            handed = given(loader, x, y)[0]  # a sampler's generator has moved on


def assert_never_wrong(name, likelihood, kind, loader):
    """Refused, or what brute force gives for every datum by itself: a loader may hide what a network does."""
    net, x, y = problem(name, likelihood)
    handed, seen, targets = given(loader, x, y)
    try:
        prior = prior_of(net)
        found = evidence(net, handed, likelihood, kind, prior)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    expected = brute_force(net, seen, targets, prior, [kind], jacobian_alone)
    assert found == pytest.approx(expected[kind], rel=1e-8)


def test_the_zoo_is_large():
    assert len(EXACT) + len(REFUSED) >= 160 and min(len(EXACT), len(REFUSED)) >= 60


@pytest.mark.parametrize("name", EXACT)
def test_what_is_accepted_is_exact(name):
    """Equal to the dense matrix of torch.func in float64, 1e-8: in turn by likelihoods, curvatures and loaders."""
    i = EXACT.index(name)
    kinds = ("full", list(KINDS)[1 + i % 4])
    assert_exact(name, LIKELIHOODS[i % 2], kinds, [QUICK[i % len(QUICK)]])


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_wrong_is_refused_by_name(name):
    i = REFUSED.index(name)
    net, x, y = problem(name, LIKELIHOODS[i % 2])
    handed = (x, y)
    assert_refused(lambda: bws.log_evidence(net, handed, LIKELIHOODS[i % 2]), NETS[name][2])
    assert_never_wrong(name, LIKELIHOODS[i % 2], "full", QUICK[i % len(QUICK)])


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_what_is_accepted_is_exact_by_every_loader(name, likelihood):
    assert_exact(name, likelihood, list(KINDS), list(LOADERS))


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_no_loader_makes_an_evidence_silently_wrong(name):
    for likelihood, kind, loader in itertools.product(LIKELIHOODS, KINDS, QUICK):
        assert_never_wrong(name, likelihood, kind, loader)


def test_data_that_lie_in_several_batches_are_looked_at_alone():
    assert_never_wrong("control by the batch", "classification", "full", "a datum three times")


@pytest.mark.parametrize(
    "name", ["gradient alone by size", "tied by memory", "old weight norm", "one datum after the other"]
)
def test_fit_refuses_what_a_copy_or_a_few_data_would_hide(name):
    net, x, y = problem(name, "classification")
    assert_refused(lambda: bws.fit(net, (x, y), epochs=1, progress=False), NETS[name][2])


# a hook is on a parameter, and fit trains a copy: of parameters without hooks, as torch copies them
REFUSED_BY_FIT = [name for name in REFUSED if name != "hook on the gradient of a weight"]


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED_BY_FIT)
def test_fit_refuses_what_the_evidence_refuses(name):
    net, x, y = problem(name, "classification")
    assert_refused(lambda: bws.fit(net, (x, y), epochs=1, progress=False), NETS[name][2])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrap", [torch.jit.script, lambda net: torch.compile(net, backend="eager")])
def test_a_network_that_torch_has_wrapped_is_exact_or_refused(wrap):
    net, x, y = problem("linear", "classification")
    prior = starting_log_precisions(net)
    expected = brute_force(net, x, y, prior, ["full"], oracles.dense_jacobian)["full"]
    try:
        found = float(bws.log_evidence(wrap(net), (x, y)))
    except (ValueError, RuntimeError):
        return
    assert found == pytest.approx(expected, rel=1e-8)

"""Networks and loaders whose evidence would be silently wrong: each is refused in one line, or made right."""

import pytest
import torch
import torch.nn.functional as F
from refusals import assert_refused
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, SubsetRandomSampler, TensorDataset

import bayesws as bws

DOUBLE = {"dtype": torch.float64}


def data(n=24):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=generator, **DOUBLE), torch.arange(n) % 3


class Net(nn.Module):
    """Two linear layers, with something of a case's own on the way."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.way = nn.Linear(4, 4, **DOUBLE), nn.Linear(4, 3, **DOUBLE), way

    def forward(self, x):
        return self.way(self, x)


def within_no_grad(net, x):
    with torch.no_grad():
        h = net.a(x)
    return net.b(torch.tanh(h))


def attention(net, x):
    h = net.a(x)
    return net.b(h + (h @ h.T / 2).softmax(-1) @ h)


class Normalised(nn.Module):
    """Batch normalisation without running statistics, and without parameters that anybody would look at."""

    def __init__(self):
        super().__init__()
        norm = nn.BatchNorm1d(4, affine=False, track_running_stats=False, **DOUBLE)
        self.net = nn.Sequential(nn.Linear(4, 4, **DOUBLE), norm, nn.Linear(4, 3, **DOUBLE))

    def forward(self, x):
        return self.net(x)


REFUSED = {
    "mean over the batch": (Net(lambda n, x: n.b(n.a(x) - n.a(x).mean(0))), "depend on that datum alone"),
    "rolled rows": (Net(lambda n, x: n.b(n.a(x).roll(1, 0))), "depend on that datum alone"),
    "attention across the batch": (Net(attention), "depend on that datum alone"),
    "normalised by the batch": (Normalised(), "depend on that datum alone"),
    "functional dropout": (Net(lambda n, x: n.b(F.dropout(n.a(x), 0.5, True))), "other outputs for the same inputs"),
    "no_grad around a layer": (Net(within_no_grad), "parameter 'a.weight', but its gradient does not reach"),
    "detached": (Net(lambda n, x: n.b(n.a(x).detach())), "parameter 'a.weight', but its gradient does not reach"),
    "all without a gradient": (Net(lambda n, x: n.b(n.a(x)).detach()), "its gradient does not reach"),
    "reentrant checkpointing": (
        Net(lambda n, x: n.b(checkpoint(n.a, x, use_reentrant=True))),
        "parameter 'a.weight', but its gradient does not reach.*use_reentrant=False",
    ),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("run", [bws.log_evidence, bws.fit], ids=["log_evidence", "fit"])
def test_what_would_be_silently_wrong_is_refused(run, case):
    net, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        run(net, data())
    assert "\n" not in str(error.value)


class Doubled(nn.Linear):
    """For large inputs not what its class declares."""

    def forward(self, x):
        return super().forward(x) * torch.where(x[:, :1].abs() > 1.2, 2.0, 1.0)


class OfItsOwn(Net):
    def __init__(self):
        super().__init__(lambda n, x: n.b(torch.relu(n.a(x))))
        self.a = Doubled(4, 4, **DOUBLE)


def rolled_and_back(net, x):
    """Rolled by one, and back, but only in large batches."""
    shift = int(len(x) > 4)
    return net.b(torch.tanh(net.a(x.roll(shift, 0)).roll(-shift, 0)))


LATER = {
    "mean over the batch": REFUSED["mean over the batch"],
    "rolled and back": (Net(rolled_and_back), "depend on that datum alone"),
    "functional dropout": (REFUSED["functional dropout"][0], "depend on that datum alone"),
    "no_grad around a layer": REFUSED["no_grad around a layer"],
    "a use on some data": (
        Net(lambda n, x: n.b(torch.relu(n.a(x))) + F.linear(x, n.a.weight)[:, :3] * (x[:, :1].abs() > 1.2)),
        "parameter 'a.weight' acts outside",
    ),
    "a layer of its own": (OfItsOwn(), "parameter 'a.weight' acts otherwise"),
}


@pytest.mark.parametrize("case", LATER)
@pytest.mark.parametrize("run", [bws.log_evidence, bws.evidence_gradient, bws.fit])
def test_what_a_first_check_misses_is_caught_in_a_later_batch(run, case, monkeypatch):
    """As if the first check had seen nothing: the walk's own sentinel is what is left."""
    for module in ("bayesws.evidence.gathering", "bayesws.training.fit"):
        monkeypatch.setattr(f"{module}.check_network", lambda *of: None)
    net, message = LATER[case]
    settings = {"epochs": 4, "every": 1, "burn_in": 0.1, "progress": False} if run is bws.fit else {}
    assert_refused(lambda: run(net, data(), **settings), message)


@pytest.mark.parametrize(
    "way",
    [lambda n, x: n.b(checkpoint(n.a, x, use_reentrant=False)), lambda n, x: n.b(x) + 0 * n.a(x).detach()[:, :3]],
    ids=["checkpointing that keeps gradients", "a layer that does not matter"],
)
def test_what_is_right_is_not_refused(way):
    """The evidence is that of the same function written plainly: layers that outputs do not depend on have H = 0."""
    bws.log_evidence(Net(way), data())


LOADERS = {
    "a sampler": lambda d: (DataLoader(d, batch_size=6, sampler=SubsetRandomSampler(range(12))), 12),
    "the last batch dropped": lambda d: (DataLoader(d, batch_size=7, drop_last=True), 21),
    "a sampler of batches": lambda d: (
        DataLoader(d, batch_sampler=BatchSampler(SequentialSampler(range(10)), 5, False)),
        10,
    ),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", ["full", "kron"])
def test_the_evidence_is_about_the_data_that_a_loader_gives(loader, kind):
    """Once scaled by N / seen in the data fit and not in the Occam factor; now equal to the data as tensors, 1e-10."""
    net, (x, y) = Net(lambda n, x: n.b(torch.tanh(n.a(x)))), data()
    given, seen = LOADERS[loader](TensorDataset(x, y))
    found, wanted = (
        bws.log_evidence(net, given, curvature=kind),
        bws.log_evidence(net, (x[:seen], y[:seen]), curvature=kind),
    )
    assert found.examples == seen and float(found) == pytest.approx(float(wanted), rel=1e-10)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("ask", ["a subset of the data", "data held out", "a comparison"])
def test_where_all_data_are_needed_at_once_a_loader_gives_each_of_them(loader, ask):
    """Once the whole data set was taken, whatever the loader was told to leave out."""
    net, given = Net(lambda n, x: n.b(n.a(x))), LOADERS[loader](TensorDataset(*data()))[0]
    calls = {
        "a subset of the data": lambda: bws.log_evidence(net, given, curvature=bws.Curvature("kron", subset=0.5)),
        "data held out": lambda: bws.fit(net, given, objective="task", epochs=2, progress=False),
        "a comparison": lambda: bws.compare(lambda: net, given, data(), seeds=1),
    }
    assert_refused(calls[ask], "DataLoader with .*: expected one that gives each datum once")


def test_a_subset_of_what_a_loader_shuffles_is_that_of_its_data_set():
    net, (x, y), half = Net(lambda n, x: n.b(n.a(x))), data(), bws.Curvature("kron", subset=0.5)
    shuffled = DataLoader(TensorDataset(x, y), 5, shuffle=True)
    found, wanted = (bws.log_evidence(net, given, curvature=half) for given in (shuffled, (x, y)))
    assert float(found) == pytest.approx(float(wanted), rel=1e-10)


def test_a_fit_counts_the_data_that_a_loader_gives():
    """The prior weighs 1 / N per datum in the loss: the fit is that of the same data as tensors."""
    net, (x, y) = Net(lambda n, x: n.b(torch.tanh(n.a(x)))), data()
    settings = {"epochs": 6, "every": 2, "burn_in": 0.1, "batch_size": 12, "progress": False, "keep_posterior": False}
    loader = DataLoader(TensorDataset(x, y), batch_size=12, sampler=SequentialSampler(range(12)))
    of_loader, of_tensors = bws.fit(net, loader, **settings), bws.fit(net, (x[:12], y[:12]), **settings)
    assert of_loader.evidence.examples == 12
    assert of_loader.log_evidence == pytest.approx(of_tensors.log_evidence, rel=1e-8)  # rows in another order


def test_a_network_that_writes_into_its_input_leaves_the_users_data_alone():
    net, (x, y) = Net(lambda n, x: n.b(n.a(x.mul_(0.9)))), data()
    kept = x.clone()
    first, second = float(bws.log_evidence(net, (x, y))), float(bws.log_evidence(net, (x, y)))
    bws.fit(net, (x, y), epochs=2, progress=False, keep_posterior=False)
    assert torch.equal(x, kept) and first == second
    twin = Net(lambda n, x: n.b(n.a(0.9 * x)))
    assert first == pytest.approx(float(bws.log_evidence(twin, (x, y))), rel=1e-10)


@pytest.mark.parametrize("prior", [float("inf"), float("nan"), 500.0, -500.0, {"a.weight": float("inf")}])
def test_a_prior_that_no_number_holds_is_refused(prior):
    net = Net(lambda n, x: n.b(n.a(x)))
    with pytest.raises(ValueError, match=r"prior for 'a.weight'.*: expected a log precision between"):
        bws.log_evidence(net, data(), prior=prior)

"""Branches that are taken out: nothing that a dead one gave is missed, and what follows from the rest stays right."""

import math

import pytest
import torch
from sealed import rewritten
from stopping import Stop, stopped_after
from torch import nn

import bayesws as bws
from bayesws.evidence.nesting import nested
from bayesws.evidence.surface import Separate
from bayesws.layers import Branches, Linear2d, SparseConv2d, SparseLinear2d, layers_of, named_pathways
from bayesws.layers.prune import prune, pruned
from bayesws.training.optimiser import forget
from bayesws.training.pruning import LOOKS, Pruning

SIDE = 6
SETTINGS = {"epochs": 12, "burn_in": 0.1, "every": 1, "progress": False, "batch_size": 20}


def network(kind="dense", reduce="sum"):
    torch.manual_seed(1)
    if kind == "sparse":
        branches = {"conv": SparseConv2d(1, 2, 3, 4, padding=1), "fc": SparseLinear2d(1, 2, SIDE, SIDE)}
    else:
        branches = {"conv": nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), "fc": Linear2d(1, 2, SIDE, SIDE)}
    return nn.Sequential(Branches(reduce=reduce, **branches), nn.Tanh(), nn.Flatten(), nn.Linear(2 * SIDE**2, 3))


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    return torch.randn(60, 1, SIDE, SIDE), torch.arange(60) % 3


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_a_dead_branch_is_not_missed(reduce, data):
    """Weights of 1e-8 give outputs of some 1e-7, and nothing is left of what they cost."""
    net = network(reduce=reduce)
    with torch.no_grad():
        for parameter in net[0].fc.parameters():
            parameter.copy_(1e-8 * torch.randn_like(parameter))
    before = net(data[0])
    assert nested(dict(named_pathways(net))).keys() == {"0.conv.weight", "0.conv.bias"}
    prune(net, ["0.fc"])
    torch.testing.assert_close(net(data[0]), before, rtol=0, atol=1e-5)
    assert pruned(net) == ["0.fc"] and "pruned=('fc',)" in repr(net[0])
    assert not nested(dict(named_pathways(net))) and sum(p.numel() for p in net[0].parameters()) == 2 * 9 + 2
    prior = {name: torch.zeros(3) for name in layers_of(net)["0"].pathways}
    assert torch.equal(layers_of(net)["0"].strength(prior), torch.ones(3))
    prune(net, ["0.fc"])  # stays out
    torch.testing.assert_close(bws.harden(net, data[0][:2])(data[0]), net(data[0]).detach())
    bws.log_evidence(net, data)


def test_without_the_branch_that_shares_nothing_is_shared():
    net = network()
    prune(net, ["0.conv"])
    layer = layers_of(net)["0"]
    assert torch.equal(layer.strength({name: torch.zeros(3) for name in layer.pathways}), torch.zeros(3))


@pytest.mark.parametrize(
    ("branches", "told"),
    [
        (["fc"], r"prune 'fc': expected a branch of '0'"),
        (["0.dense"], r"prune 'dense': expected one of several branches, which are conv, fc"),
        (["0.fc", "0.conv"], r"prune 'conv': expected one of several branches, which are conv$"),
    ],
)
def test_what_cannot_be_taken_out(branches, told):
    with pytest.raises(ValueError, match=told):
        prune(network(), branches)


def test_only_what_is_idle_for_three_steps_in_a_row_goes_and_the_most_used_stays():
    net, pruning = network(), Pruning(1.0)
    uses = [0.4, 2.0, 0.4, 0.4, 0.4]
    went = [
        pruning.look(net, {"0.conv.weight": 0.5, "0.fc.weight": g, "0.fc.bias": 0.0}, e) for e, g in enumerate(uses)
    ]
    assert went == [False] * 4 + [True] and LOOKS == 3
    assert pruned(net) == ["0.fc"] and pruning.notes() == [
        "taken out, as less than 1 effective parameters were used: 0.fc after epoch 4"
    ]
    assert not any(pruning.look(net, {"0.conv.weight": 0.0}, epoch) for epoch in range(5))
    untouched = network()
    assert not any(Pruning(None).look(untouched, {"0.conv.weight": 5.0}, epoch) for epoch in range(5))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_fit_goes_on_without_it(kind, data, tmp_path):
    """Of labels at random some branch has fewer than a thousand effective parameters."""
    fit = bws.fit(network(kind), data, prune=1000.0, **SETTINGS)
    (out,) = pruned(fit.model)
    assert any(f"less than 1000 effective parameters were used: {out} after epoch" in note for note in fit.notes)
    assert not any(name.startswith(f"{out}.") for name in (*fit.prior, *fit.evidence.by_pathway))
    if kind == "dense":
        assert fit.sharing[0].strength == float(out == "0.fc")
    again = bws.log_evidence(fit.model, data, fit.likelihood, fit.evidence.curvature, fit.prior)
    assert float(again) == pytest.approx(fit.log_evidence, rel=1e-4)
    fit.save(tmp_path / "fit")
    loaded = bws.FitResult.load(tmp_path / "fit", network(kind))
    assert torch.equal(loaded.model(data[0]), fit.model(data[0])) and pruned(loaded.model) == [out]


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("stop", [2, 9])  # before it is taken out, and after
def test_stopped_and_gone_on_it_is_the_same(kind, stop, data, tmp_path):
    settings = SETTINGS | {"prune": 1000.0}
    net = network(kind)
    whole = bws.fit(net, data, **settings)
    with stopped_after(stop), pytest.raises(Stop):
        bws.fit(net, data, checkpoint=tmp_path / "left", **settings)
    again = bws.fit(net, data, checkpoint=tmp_path / "left", **settings)
    assert again.history == whole.history and again.notes == whole.notes and pruned(again.model)
    assert again.log_evidence == whole.log_evidence
    finished = bws.fit(net, data, checkpoint=tmp_path / "left", **settings)
    assert torch.equal(finished.model(data[0]), whole.model(data[0]))


@pytest.mark.parametrize("seed", range(5))
def test_what_a_dead_branch_costs(seed):
    """Of weights that the data see worse than the prior says them, at the fixed point: less than γ, either way."""
    draw = torch.Generator().manual_seed(seed)
    h = torch.rand(20, generator=draw, dtype=torch.float64) * math.exp(2)  # below δ = e²
    b = torch.randn(20, generator=draw, dtype=torch.float64)
    gamma, at = (h / (h + math.exp(2))).sum(), torch.tensor(2.0, dtype=torch.float64)
    b = b * (gamma / (math.exp(2) * (b / (h + math.exp(2))).square().sum())).sqrt()  # δ‖θ‖² = γ
    s = Separate({"w": h}, {"w": b})
    cost = float(s.of("w", at) - s.of("w", torch.tensor(30.0, dtype=torch.float64)))
    assert abs(cost) < float(gamma)


def test_an_optimiser_forgets_what_is_gone_and_no_more():
    kept, gone = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimiser = torch.optim.Adam([{"params": [kept]}, {"params": [gone]}])
    (kept.sum() + gone.sum()).backward()
    optimiser.step()
    forget(optimiser, [kept])
    assert list(optimiser.state) == [kept] and [group["params"] for group in optimiser.param_groups] == [[kept]]


def test_a_network_of_branches_is_rebuilt_without_what_is_out(tmp_path):
    images = bws.data.load("digits", task="quadrant", seed=0, train_size=60, test_size=20)
    net = bws.models.LayerwiseNet("fc+conv", width=1, in_channels=1, size=16, choose="input")
    fit = bws.fit(net, images.train, prune=1e4, **SETTINGS)
    assert len(pruned(fit.model)) == 8
    fit.save(tmp_path / "fit")
    again = bws.FitResult.load(tmp_path / "fit")
    assert torch.equal(again.model(images.test[0]), fit.model(images.test[0]))
    rewritten(tmp_path / "fit" / "fit.json", lambda record: record.update(format=6))
    with pytest.raises(ValueError, match="format 6, when a block was a mean of its branches: fit again"):
        bws.FitResult.load(tmp_path / "fit")

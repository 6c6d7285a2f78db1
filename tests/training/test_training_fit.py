"""fit and FitResult: reproducible, side-effect free, faithful after a round trip."""

import copy
import math
from functools import partial

import pytest
import torch
from sealed import rewritten
from torch import nn

import bayesws as bws
from bayesws.evidence.batches import Batches
from bayesws.evidence.function_space import FunctionSpace
from bayesws.evidence.jackknife import Jackknifed
from bayesws.sharing import doubly_stochastic
from bayesws.training.objectives import Penalties, Setting, TaskLoss


@pytest.fixture(scope="module")
def digits():
    return bws.data.load("digits", task="upright", seed=0, train_size=200, test_size=100)


def small():
    torch.manual_seed(3)
    return bws.models.WSCNN(hidden_channels=2)


def test_a_shared_start_closes_what_breaks_sharing_and_nothing_else(digits):
    """No step on the hyperparameters is due before the last epoch: the precisions are those of the start."""
    net = bws.models.WSCNN(hidden_channels=2)
    with pytest.warns(UserWarning, match="only 0 steps"):
        fit = bws.fit(net, digits.train, epochs=1, burn_in=0.9, shared_start=3.0, keep_posterior=False)
    breaking = {name: float(fit.prior[name]) for name in fit.prior if name.endswith((".free", ".offset"))}
    assert set(breaking.values()) == {3.0}
    assert all(float(fit.prior[name]) == 0.0 for name in set(fit.prior) - set(breaking))


def test_a_shared_start_counts_how_many_inputs_an_output_is_made_of():
    """Beside a convolution of 9 taps in two parts: one of both, of twice as many, and a dense map of 16 pixels."""
    settings = {"padding": 1, "padding_mode": "circular"}
    parts = bws.layers.GroupConv2d(1, 1, 3, parts=2, **settings)
    sums = bws.layers.Branches(conv=torch.nn.Conv2d(2, 2, 3, **settings), parts=parts, fc=bws.layers.Linear2d(2, 2, 4))
    net = torch.nn.Sequential(sums, torch.nn.Flatten(), torch.nn.Linear(32, 3))
    data = torch.randn(9, 2, 4, 4), torch.arange(9) % 3
    with pytest.warns(UserWarning, match="only 0 steps"):
        fit = bws.fit(net, data, epochs=1, burn_in=0.9, keep_posterior=False)
    started = {name: float(value) for name, value in fit.prior.items()}
    assert started["0.parts.weight"] == started["2.weight"] == 0.0
    assert started["0.conv.weight"] == pytest.approx(4 + math.log(2))
    assert started["0.fc.weight"] == pytest.approx(8 + math.log(2 * 16 / 9))
    assert started["0.fc.bias"] == pytest.approx(8)  # of the sum of three biases


@pytest.mark.parametrize("objective", bws.objectives.OBJECTIVES)
def test_fit_is_reproducible_to_the_last_bit_and_leaves_the_network_alone(digits, objective):
    net = small()
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(1)
    first = bws.fit(net, digits.train, objective=objective, epochs=12, burn_in=0.2, every=3)
    torch.manual_seed(2)  # the global generator must not matter
    second = bws.fit(net, digits.train, objective=objective, epochs=12, burn_in=0.2, every=3)
    assert first.log_evidence == second.log_evidence
    assert first.history == second.history
    assert torch.equal(first.predict(digits.test[0], "posterior"), second.predict(digits.test[0], "posterior"))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize("objective", ["evidence", "task"])
def test_training_lowers_the_loss_and_raises_the_evidence(digits, objective):
    torch.manual_seed(0)
    net = bws.models.WSCNN(hidden_channels=4)
    settings = {"epochs": 80, "batch_size": 20, "burn_in": 0.2, "every": 4}
    settings |= {"weight_decays": (1e-3,)} if objective == "task" else {}
    fit = bws.fit(net, digits.train, objective=objective, **settings)
    assert fit.history[-1]["loss"] < 0.8 * fit.history[0]["loss"]
    evidences = [r["log_evidence"] for r in fit.history if "log_evidence" in r]
    if objective == "evidence":
        assert fit.log_evidence > evidences[0]
        parts = fit.evidence
        assert parts.log_evidence == pytest.approx(parts.data_fit - parts.scatter - parts.occam)
    else:
        assert not evidences and fit.recipe.weight_decay == 1e-3


def test_weight_decay_is_the_best_of_the_grid_on_held_out_data(digits):
    # λ = 1e4 leaves nothing to learn with, so any sensible choice avoids it
    fit = bws.fit(small(), digits.train, objective="task", epochs=40, batch_size=20, weight_decays=(1e-3, 1e4))
    assert fit.recipe.weight_decay == 1e-3


def test_the_reported_evidence_is_the_one_of_the_returned_network(digits):
    fit = bws.fit(small(), digits.train, epochs=10, burn_in=0.2, every=3)
    with torch.no_grad():
        again = bws.log_evidence(fit.model, digits.train, prior=fit.prior)
    assert float(again) == pytest.approx(fit.log_evidence, rel=1e-6)  # float32 sums over other batches


def test_save_and_load_give_the_same_result(digits, tmp_path):
    fit = bws.fit(small(), digits.train, epochs=4)
    fit.save(tmp_path / "fit")
    fit.save(tmp_path / "fit")  # over itself
    back = bws.FitResult.load(tmp_path / "fit")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["fit", "fit.json", "weights.safetensors"]
    assert torch.equal(back.predict(digits.test[0], "posterior"), fit.predict(digits.test[0], "posterior"))
    assert back.evidence == fit.evidence and back.sharing == fit.sharing and back.history == fit.history
    assert back.prior.keys() == fit.prior.keys()
    assert all(torch.equal(back.prior[k], fit.prior[k]) for k in fit.prior)


SMALL = {"hidden_channels": 2, "kernel_size": 3}
MODELS = {
    "WSCNN": lambda: bws.models.WSCNN(stack="product", pathways=("shared",), norm="layer", pooling=False, **SMALL),
    "WSCNN, a group for every layer": lambda: bws.models.WSCNN(
        hidden_channels=4, group=("dihedral", bws.sharing.known_group("flips", 3, 3)), pathways=("shared",)
    ),
    "WSResNet": lambda: bws.models.WSResNet(1, widths=(1, 2, 1), head_features=4, group="quarter-turns", **SMALL),
    "CNN": lambda: bws.models.CNN(norm="layer", padding=1, **SMALL),
    "ResNet": lambda: bws.models.ResNet(1, widths=(2,), head_features=4, padding_mode="circular", **SMALL),
}


@pytest.mark.filterwarnings("ignore:layer .* normalises")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_every_network_of_ours_can_be_loaded(make, digits, tmp_path):
    torch.manual_seed(0)
    fit = bws.fit(make(), digits.train, epochs=3, burn_in=0.4, batch_size=50)
    fit.save(tmp_path / "fit")
    back = bws.FitResult.load(tmp_path / "fit")
    assert type(back.model) is type(fit.model) and back.model.settings == fit.model.settings
    for kind in ("map", "posterior"):
        assert torch.equal(back.predict(digits.test[0], kind), fit.predict(digits.test[0], kind))
    assert back.evidence == fit.evidence and back.sharing == fit.sharing


def test_a_fit_from_before_normalisation_and_pooling_were_settings_can_be_loaded(digits, tmp_path):
    fit = bws.fit(small(), digits.train, epochs=1)
    fit.save(tmp_path / "fit")

    def older(record):
        settings = record["network"]["settings"]
        assert (settings.pop("norm"), settings.pop("pooling")) == (None, True)

    rewritten(tmp_path / "fit" / "fit.json", older)
    back = bws.FitResult.load(tmp_path / "fit")
    assert torch.equal(back.predict(digits.test[0]), fit.predict(digits.test[0]))


def test_a_users_own_network_and_a_group_object_can_be_loaded(digits, tmp_path):
    torch.manual_seed(0)
    own = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 10))
    fit = bws.fit(own, digits.train, epochs=2)
    fit.save(tmp_path / "own")
    with pytest.raises(ValueError, match="pass one as model="):
        bws.FitResult.load(tmp_path / "own")
    back = bws.FitResult.load(tmp_path / "own", model=copy.deepcopy(own))
    assert torch.equal(back.predict(digits.test[0]), fit.predict(digits.test[0]))
    group = bws.sharing.known_group("half-turns", 3, 3)
    grouped = bws.fit(bws.models.WSCNN(hidden_channels=2, group_size=2, group=group), digits.train, epochs=1)
    grouped.save(tmp_path / "grouped")
    loaded = bws.FitResult.load(tmp_path / "grouped")
    assert torch.equal(loaded.model.lift.representations(), grouped.model.lift.representations())


def test_noise_of_a_regression_is_found():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=generator)
    y = x @ torch.randn(5, 2, generator=generator) + 0.3 * torch.randn(400, 2, generator=generator)
    torch.manual_seed(0)
    fit = bws.fit(nn.Linear(5, 2), (x, y), "regression", curvature="full", epochs=60, batch_size=50)
    # σ̂ of 800 residuals has a relative standard error of 1/√1600 = 2.5 %: four of them
    assert fit.likelihood.log_noise.exp().item() == pytest.approx(0.3, rel=0.1)


def test_structure_is_learned_by_either_objective():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=generator)
    w = torch.randn(3, 4, generator=generator)
    y = torch.stack([x.roll(-g, 1) @ w for g in range(3)], -1)
    for objective in ("evidence", "task"):
        torch.manual_seed(0)
        layer = bws.layers.WSLinear(3, 4, bias=False, group_size=3, pathways=("shared",))
        start = layer.stack.logits[0].detach().clone()
        chosen = bws.objectives.TaskLoss(weight_decays=(0.0,)) if objective == "task" else objective
        fit = bws.fit(layer, (x, y), "regression", chosen, epochs=20, batch_size=64)
        assert not torch.equal(fit.model.stack.logits[0], start)
        r = fit.model.representations()
        assert torch.allclose(r.sum(-1), torch.ones(3, 3), atol=1e-5)


def test_unconverged_stacks_are_reported(digits, monkeypatch):
    torch.manual_seed(0)
    net = bws.models.WSCNN(hidden_channels=2, stack="product")
    monkeypatch.setattr(doubly_stochastic, "sinkhorn", partial(doubly_stochastic.sinkhorn, max_iterations=1))
    with pytest.warns(UserWarning, match="Sinkhorn stopped after"):
        fit = bws.fit(net, digits.train, objective="task", epochs=1, weight_decays=(0.0,))
    assert any("Sinkhorn" in note for note in fit.notes)


def test_a_fit_whose_posterior_cannot_be_held_says_so():
    """laplace-torch's Kronecker factors take weights of at most four dimensions; the fit itself is none the worse."""
    net = torch.nn.Sequential(torch.nn.Conv3d(1, 1, 2), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    x, y = torch.randn(8, 1, 3, 3, 3), torch.arange(8) % 2
    with pytest.warns(UserWarning, match="no posterior was kept"):
        fit = bws.fit(net, (x, y), epochs=12, every=2, progress=False)
    assert fit.predict(x).shape == (8, 2)
    with pytest.raises(ValueError, match="without a posterior"):
        fit.predict(x, kind="posterior")


def planted(examples=16):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, 3, generator=generator)
    w = torch.randn(3, 4, generator=generator)
    return x, torch.stack([x.roll(-g, 1) @ w for g in range(3)], -1)


def soft_layer(**changes):
    torch.manual_seed(0)
    return bws.layers.WSLinear(3, 4, bias=False, group_size=3, pathways=("shared",), **changes)


TASK = {"likelihood": "regression", "objective": "task", "weight_decays": (0.01,), "progress": False}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normaliser": 0.1},
        {"entropy": 2.0},
        {"normaliser": 0.3, "entropy": 0.5, "structure_rate": 0.2},
        {"entropy": 2.0, "rest_structure": True},
        {"rest_structure": True, "structure_rate": 0.01},
    ],
    ids=str,
)
def test_the_task_loss_is_the_published_one(changes):
    """Trained by hand: W_g = R_g w, Adam on the mean of -log p + ½ λ ‖w‖² + penalties, logits at rest or not."""
    data, epochs, rate = planted(), 10, 0.05
    net = soft_layer()
    plan = {"epochs": epochs, "batch_size": 16, "learning_rate": rate, "burn_in": 0.4, "warm_up": 1}
    found = bws.fit(net, data, **TASK, **plan, **changes)
    w, logits, log_noise = (
        t.detach().clone().requires_grad_() for t in (net.shared, net.stack.logits[0], torch.zeros(()))
    )
    groups = [{"params": [w, log_noise]}, {"params": [logits]}]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
    (x, y), share = data, changes.get("structure_rate", rate) / rate
    for epoch in range(epochs):
        cosine = 0.5 * (1 + math.cos(math.pi * max(0, epoch / epochs - 0.7) / 0.3))
        optimiser.param_groups[0]["lr"], optimiser.param_groups[1]["lr"] = rate * cosine, rate * cosine * share
        soft = bws.sharing.sinkhorn(logits).matrix
        stack = torch.cat([torch.eye(3)[None], soft])
        f = torch.einsum("gnm,om,bn->bog", stack, w[:, 0], x)
        squares = (y - f).square().sum() / len(x)
        loss = 0.5 * squares * (-2 * log_noise).exp() + 12 * log_noise + 0.5 * 0.01 * w.square().sum()
        rows, columns = logits.exp().sum(2).log(), logits.exp().sum(1).log()
        loss = loss + changes.get("normaliser", 0) * (rows.square().mean() + columns.square().mean())
        loss = loss - changes.get("entropy", 0) * (soft * soft.log()).sum() / (2 * 3)
        optimiser.zero_grad()
        loss.backward()
        if changes.get("rest_structure") and epoch < 4:
            logits.grad = None
        optimiser.step()
    # float32, ten steps of Adam: rounding of a gradient near zero moves a step by its sign
    torch.testing.assert_close(found.model.stack.logits[0].detach(), logits.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.model.shared.detach(), w.detach(), rtol=1e-3, atol=1e-4)
    assert not found.model.free.any()
    assert not torch.equal(logits, net.stack.logits[0])


def test_the_penalties_of_several_layers_are_summed_and_averaged(digits):
    """Normalisers of the layers are summed, entropies are averaged: seen in the gradients of the first step."""
    torch.manual_seed(0)
    net = bws.models.WSCNN(hidden_channels=2, stack="product")
    data, likelihood = Batches(digits.train, 200), bws.Categorical()
    penalties = Penalties(normaliser=0.3, entropy=0.7)
    setting = Setting(net, data, likelihood, bws.Schedule(), bws.Curvature(), 0)
    logits = bws.layers.structure(net)
    found = torch.autograd.grad(TaskLoss().begin(setting, penalties).penalty(), logits)
    entropies = [bws.sharing.mean_entropy(layer.representations()) for layer in (net.lift, net.group_convs[0])]
    expected = 0.3 * sum(map(bws.sharing.normaliser, logits)) + 0.7 * (entropies[0] + entropies[1]) / 2
    for one, other in zip(found, torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_the_residual_is_for_the_evidence_alone():
    data = planted()
    changes = {"epochs": 8, "burn_in": 0.2, "progress": False}
    by_task = bws.fit(soft_layer(), data, "regression", "task", weight_decays=(0.0,), **changes)
    by_evidence = bws.fit(soft_layer(), data, "regression", "evidence", **changes)
    assert not by_task.model.free.any() and by_evidence.model.free.any()
    assert by_task.model.free.requires_grad and "residual" in by_task.evidence.by_pathway
    with torch.no_grad():
        again = bws.log_evidence(by_task.model, data, by_task.likelihood, prior=by_task.prior)
    assert float(again) == pytest.approx(by_task.log_evidence, rel=1e-5)  # float32 sums over other batches


@pytest.mark.parametrize("rests", [False, True])
def test_logits_rest_in_the_burn_in_or_not(rests):
    net = soft_layer()
    fits = [
        bws.fit(net, planted(), **TASK, epochs=epochs, burn_in=burn_in, rest_structure=rests, warm_up=1)
        for epochs, burn_in in ((3, 0.99), (4, 0.75))
    ]
    moved = [not torch.equal(f.model.stack.logits[0], net.stack.logits[0]) for f in fits]
    assert moved == ([False, True] if rests else [True, True])
    assert all(f.model.stack.logits[0].requires_grad for f in fits)


BAD_TASK = [
    ({"normaliser": -0.1}, "normaliser=-0.1: expected a weight of at least 0"),
    ({"entropy": math.nan}, "entropy=nan: expected"),
    ({"entropy": math.inf}, "entropy=inf: expected"),
    ({"structure_rate": 0.0}, "structure_rate=0.0: expected a positive number"),
    ({"objective": "evidence", "structure_rate": math.inf}, "structure_rate=inf: expected a positive number"),
]


@pytest.mark.parametrize("changes, message", BAD_TASK, ids=[str(c) for c, _ in BAD_TASK])
def test_bad_weights_of_penalties(changes, message):
    with pytest.raises(ValueError, match=message):
        settings = TASK | changes
        if changes.get("objective") == "evidence":
            del settings["weight_decays"]
        bws.fit(soft_layer(), planted(), **settings)


@pytest.mark.parametrize("penalty", ["normaliser", "entropy"])
def test_penalties_need_a_layer_that_offers_them(penalty):
    with pytest.raises(ValueError, match=rf"{penalty}=0.1: no layer offers .*offered: none.*use 0"):
        bws.fit(soft_layer(constraint="none"), planted(), **TASK, epochs=1, **{penalty: 0.1})


@pytest.mark.parametrize("objective", ["evidence", "task"])
@pytest.mark.parametrize("constraint", ["rows", "none"])
def test_ablations_can_be_fitted(objective, constraint):
    start = soft_layer(constraint=constraint)
    settings = TASK | {"objective": objective, "epochs": 40, "burn_in": 0.1, "batch_size": 8}
    if objective == "evidence":
        del settings["weight_decays"]
    fit = bws.fit(start, planted(), **settings)
    assert not any("Sinkhorn" in note for note in fit.notes) and math.isfinite(fit.log_evidence)
    assert fit.history[-1]["loss"] < 0.9 * fit.history[0]["loss"]
    assert not torch.equal(fit.model.representations(), start.representations())


def test_an_ablation_is_saved_and_an_older_fit_loads(digits, tmp_path):
    torch.manual_seed(0)
    net = bws.models.WSCNN(hidden_channels=2, stack="dense", constraint="rows")
    fit = bws.fit(net, digits.train, objective="task", epochs=1, weight_decays=(0.0,), entropy=0.1)
    fit.save(tmp_path / "rows")
    back = bws.FitResult.load(tmp_path / "rows")
    assert torch.equal(back.model.lift.representations(), fit.model.lift.representations())
    assert back.recipe == fit.recipe and back.recipe.settings["entropy"] == 0.1
    older = bws.fit(small(), digits.train, epochs=1)
    older.save(tmp_path / "older")
    rewritten(tmp_path / "older" / "fit.json", lambda record: record["network"]["settings"].pop("constraint"))
    assert torch.equal(bws.FitResult.load(tmp_path / "older").predict(digits.test[0]), older.predict(digits.test[0]))


def test_rows_that_are_too_few_give_way_to_kronecker_factors(digits):
    """Three rows hold no more than three effective parameters: 200 digits determine more."""
    few = bws.objectives.ByEvidence(curvature=bws.Curvature("full", samples=1, rows=3))
    settings = {"epochs": 12, "burn_in": 0.2, "every": 3, "keep_posterior": False, "seed": 1}
    with pytest.warns(UserWarning, match="more parameters than sampled rows can hold"):
        fit = bws.fit(small(), digits.train, objective=few, **settings)
    assert sum(sum(row.effective.values()) for row in fit.sharing) > 3
    enough = bws.fit(small(), digits.train, objective=bws.objectives.ByEvidence(curvature="full"), **settings)
    assert not any("sampled rows can hold" in note for note in enough.notes)


def test_an_evidence_of_too_few_rows_is_not_what_a_fit_ends_with(digits, monkeypatch):
    """By Kronecker factors, and the curvature says so."""
    monkeypatch.setattr("bayesws.evidence.by_default.AT_THE_END", 0)  # else all columns
    asked = bws.Curvature("full", samples=1, rows=3)
    settings = {"objective": "task", "weight_decays": (1e-3,), "epochs": 12, "keep_posterior": False}
    fit = bws.fit(small(), digits.train, curvature=asked, **settings)
    assert fit.evidence.curvature == bws.Curvature("kron")


@pytest.mark.parametrize("count", [4, 40])
def test_a_task_loss_settles_its_precisions_on_a_part_of_the_rows(count, monkeypatch):
    """In function space and in the space of parameters: all parts only in the last of two hundred steps."""
    seen = []
    for kind in (FunctionSpace, Jackknifed):
        real = kind.effective

        def counted(self, logs, real=real):
            seen.append(isinstance(self, Jackknifed) or len(self.parts) > 1)
            return real(self, logs)

        monkeypatch.setattr(kind, "effective", counted)
    monkeypatch.setattr("bayesws.evidence.by_default.AT_THE_END", 0)  # else all columns
    asked, data = bws.Curvature("full", samples=2), (torch.randn(count, 5), torch.arange(count) % 3)
    settings = {"objective": "task", "weight_decays": (1e-3,), "epochs": 5, "keep_posterior": False}
    fit = bws.fit(nn.Linear(5, 3), data, curvature=asked, **settings)
    assert fit.evidence.curvature == asked and 0 < sum(seen) < 12

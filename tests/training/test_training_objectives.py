"""The objectives: each against the minimum of what it says it minimises, found another way."""

import math
from dataclasses import replace

import pytest
import torch
from refusals import assert_refused
from scipy.optimize import minimize

import bayesws as bws
from bayesws.evidence.batches import Batches
from bayesws.layers import WSLinear
from bayesws.training.held_out import Split
from bayesws.training.objectives import Constrained, FixedRatio, Penalties, Setting, TaskLoss, Validated
from bayesws.training.objectives.constrained import Relaxation
from bayesws.training.schedule import Schedule

DOUBLE = {"dtype": torch.float64}
NOISE = bws.Gaussian(0.5, learn=False, **DOUBLE)
LONG = {"epochs": 1500, "batch_size": 1000, "learning_rate": 0.02, "progress": False}


def planted(strength, examples=40, seed=0):
    """y_g = (R_g w + v_g) · x + noise with two elements, and a layer that could say so."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = WSLinear(4, 2, bias=False, group_size=4, stack="fixed", group="cyclic-shifts", **DOUBLE)
    w = strength**0.5 * torch.randn(2, 1, 1, 4, generator=generator, **DOUBLE)
    kernel = torch.einsum("gnm,ogim->ogin", net.representations(), w.expand(2, 4, 1, 4))
    kernel = kernel + (1 - strength) ** 0.5 * torch.randn(2, 4, 1, 4, generator=generator, **DOUBLE)
    x = torch.randn(examples, 1, 4, generator=generator, **DOUBLE)
    f = torch.einsum("ogin,bin->bog", kernel, x)
    return net, (x.flatten(1), f + 0.5 * torch.randn(f.shape, generator=generator, **DOUBLE))


def test_fixed_ratio_is_ridge_regression_with_two_penalties():
    """Closed form: (Σ JᵀJ / σ² + n λ diag(r)) θ = Σ Jᵀ y / σ², with J the dense Jacobian; Adam ends within 1e-5."""
    net, data = planted(0.5)
    ratio, decay = 30.0, 0.01
    fit = bws.fit(net, data, NOISE, FixedRatio(ratio=ratio, weight_decays=(decay,)), **LONG)
    assert fit.recipe.chosen == {"ratios": {"free": ratio}, "weight_decay": decay}
    names = ["shared", "free"]
    parameters = {n: getattr(net, n).detach() for n in names}
    blocks = torch.func.jacrev(lambda p: torch.func.functional_call(net, p, (data[0],)).flatten())(parameters)
    j = torch.cat([blocks[n].flatten(1) for n in names], 1)
    sizes = [parameters[n].numel() for n in names]
    penalty = torch.cat([torch.full((sizes[0],), decay), torch.full((sizes[1],), decay * ratio)])
    wanted = torch.linalg.solve(
        j.T @ j / 0.25 + len(data[0]) * torch.diag(penalty.double()), j.T @ data[1].flatten() / 0.25
    )
    found = torch.cat([getattr(fit.model, n).detach().flatten() for n in names])
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(("strength", "slack"), [(1.0, 1.0), (0.3, 1.0), (0.3, 0.05)])
def test_constrained_ends_at_the_saddle_point(strength, slack):
    """Eliminating u and λ leaves loss(θ, γ) + ½ s γ² at |γ| = λ / s: L-BFGS of scipy finds that minimum, too.

    Dual ascent circles it; its loss may be 1 % off after the rate has gone down.
    """
    net, data = planted(strength)
    decay = 0.003
    fit = bws.fit(net, data, NOISE, Constrained(slacks=(slack,), weight_decays=(decay,)), **LONG)
    shapes = {n: getattr(net, n).shape for n in ("shared", "free")}
    sizes = [shape.numel() for shape in shapes.values()]

    def loss(flat):
        theta = torch.tensor(flat, requires_grad=True)
        shared, free, scale = theta.split([*sizes, 1])
        state = {"shared": shared.view(shapes["shared"]), "free": scale * free.view(shapes["free"])}
        outputs = torch.func.functional_call(net, state, (data[0],))
        value = -NOISE.log_prob(outputs, data[1]) / len(data[0]) + 0.5 * slack * scale.square().sum()
        value = value + 0.5 * decay * (shared.square().sum() + free.square().sum())
        value.backward()
        return value.item(), theta.grad.numpy()

    start = torch.cat([net.shared.detach().flatten(), net.free.detach().flatten(), torch.ones(1)]).numpy()
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000})
    scale = abs(best.x[-1])
    # the weight decay of γ v with γ folded in is not seen any more: compare what the data see
    nll = fit.nll(*data, kind="map")
    state = torch.tensor(best.x[:-1]).split(sizes)
    twin = bws.layers.WSLinear(4, 2, bias=False, group_size=4, stack="fixed", group="cyclic-shifts", **DOUBLE)
    with torch.no_grad():
        twin.shared.copy_(state[0].view(shapes["shared"]))
        twin.free.copy_(scale * state[1].view(shapes["free"]))
        wanted = -float(NOISE.log_prob(twin(data[0]), data[1])) / len(data[0])
    assert nll == pytest.approx(wanted, abs=0.01 * abs(wanted) + 0.01)
    assert abs(fit.history[-1]["scale.free"]) == pytest.approx(scale, abs=0.05)
    assert torch.allclose(fit.model.free.norm(), twin.free.norm(), atol=0.1)


def test_multiplier_of_a_constraint_that_is_met_falls_to_nothing():
    net, _ = planted(1.0)
    relaxation = Relaxation(net, slack=2.0)
    for _ in range(2000):
        relaxation.ascend()
    assert float(relaxation.multipliers["free"]) == pytest.approx(2.0, rel=1e-3)  # |γ| = u = λ / s
    with torch.no_grad():
        relaxation.scales["free"].zero_()
    for _ in range(2000):
        relaxation.ascend()
    assert float(relaxation.multipliers["free"]) < 1e-3


def test_folding_leaves_the_outputs_as_they_are():
    net, (x, _) = planted(0.5)
    relaxation = Relaxation(net, slack=1.0)
    with torch.no_grad():
        relaxation.scales["free"].fill_(-0.7)
        before = relaxation.outputs(x)
        assert not torch.allclose(before, net(x))
        relaxation.fold()
    assert torch.allclose(before, net(x)) and torch.allclose(before, relaxation.outputs(x))


@pytest.mark.parametrize(("strength", "expected"), [(1.0, (100.0, 1000.0)), (0.0, (1.0,))])
def test_validated_ratio_follows_the_truth(strength, expected):
    """Of few data of a fully shared map the free weights should be held, of one without sharing they should not."""
    net, data = planted(strength, examples=24)
    objective = Validated(ratios=(100.0, 1.0, 1000.0), weight_decays=(0.003, 0.03))
    fit = bws.fit(net, data, NOISE, objective, **(LONG | {"epochs": 300}))
    assert fit.recipe.chosen["ratios"]["free"] in expected


def test_search_finds_the_best_of_every_axis(monkeypatch):
    """By the losses that training gives to every combination: the axis by axis optimum of that table."""
    net, data = planted(0.5, examples=16)
    setting = Setting(net, Batches(data, 100, torch.device("cpu")), NOISE, Schedule(epochs=20), bws.Curvature(), 0)
    table, trained = {}, []

    class Told:
        def __init__(self, setting, work):
            self.penalties, self.net = work.penalties, setting.net

        def train(self, watching, checkpoint, what):
            r, d = self.penalties.ratios["free"], self.penalties.weight_decay
            trained.append((r, d))
            table[r, d] = (math.log10(r) - 1) ** 2 + (math.log10(d) + 2) ** 2
            with torch.no_grad():  # a network whose held-out loss is a known function of the penalties
                self.net.shared.zero_(), self.net.free.zero_()
                self.net.free.add_(table[r, d] * 100)

    monkeypatch.setattr("bayesws.training.held_out.Loop", Told)
    objective = Validated(ratios=(100.0, 1.0, 10.0), weight_decays=(1e-1, 1e-2), held_out=0.25)
    found = objective.choose(setting, Split(setting, lambda what: None))
    assert (found.ratios, found.weight_decay) == ({"free": 10.0}, 1e-2)
    assert trained == [(100.0, 1e-1), (100.0, 1e-2), (1.0, 1e-2), (10.0, 1e-2)]  # nothing twice


def test_task_is_what_it_was():
    """The plain task loss with one weight decay is every other penalised objective without what is its own."""
    net, data = planted(0.5)
    short = LONG | {"epochs": 30}
    task = bws.fit(net, data, NOISE, "task", weight_decays=(0.01,), **short)
    as_value = bws.fit(net, data, NOISE, TaskLoss(weight_decays=(0.01,)), **short)
    assert torch.equal(as_value.model.free, task.model.free)
    same = bws.fit(net, data, NOISE, FixedRatio(ratio=1.0, weight_decays=(0.01,)), **short)
    assert torch.allclose(same.model.free, task.model.free, atol=1e-12)
    assert replace(Penalties(), slack=1.0) != Penalties()


@pytest.mark.parametrize("kind", [TaskLoss, Constrained])
def test_a_rate_is_chosen_on_held_out_data(kind):
    """Of a schedule's rate too low to learn and a good one the good one: then the fit is the one at that rate."""
    net, data = planted(0.5)
    slow, short = LONG | {"epochs": 30, "learning_rate": 1e-6}, LONG | {"epochs": 30, "learning_rate": 0.02}
    only = {"slacks": (1.0,)} if kind is Constrained else {}
    chosen = bws.fit(net, data, NOISE, kind(weight_decays=(0.01,), learning_rates=(1e-5, 0.02), **only), **slow)
    assert chosen.recipe.chosen["learning_rate"] == 0.02
    given = bws.fit(net, data, NOISE, kind(weight_decays=(0.01,), **only), **short)
    for name, weights in given.model.state_dict().items():  # but for the rounding of (rate / 1e-6) · 1e-6
        torch.testing.assert_close(chosen.model.state_dict()[name], weights, rtol=1e-9, atol=1e-12)
    kept = bws.fit(net, data, NOISE, kind(weight_decays=(0.01,), learning_rates=(1e-6,), **only), **short)
    assert "learning_rate" not in kept.recipe.chosen and torch.equal(kept.model.free, given.model.free)


def pull(net, x, y, outputs):
    """A further term: ½ ‖w‖² of the shared weights, nats per datum."""
    return 0.5 * net.shared.square().sum()


def test_a_further_term_is_part_of_any_loss():
    """½ a ‖w‖² as a term is the ratio's closed form with another penalty on the shared weights: equal to 1e-5."""
    net, data = planted(0.5)
    by_term = bws.fit(net, data, NOISE, TaskLoss(weight_decays=(0.01,), terms=(pull,)), **LONG)
    sizes = [net.shared.numel(), net.free.numel()]
    blocks = torch.func.jacrev(lambda p: torch.func.functional_call(net, p, (data[0],)).flatten())(
        {n: getattr(net, n).detach() for n in ("shared", "free")}
    )
    j = torch.cat([blocks[n].flatten(1) for n in ("shared", "free")], 1) / 0.5
    penalty = torch.cat([torch.full((sizes[0],), 1.01), torch.full((sizes[1],), 0.01)]).double()
    wanted = torch.linalg.solve(j.T @ j + len(data[0]) * torch.diag(penalty), j.T @ data[1].flatten() / 0.5)
    found = torch.cat([by_term.model.shared.detach().flatten(), by_term.model.free.detach().flatten()])
    assert torch.allclose(found, wanted, atol=1e-5)
    short = LONG | {"epochs": 30}
    plain, pulled = (
        bws.fit(net, data, NOISE, bws.objectives.ByEvidence(terms=terms), **short) for terms in ((), (pull,))
    )
    assert pulled.model.shared.norm() < plain.model.shared.norm()
    assert pulled.recipe.settings["terms"] == [f"{__name__}.pull"]


class Plain:
    """An objective of a user's own, in one class: the mean negative log likelihood and no more."""

    name = "plain"

    def check(self, setting):
        pass

    def choose(self, setting, held_out):
        return None

    def chosen_settings(self, chosen):
        return {}

    def begin(self, setting, chosen):
        return TaskLoss(weight_decays=(0.0,)).begin(setting, Penalties())


def test_an_objective_of_ones_own_trains_by_the_same_loop():
    net, data = planted(0.5)
    own = bws.fit(net, data, NOISE, Plain(), **LONG | {"epochs": 20})
    task = bws.fit(net, data, NOISE, "task", weight_decays=(0.0,), **LONG | {"epochs": 20})
    assert torch.equal(own.model.free, task.model.free) and own.recipe.objective == "plain"


BAD = {
    "ratio 0": (lambda: FixedRatio(ratio=0.0), r"ratio=0.0: expected positive"),
    "no ratios": (lambda: Validated(ratios=()), r"ratios=\(\): expected positive"),
    "slack nan": (lambda: Constrained(slacks=(math.nan,)), "slacks="),
    "unknown": (
        lambda: bws.fit(*planted(1.0), NOISE, "penalised"),
        "objective='penalised': expected one of",
    ),
    "a class": (lambda: bws.fit(*planted(1.0), NOISE, TaskLoss), "objective=<class"),
    "another's setting": (
        lambda: bws.fit(*planted(1.0), NOISE, weight_decays=(0.1,)),
        "unknown argument 'weight_decays'.*it belongs to TaskLoss",
    ),
    "nobody's setting": (lambda: bws.fit(*planted(1.0), NOISE, epoch=3), "unknown argument 'epoch'.*epochs"),
    "rate": (lambda: TaskLoss(learning_rates=(0.0,)), "learning_rates=0.0: expected positive numbers in a tuple"),
    "no tuple": (lambda: TaskLoss(learning_rates=0.1), "learning_rates=0.1: expected positive numbers in a tuple"),
    "held out": (lambda: TaskLoss(held_out=1.5), "held_out=1.5: expected a share"),
    "way": (lambda: bws.objectives.ByEvidence(structure_way="thrice"), "structure_way='thrice'"),
    "nothing free": (
        lambda: bws.fit(torch.nn.Linear(4, 2), (torch.ones(5, 4), torch.ones(5, 2)), "regression", "constrained"),
        "free weights beside shared ones",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name):
    assert_refused(*BAD[name])

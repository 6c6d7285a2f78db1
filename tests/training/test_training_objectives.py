"""Rivals of the evidence: each against the minimum of what it says it minimises, found another way."""

import math
from dataclasses import replace

import pytest
import torch
from refusals import assert_refused
from scipy.optimize import minimize

import bayesws as bws
from bayesws.evidence.batches import Batches
from bayesws.layers import WSLinear
from bayesws.training.objectives.relaxation import Relaxation
from bayesws.training.objectives.rivals import Constrained, Fixed, Task, Validated, choose_penalties
from bayesws.training.schedule import Penalties, Schedule

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
    fit = bws.fit(net, data, NOISE, Fixed(ratio), weight_decays=(decay,), **LONG)
    assert fit.settings["ratios"] == {"free": ratio} and fit.weight_decay == decay
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
    fit = bws.fit(net, data, NOISE, Constrained((slack,)), weight_decays=(decay,), **LONG)
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
    rival = Validated((100.0, 1.0, 1000.0))
    fit = bws.fit(net, data, NOISE, rival, weight_decays=(0.003, 0.03), **(LONG | {"epochs": 300}))
    assert fit.settings["ratios"]["free"] in expected


def test_search_finds_the_best_of_every_axis(monkeypatch):
    """By the losses that training gives to every combination: the axis by axis optimum of that table."""
    net, data = planted(0.5, examples=16)
    plan, batches = Schedule(epochs=20), Batches(data, 100, torch.device("cpu"))
    table = {}

    class Told:
        def __init__(self, net, data, likelihood, plan, seed, objective, curvature, penalties):
            self.penalties, self.net = penalties, net

        def train(self, watching, checkpoint, what):
            r, d = self.penalties.ratios["free"], self.penalties.weight_decay
            table[r, d] = (math.log10(r) - 1) ** 2 + (math.log10(d) + 2) ** 2
            with torch.no_grad():  # a network whose held-out loss is a known function of the penalties
                self.net.shared.zero_(), self.net.free.zero_()
                self.net.free.add_(table[r, d] * 100)

    monkeypatch.setattr("bayesws.training.objectives.rivals.Run", Told)
    found = choose_penalties(
        Validated((100.0, 1.0, 10.0)), net, batches, NOISE, plan, 0, (1e-1, 1e-2), Penalties(), 0.25, lambda what: None
    )
    assert (found.ratios, found.weight_decay) == ({"free": 10.0}, 1e-2)
    assert set(table) == {(100.0, 1e-1), (100.0, 1e-2), (1.0, 1e-2), (10.0, 1e-2)}  # nothing was trained twice


def test_task_is_what_it_was():
    """The plain task loss with one weight decay is every rival without what is its own."""
    net, data = planted(0.5)
    short = LONG | {"epochs": 30}
    task = bws.fit(net, data, NOISE, "task", weight_decays=(0.01,), **short)
    assert torch.equal(bws.fit(net, data, NOISE, Task(), weight_decays=(0.01,), **short).model.free, task.model.free)
    same = bws.fit(net, data, NOISE, Fixed(1.0), weight_decays=(0.01,), **short)
    assert torch.allclose(same.model.free, task.model.free, atol=1e-12)
    assert replace(Penalties(), slack=1.0) != Penalties()


BAD = {
    "ratio 0": (lambda: Fixed(0.0), r"ratio=0.0: expected positive"),
    "no ratios": (lambda: Validated(()), r"ratios=\(\): expected positive"),
    "slack nan": (lambda: Constrained((math.nan,)), "slacks="),
    "unknown": (
        lambda: bws.fit(*planted(1.0), NOISE, "penalised"),
        "objective='penalised': expected one of",
    ),
    "nothing free": (
        lambda: bws.fit(torch.nn.Linear(4, 2), (torch.ones(5, 4), torch.ones(5, 2)), "regression", "constrained"),
        "free weights beside shared ones",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name):
    assert_refused(*BAD[name])

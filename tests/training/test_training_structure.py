"""Structure that is no stack: a layer with a learned lengthscale, written as any user would, is learned and told of."""

import math
import warnings
from typing import ClassVar

import oracles
import pytest
import torch
from refusals import assert_refused
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import bayesws as bws
from bayesws.layers import Declaration, Pathway, Status, Structure, declare, layers_of
from bayesws.report import write_report
from bayesws.training.checkpoint import Checkpoint

POSITIONS, OUTPUTS, NOISE, TRUTH = 10, 40, 1.0, 1.5


class Smooth(nn.Module):
    """y = W x, W = V S(ω): rows of unit norm, S_ij ∝ exp(-½ (i - j)² / ω²), smooth what V, drawn from N(0, 1/δ), is."""

    called: ClassVar[list] = []

    def __init__(self, start=1.0, offers=()):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(OUTPUTS, POSITIONS, dtype=torch.float64) / 4)
        self.log_omega = nn.Parameter(torch.tensor(math.log(start), dtype=torch.float64))
        self.log_delta = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.offers = offers

    def smoother(self):
        place = torch.arange(POSITIONS, dtype=torch.float64)
        s = (-0.5 * ((place - place[:, None]) / self.log_omega.exp()).square()).exp()
        return s / s.norm(dim=1, keepdim=True)

    def forward(self, x):
        Smooth.called.append(self)
        return x @ (self.weight @ self.smoother().T).T


@declare.register
def _(module: Smooth) -> Declaration:
    weight = Pathway(
        "weight",
        module.weight,
        module.log_delta,
        pull_back=lambda g: (g @ module.smoother()).flatten(-2),
        factors=lambda a, b: [(module.smoother().T @ a @ module.smoother(), b)],
    )
    regularisers = {name: module.log_omega.square for name in module.offers}
    structure = Structure((module.log_omega,), regularisers, lambda: Status(module.log_omega.exp()))
    return Declaration((weight,), _as_column, _as_column, structure, (module.log_delta,))


def _as_column(x):
    return x.unsqueeze(-1)


def planted(examples=60):
    truth = Smooth(TRUTH)
    x = torch.randn(examples, POSITIONS, dtype=torch.float64)
    with torch.no_grad():
        truth.weight.copy_(torch.randn_like(truth.weight))
        return x, truth(x) + NOISE * torch.randn(examples, OUTPUTS, dtype=torch.float64)


def named(start=1.0, **more):
    return nn.Sequential(nn.Identity(), Smooth(start, **more))


def gaussian():
    return bws.Gaussian(NOISE, learn=False, dtype=torch.float64)


def learned(data, start=1.0, **changes):
    settings = {"epochs": 30, "batch_size": 10, "curvature": "kron", "progress": False} | changes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bws.fit(named(start), data, gaussian(), **settings)


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    return learned(planted())


# Finite differences: float64, step 1e-4, so an error of about 1e-8 of the gradient


@pytest.mark.parametrize("curvature", ["full", "kron", "diag"])
@pytest.mark.parametrize("way", ["once", "twice"])
def test_the_evidence_has_its_gradient(way, curvature):
    net, data = named(), planted(20)
    _, found = bws.evidence_gradient(net, data, gaussian(), curvature, way=way, batch_size=7)

    def evidence():
        return bws.log_evidence(net, data, gaussian(), curvature)

    expected = oracles.central_derivative(evidence, [net[1].log_omega], [torch.ones((), dtype=torch.float64)])
    assert abs(expected) > 1 and found["1.log_omega"].item() == pytest.approx(expected, rel=1e-6)


def test_the_loop_follows_that_gradient():
    """Every step of an optimiser on log ω within `fit` is looked at; nothing is asked of how the loop is written."""
    data, seen = planted(20), []

    def look(optimiser, *_):
        layer = Smooth.called[-1]
        if not any(p is layer.log_omega for group in optimiser.param_groups for p in group["params"]):
            return

        def evidence():
            return bws.log_evidence(layer, data, gaussian(), "kron")

        one = torch.ones((), dtype=torch.float64)
        seen.append((-20 * layer.log_omega.grad.item(), oracles.central_derivative(evidence, [layer.log_omega], [one])))

    handle = register_optimizer_step_pre_hook(look)
    try:
        learned(data, epochs=6, burn_in=0.2)
    finally:
        handle.remove()
    assert len(seen) >= 4
    for found, expected in seen:
        assert found == pytest.approx(expected, rel=1e-6)


def test_what_a_layer_is_holds_its_structure_and_its_precisions():
    net = named(2.0)
    layer = layers_of(net)["1"]
    assert layer.strength is None and list(layer.pathways) == ["weight"] and layer.precisions == (net[1].log_delta,)
    (structure,) = layer.structures.values()
    assert structure.parameters == (net[1].log_omega,) and structure.status().value.item() == pytest.approx(2.0)


# Learned, named while it is not, told of


@pytest.mark.parametrize("start", [0.5, 4.0])
def test_the_true_lengthscale_is_found(start):
    """Over eight such data sets and starts the estimate is off by at most 5 %, half of that the data's own scatter."""
    fit = learned(planted(), start, epochs=100)
    assert fit.model[1].log_omega.exp().item() == pytest.approx(TRUTH, rel=0.1)
    assert not fit.notes


def test_a_fit_that_is_too_short_names_the_layer():
    fit = learned(planted(), 6.0, epochs=8)
    (note,) = [note for note in fit.notes if "structure" in note]
    assert "layer '1': its structure still moved by" in note and "train for more epochs" in note


def test_the_task_loss_learns_it_too_and_sets_the_precisions_at_the_end(fitted):
    """Its precisions shape no kernel, so they are free to be the best for the weights that training ended with."""
    torch.manual_seed(0)
    data = planted()
    fit = learned(data, objective="task", weight_decays=(1e-4,))
    assert fit.model[1].log_omega.item() != 0.0 and fit.prior["1.weight"].item() != 0.0


def test_it_is_told_in_the_report_and_comes_back(fitted, tmp_path):
    omega = fitted.model[1].log_omega.exp().item()
    (path,) = write_report(fitted, tmp_path / "report.html")
    assert f"1 learned {omega:.4g}." in path.read_text()
    (row,) = fitted.sharing
    assert row.name == "1" and math.isnan(row.strength) and row.parameters == {"weight": OUTPUTS * POSITIONS}
    fitted.save(tmp_path / "fit")
    assert bws.FitResult.load(tmp_path / "fit", named()).model[1].log_omega.exp().item() == omega


def test_stopped_and_gone_on_with_it_has_the_same_notes(tmp_path, monkeypatch):
    """Stopped before the last step on the structure, whose move is what the note is about."""
    data, settings = planted(), {"start": 6.0, "epochs": 8}
    torch.manual_seed(0)
    whole = learned(data, **settings)
    monkeypatch.setattr(Checkpoint.__init__, "__defaults__", (0.0,))  # seconds between two states

    def stop(record):
        if record["epoch"] == settings["epochs"]:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        learned(data, **settings, checkpoint=tmp_path, progress=stop)
    torch.manual_seed(0)
    resumed = learned(data, **settings, checkpoint=tmp_path)
    assert resumed.history == whole.history and resumed.notes == whole.notes
    assert any("structure still moved" in note for note in resumed.notes)


# Regularisers


def test_a_regulariser_is_applied_to_the_layers_that_offer_it():
    """A pull of log ω to 0 by the layer's own "entropy", and none where its weight is 0."""
    data = planted(20)
    settings = {
        "objective": "task",
        "weight_decays": (0.0,),
        "epochs": 40,
        "progress": False,
        "batch_size": 2,
        "warm_up": 1,
    }
    ends = []
    for weight in (0.0, 1e4):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Identity(), Smooth(3.0, offers=("entropy",)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = bws.fit(net, data, gaussian(), entropy=weight, **settings)
        ends.append(abs(fit.model[1].log_omega.item()))
    assert ends[1] < 0.2 < ends[0]


@pytest.mark.parametrize("regulariser", ["normaliser", "entropy"])
def test_a_regulariser_that_no_layer_offers_is_refused(regulariser):
    call = {"objective": "task", "weight_decays": (0.0,), "epochs": 1, regulariser: 0.1}
    message = rf"{regulariser}=0.1: no layer offers that regulariser \(offered: none\).*use 0"
    assert_refused(lambda: learned(planted(), **call), message)


def test_one_that_other_layers_offer_is_named():
    net = nn.Sequential(nn.Identity(), Smooth(offers=("entropy",)))
    message = r"normaliser=0.1: no layer offers that regulariser \(offered: entropy\)"
    assert_refused(lambda: bws.fit(net, planted(), gaussian(), "task", normaliser=0.1, epochs=1), message)


def test_frozen_structure_is_left_alone():
    """Nothing to learn but weights and precisions, by the same steps."""
    net = named(2.0)
    net[1].log_omega.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = bws.fit(net, planted(), gaussian(), epochs=12, progress=False, keep_posterior=False)
    assert fit.model[1].log_omega.exp().item() == pytest.approx(2.0, rel=1e-12)
    assert fit.model[1].log_delta.item() != 0.0 and "log_evidence" in fit.history[-1]

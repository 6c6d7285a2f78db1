"""A fit that was stopped goes on to the same numbers, to the last bit."""

import pytest
import torch
from stopping import Stop, stopped_after

import bayesws as bws
from bayesws.training.checkpoint import Checkpoint
from bayesws.training.objectives import ByEvidence, Constrained

SETTINGS = {"epochs": 8, "burn_in": 0.2, "every": 2, "progress": False, "batch_size": 40}
CASES = {
    "evidence, fixed stack": ({"stack": "fixed"}, {"objective": "evidence"}),
    "evidence, first step when the weights have settled": ({}, {"burn_in": None, "every": 1}),
    "evidence, layers that keep their size": ({"norm": "layer"}, {"every": 1, "keep_sizes": True}),
    "evidence, soft stack": ({"stack": "product", "group": None}, {"start": "random", "epochs": 4}),
    "task": ({}, {"objective": "task", "weight_decays": (0.0, 1e-3)}),
    "constrained": ({}, {"objective": Constrained(slacks=(1.0, 0.1), weight_decays=(1e-3,))}),
    "too few rows": ({}, {"objective": ByEvidence(curvature=bws.Curvature("full", samples=1, rows=3))}),
    "one sampled column": ({}, {"objective": "evidence", "curvature": bws.Curvature("kron", samples=1)}),
}


@pytest.fixture(scope="module")
def data():
    return bws.data.load("digits", task="turned", train_size=120, test_size=10).train


def network(**settings):
    torch.manual_seed(3)
    return bws.models.WSCNN(hidden_channels=2, **{"group": "quarter-turns"} | settings)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stops", [(3,), (1, 2)])
def test_stopped_fit_goes_on_to_the_last_bit(case, stops, data, tmp_path, monkeypatch):
    net, settings = network(**CASES[case][0]), SETTINGS | CASES[case][1]
    whole = bws.fit(net, data, seed=1, **settings)
    for stop in stops:
        with stopped_after(stop), pytest.raises(Stop):
            bws.fit(net, data, seed=1, checkpoint=tmp_path / "left", **settings)
        torch.manual_seed(stop)  # what else is drawn must not matter
    again = bws.fit(net, data, seed=1, checkpoint=tmp_path / "left", **settings)
    assert again.log_evidence == whole.log_evidence and again.history == whole.history
    assert again.recipe == whole.recipe
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert sorted(p.name for p in (tmp_path / "left").iterdir()) == ["finished.json", "fit"]
    with monkeypatch.context() as patch:
        patch.setattr("bayesws.training.loop.Loop.train", None)  # what is finished is not trained again
        finished = bws.fit(net, data, seed=1, checkpoint=tmp_path / "left", **settings)
    assert finished.log_evidence == whole.log_evidence and finished.history == whole.history
    assert torch.equal(finished.model(data[0]), whole.model(data[0]))


def test_finished_settings_are_not_trained_again(data, tmp_path, monkeypatch):
    trained = []
    after = Checkpoint.keep_losses

    def counting(self, losses):
        trained.append(len(losses))
        after(self, losses)
        if len(losses) == 2 and len(trained) == 2:
            raise Stop

    monkeypatch.setattr(Checkpoint, "keep_losses", counting)
    settings = SETTINGS | {"objective": "task", "weight_decays": (0.0, 1e-3, 1e-2), "checkpoint": tmp_path / "left"}
    with pytest.raises(Stop):
        bws.fit(network(), data, **settings)
    bws.fit(network(), data, **settings)
    assert trained == [1, 2, 3]


@pytest.mark.parametrize("at", [1, 3])
def test_dropout_is_drawn_alike_whatever_was_finished_before(at, tmp_path, monkeypatch):
    data = torch.rand(30, 6), torch.arange(30) % 3
    settings = {"objective": "task", "weight_decays": (0.0, 1e-3, 1e-2), "epochs": 2, "progress": False}

    def fitted(**more):
        torch.manual_seed(1)
        net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))
        return bws.fit(net, data, **settings, **more)

    def stopping(self, losses, after=Checkpoint.keep_losses):
        after(self, losses)
        if len(losses) == at:
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Checkpoint, "keep_losses", stopping)
        fitted(checkpoint=tmp_path / "left")
    assert fitted(checkpoint=tmp_path / "left").history == fitted().history


def stopped(data, folder, monkeypatch):
    """A folder that a stopped fit left."""

    def stopping(self, run, what, epochs, after=Checkpoint.after_epoch):
        self.seconds = 0.0
        after(self, run, what, epochs)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "after_epoch", stopping)
        with pytest.raises(Stop):
            bws.fit(network(), data, checkpoint=folder, **SETTINGS)


def test_another_fit_does_not_go_on_from_it(data, tmp_path, monkeypatch):
    stopped(data, tmp_path / "left", monkeypatch)
    for change in ({"seed": 2}, {"epochs": 9}):
        with pytest.raises(ValueError, match="left by a fit with other data or settings"):
            bws.fit(network(), data, checkpoint=tmp_path / "left", **SETTINGS | change)
    with pytest.raises(ValueError, match="left by a fit with other data or settings"):
        bws.fit(network(), (data[0] + 1, data[1]), checkpoint=tmp_path / "left", **SETTINGS)
    assert (tmp_path / "left" / "state.safetensors").exists()


def test_damaged_checkpoint_is_told_in_one_line(data, tmp_path, monkeypatch):
    stopped(data, tmp_path / "left", monkeypatch)
    path = tmp_path / "left" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"is damaged: .*; remove") as error:
        bws.fit(network(), data, checkpoint=tmp_path / "left", **SETTINGS)
    assert "\n" not in str(error.value)
    (tmp_path / "left" / "losses.json").write_text("{")
    with pytest.raises(ValueError, match=r"losses\.json is damaged"):
        bws.fit(network(), data, objective="task", checkpoint=tmp_path / "left", **SETTINGS)

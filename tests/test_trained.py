"""Networks that were trained elsewhere: found by name, read without running code, measured from the command line."""

import json
import pickle
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bayesws as bws
from bayesws.cli import main
from bayesws.trained import seen_by, trained_network


def small():
    """What a user's own factory may be."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def nothing():
    return 3


@pytest.fixture
def here(monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])


@pytest.mark.parametrize("ending", ["safetensors", "pt", "checkpoint.pt"])
def test_own_factory_with_weights(ending, tmp_path, here):
    net = small()
    with torch.no_grad():
        net[0].weight.add_(1)
    path = tmp_path / f"net.{ending}"
    if ending == "safetensors":
        save_file(net.state_dict(), path)
    else:
        torch.save({"state_dict": net.state_dict()} if "check" in ending else net.state_dict(), path)
    found = trained_network("test_trained:small", path)
    assert not found.training
    for mine, theirs in zip(found.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(trained_network("test_trained:small")[0].weight, small()[0].weight)


def test_torchvision_by_name_with_as_many_classes_as_the_weights(tmp_path):
    from torchvision import models

    net = models.shufflenet_v2_x0_5(num_classes=3).eval()
    save_file(net.state_dict(), tmp_path / "w.safetensors")  # which sorts the names
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(trained_network("shufflenet_v2_x0_5", tmp_path / "w.safetensors")(x), net(x))


def test_exported_program_is_measured_as_a_whole(tmp_path, capsys):
    batch = torch.export.Dim("batch")
    program = torch.export.export(small().eval(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    arguments = ["strength", str(tmp_path / "net.pt2"), "--test-size", "40", "--motions", "half-turn"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "strength.json").read_text())
    x = bws.data.load("digits", seed=0, test_size=40).test[0]
    expected = bws.equivariance_error(small(), x, "half-turn")
    assert list(record["errors"]["half-turn"]) == [""]
    assert record["errors"]["half-turn"][""]["error"] == pytest.approx(expected.error, rel=1e-5)
    assert "(network)" in capsys.readouterr().out


def test_saved_fit_has_its_sharing_strength_beside(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "bayesws.commands.strength.sharing_strength", partial(bws.sharing_strength, chains=1, draws=60, warmup=60)
    )
    data = bws.data.load("digits", task="turned", seed=0, train_size=200, test_size=40)
    fit = bws.fit(bws.models.WSCNN(hidden_channels=2), data.train, epochs=30, every=5, progress=False)
    fit.save(tmp_path / "fit")
    arguments = ["strength", str(tmp_path / "fit"), "--task", "turned", "--test-size", "40", "--motions", "flip"]
    assert main([*arguments, "--json", "--out", str(tmp_path / "out")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "out" / "strength.json").read_text())
    assert [row["name"] for row in record["sharing"]["layers"]] == ["lift", "group_convs.0"]
    assert set(record["errors"]["flip"]) == {"lift", "group_convs.0", "head"}


def test_grey_images_are_seen_in_as_many_channels():
    images = torch.rand(2, 1, 4, 4)
    seen = seen_by(nn.Conv2d(3, 1, 1), images)
    assert seen.shape == (2, 3, 4, 4) and torch.equal(seen[:, 2:], images)
    assert seen_by(nn.Linear(16, 2), images) is not None
    with pytest.raises(ValueError, match="3 channels: this network takes 4"):
        seen_by(nn.Conv2d(4, 1, 1), torch.rand(2, 3, 4, 4))


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


def trap(folder):
    (folder / "trap.pt").write_bytes(pickle.dumps({"weight": Trap()}))
    return folder / "trap.pt"


def scalar(folder):
    torch.save(3, folder / "three.pt")
    return folder / "three.pt"


def other(folder):
    save_file({"weight": torch.zeros(2)}, folder / "other.safetensors")
    return folder / "other.safetensors"


def text(folder):
    for name in ("text.pt2", "text.safetensors"):
        (folder / name).write_text("no archive")
    return folder / "text.safetensors"


BAD = {
    "unknown name": (lambda f: trained_network("resnet19"), "'resnet19'.*torchvision name"),
    "no module": (lambda f: trained_network("nowhere.nets:make"), "nowhere.*package.module:function"),
    "no function": (lambda f: trained_network("test_trained:make"), "make.*package.module:function"),
    "no network": (lambda f: trained_network("test_trained:nothing"), "gives a int"),
    "no program": (lambda f: trained_network(str(f / "none.pt2")), "no file"),
    "damaged program": (lambda f: text(f) and trained_network(str(f / "text.pt2")), "no program saved by"),
    "weights beside a program": (lambda f: trained_network("net.pt2", "w.pt"), "has its own"),
    "no weights": (lambda f: trained_network("test_trained:small", f / "w.pt"), "no file"),
    "damaged weights": (lambda f: trained_network("test_trained:small", text(f)), "cannot be read"),
    "other weights": (lambda f: trained_network("test_trained:small", other(f)), "do not fit"),
    "no state dict": (lambda f: trained_network("test_trained:small", scalar(f)), "no state dict"),
    "code": (lambda f: trained_network("test_trained:small", trap(f)), "more than tensors"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_runs_nothing(name, tmp_path, here, capsys):
    call, pattern = BAD[name]
    with pytest.raises(ValueError, match=pattern) as error:
        call(tmp_path)
    assert "\n" not in str(error.value) and "executed" not in capsys.readouterr().out

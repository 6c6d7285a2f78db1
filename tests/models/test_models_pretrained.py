"""Networks that were trained elsewhere: found by name, read without running code, measured from the command line."""

import json
import pickle
import re
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bayesws as bws
from bayesws.cli import main
from bayesws.models.pretrained import pretrained_network, seen_by


def small():
    """What a user's own factory may be."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def nothing():
    return 3


def of_one_size():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 10))


def of_two_inputs():
    return nn.Bilinear(3, 3, 10)


class Attending(nn.Module):
    """Attention over rows: a module with matrices that gives a tuple."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        rows = x[:, 0]
        return self.head(self.attention(rows, rows, rows)[0].flatten(1))


class Named(nn.Module):
    """Gives its logits by name, in a list of one."""

    def __init__(self):
        super().__init__()
        self.net = small()

    def forward(self, x):
        return {"out": [self.net(x)]}


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
    found = pretrained_network("test_models_pretrained:small", path)
    assert not found.training
    for mine, theirs in zip(found.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(pretrained_network("test_models_pretrained:small")[0].weight, small()[0].weight)


def test_torchvision_by_name_with_as_many_classes_as_the_weights(tmp_path):
    from torchvision import models

    net = models.shufflenet_v2_x0_5(num_classes=3).eval()
    save_file(net.state_dict(), tmp_path / "w.safetensors")  # which sorts the names
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(pretrained_network("shufflenet_v2_x0_5", tmp_path / "w.safetensors")(x), net(x))


def test_exported_program_is_measured_as_a_whole(tmp_path, capsys):
    batch = torch.export.Dim("batch")
    program = torch.export.export(small().eval(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    arguments = ["strength", str(tmp_path / "net.pt2"), "--test-size", "40", "--transforms", "half-turn"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "strength.json").read_text())
    x = bws.data.load("digits", seed=0, test_size=40).test[0]
    expected = bws.equivariance_error(small(), x, "half-turn")
    assert list(record["errors"]["half-turn"]) == [""]
    assert record["errors"]["half-turn"][""]["error"] == pytest.approx(expected.error, rel=1e-5)
    assert "(network)" in capsys.readouterr().out


@pytest.mark.parametrize("size", [1, 3])
def test_program_of_one_batch_size_is_run_in_its_batches(size, tmp_path):
    torch.export.save(torch.export.export(small().eval(), (torch.zeros(size, 1, 8, 8),)), tmp_path / "net.pt2")
    net, x = pretrained_network(str(tmp_path / "net.pt2")), torch.rand(7, 1, 8, 8)
    for count in (1, 3, 7):
        assert torch.allclose(net(x[:count]), small()(x[:count]), atol=1e-6)
    arguments = ["strength", str(tmp_path / "net.pt2"), "--test-size", "40", "--transforms", "flip"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "strength.json").read_text())
    expected = bws.equivariance_error(small(), bws.data.load("digits", seed=0, test_size=40).test[0], "flip")
    assert record["errors"]["flip"][""]["error"] == pytest.approx(expected.error, rel=1e-4)
    assert "explained" not in record  # a program has no layers


class Pooled(nn.Module):
    def forward(self, x):
        return x.mean((0, 1))


REFUSED = {
    "a size that does not fit": ("test_models_pretrained:of_one_size", "does not take images of shape .1, 1, 8, 8."),
    "several inputs": ("test_models_pretrained:of_two_inputs", "does not take images"),
    "a program for another size": ((nn.Conv2d(1, 2, 3), (2, 1, 9, 9)), "does not take images"),
    "a program for colours": ((nn.Conv2d(3, 2, 3), (2, 3, 8, 8)), "does not take images"),
    "a program that mixes its batch": ((Pooled(), (2, 1, 8, 8)), "8, 8. for a batch of 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_images_that_a_network_refuses_are_one_line(name, tmp_path, here, capsys):
    model, pattern = REFUSED[name]
    if not isinstance(model, str):
        net, shape = model
        torch.export.save(torch.export.export(net.eval(), (torch.zeros(shape),)), tmp_path / "net.pt2")
        model = str(tmp_path / "net.pt2")
    out = tmp_path / "out"
    assert main(["strength", model, "--test-size", "40", "--transforms", "flip", "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(pattern, error) and "\n" not in error and not (out / "strength.json").exists()


@pytest.mark.parametrize("net", [Attending(), Named()], ids=["attention", "outputs by name"])
def test_of_several_tensors_the_first_is_measured(net):
    x = torch.rand(8, 1, 8, 8)
    assert all(row.examples == 4 for row in bws.equivariance_errors(net, x, "flip").values())
    assert bws.equivariance_error(net, x, "flip").examples == 4


def test_convolutions_show_what_a_shared_pathway_would_explain(tmp_path, here, capsys):
    arguments = ["strength", "test_models_pretrained:small", "--test-size", "40"]
    arguments += ["--transforms", "flip,shift:0.9,quarter-turn"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "strength.json").read_text(), parse_constant=pytest.fail)  # no NaN in JSON
    assert record["errors"]["shift:0.9"]["0"]["error"] is None  # nothing is inside of both images
    x = bws.data.load("digits", seed=0, test_size=40).test[0]
    assert list(record["explained"]) == ["flip", "quarter-turn"] and record["best"] == {"0": None}
    for transform, rows in record["explained"].items():
        row = bws.analysis.orbit_decompositions(small(), x, transform)["0"]
        assert rows["0"]["evidence"] == pytest.approx(row.evidence) and rows["0"]["chance"] == row.chance
        assert rows["0"]["orbits"] == {str(size): count for size, count in row.orbits().items()}
    assert "Weights that a shared pathway would explain" in capsys.readouterr().out


def test_saved_fit_has_its_sharing_strength_beside(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "bayesws.commands.strength.sharing_strength", partial(bws.sharing_strength, chains=1, draws=60, warmup=60)
    )
    data = bws.data.load("digits", task="turned", seed=0, train_size=200, test_size=40)
    fit = bws.fit(bws.models.WSCNN(hidden_channels=2), data.train, epochs=30, every=5, progress=False)
    fit.save(tmp_path / "fit")
    arguments = ["strength", str(tmp_path / "fit"), "--task", "turned", "--test-size", "40", "--transforms", "flip"]
    assert main([*arguments, "--json", "--out", str(tmp_path / "out")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "out" / "strength.json").read_text())
    assert [row["name"] for row in record["sharing"]["layers"]] == ["lift", "group_convs.0", "head"]
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
    "unknown name": (lambda f: pretrained_network("resnet19"), "'resnet19'.*torchvision name"),
    "no module": (lambda f: pretrained_network("nowhere.nets:make"), "nowhere.*package.module:function"),
    "no function": (lambda f: pretrained_network("test_models_pretrained:make"), "make.*package.module:function"),
    "no network": (lambda f: pretrained_network("test_models_pretrained:nothing"), "gives a int"),
    "no program": (lambda f: pretrained_network(str(f / "none.pt2")), "no file"),
    "damaged program": (
        lambda f: text(f) and pretrained_network(str(f / "text.pt2")),
        "expected a whole zip",
    ),
    "weights beside a program": (lambda f: pretrained_network("net.pt2", "w.pt"), "has its own"),
    "no weights": (lambda f: pretrained_network("test_models_pretrained:small", f / "w.pt"), "no file"),
    "damaged weights": (
        lambda f: pretrained_network("test_models_pretrained:small", text(f)),
        "damaged: a header",
    ),
    "other weights": (lambda f: pretrained_network("test_models_pretrained:small", other(f)), "do not fit"),
    "no state dict": (lambda f: pretrained_network("test_models_pretrained:small", scalar(f)), "no state dict"),
    "code": (lambda f: pretrained_network("test_models_pretrained:small", trap(f)), "more than tensors"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_runs_nothing(name, tmp_path, here, capsys):
    call, pattern = BAD[name]
    with pytest.raises(ValueError, match=pattern) as error:
        call(tmp_path)
    assert "\n" not in str(error.value) and "executed" not in capsys.readouterr().out

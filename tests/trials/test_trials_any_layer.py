"""Whatever is a layer has its row everywhere: plain ones, sharing ones, and branches that are one layer."""

import json
import math
import warnings
from dataclasses import asdict
from functools import partial

import pytest
import torch
from torch import nn

import bayesws as bws
from bayesws.analysis.strength import measurable_layers
from bayesws.cli import main
from bayesws.io.files import without_nan
from bayesws.io.json_files import of_kind
from bayesws.io.tables import as_text
from bayesws.layers import Branches
from bayesws.report.figures.comparison import save_picture
from bayesws.training.result import SharingRow
from bayesws.trials.by_layer import in_use, of_strength

SIDE = 5
FEW = {"epochs": 6, "burn_in": 0.2, "every": 2, "progress": False}


def branches():
    """A convolution and a linear layer side by side, and a plain head."""
    fc = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 2 * SIDE**2), nn.Unflatten(1, (2, SIDE, SIDE)))
    layer = Branches(conv=nn.Conv2d(1, 2, 3, padding=1), fc=fc)
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(2 * SIDE**2, 3))


def plain():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3))


def for_digits():
    """What the command line may be given."""
    torch.manual_seed(0)
    fc = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.Unflatten(1, (2, 8, 8)))
    return nn.Sequential(
        Branches(conv=nn.Conv2d(1, 2, 3, padding=1), fc=fc), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    )


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 1, SIDE, SIDE, generator=generator), torch.arange(40) % 3


def fitted(make, data, **changes):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bws.fit(make(), data, **(FEW | changes))


@pytest.fixture(scope="module")
def fit(data):
    return fitted(branches, data)


def test_a_plain_network_has_rows_without_a_strength(data):
    fit = fitted(plain, data)
    assert [row.name for row in fit.sharing] == ["0", "3"] and not measurable_layers(fit.model)
    for row in fit.sharing:
        assert math.isnan(row.strength) and list(row.parameters) == ["weight", "bias"]
        for name, gamma in row.effective.items():
            assert gamma == fit.evidence.by_pathway[f"{row.name}.{name}"].effective
    with pytest.raises(ValueError, match="no layer with two trained pathways that share"):
        bws.sharing_strength(fit)


def test_what_is_frozen_and_plain_has_no_row(data):
    net = plain()
    net[0].requires_grad_(False)
    assert [row.name for row in fitted(lambda: net, data).sharing] == ["3"]


def test_branches_are_one_row_with_their_share_as_strength(fit):
    layer, head = fit.sharing
    assert layer.name == "0" and list(layer.effective) == ["conv.weight", "conv.bias", "fc.1.weight", "fc.1.bias"]
    logs = layer.log_precisions
    variances = [math.exp(-logs[name]) for name in ("conv.weight", "fc.1.weight")]
    assert layer.strength == pytest.approx(variances[0] / sum(variances), rel=1e-6)  # float32
    assert math.isnan(head.strength) and head.parameters == {"weight": 150, "bias": 3}


def test_rows_are_null_in_json_and_come_back(fit, tmp_path):
    text = json.dumps(without_nan([asdict(row) for row in fit.sharing]), allow_nan=False)
    assert [row["strength"] is None for row in json.loads(text)] == [False, True]
    assert str([of_kind(row, SharingRow, "row", "") for row in json.loads(text)]) == str(fit.sharing)  # nan is no nan
    fit.save(tmp_path / "fit")
    assert str(bws.FitResult.load(tmp_path / "fit", model=branches()).sharing) == str(fit.sharing)


def test_the_posterior_of_the_first_branchs_share(fit, data):
    found = bws.sharing_strength(fit)
    (row,) = found.layers
    assert row.name == "0" and row.fitted == fit.sharing[0].strength
    assert 0 <= row.interval[0] <= row.median <= row.interval[1] <= 1
    assert found.samples["0"].shape == (1, 100_000) and found.method == "quadrature"


@pytest.mark.filterwarnings("ignore")
def test_comparisons_show_every_layer(data, tmp_path):
    found = bws.compare(branches, data, data, seeds=2, **FEW)
    table = as_text(found.sharing_table())
    for said in ("conv.weight", "fc.1.bias", "of 150", "– –"):
        assert said in table
    assert "nan" not in table and found.sharing_table().row_count == 4  # two layers, two objectives
    found.save(tmp_path / "comparison.json")
    again = bws.trials.Comparison.load(tmp_path / "comparison.json")
    assert as_text(again.sharing_table()) == table and math.isnan(again.trials[0].sharing[1].strength)
    save_picture(found, tmp_path / "picture.png")
    (path,) = bws.write_report(tmp_path, tmp_path / "report.html")
    page = path.read_text()
    assert "data: ρ by the evidence is 0 0." in page and "nan" not in page


@pytest.mark.filterwarnings("ignore")
def test_comparisons_of_plain_networks_have_a_table_a_picture_and_a_page(data, tmp_path):
    found = bws.compare(plain, data, data, seeds=1, **FEW)
    assert found.sharing_table().row_count == 4
    save_picture(found, tmp_path / "picture.png")
    (path,) = bws.write_report(found, tmp_path / "report.html")
    assert "sharing strength" not in path.read_text() and "parameters in use" in path.read_text()


@pytest.mark.filterwarnings("ignore")
def test_rankings_show_every_layer(data, tmp_path):
    found = bws.select({"branches": branches, "plain": plain}, data, **FEW)
    table = as_text(found.sharing_table())
    assert "fc.1.weight" in table and "nan" not in table and found.sharing_table().row_count == 4
    found.save(tmp_path / "ranking.json")
    again = bws.trials.Ranking.load(tmp_path / "ranking.json")
    assert as_text(again.sharing_table()) == table
    (path,) = bws.write_report(tmp_path, tmp_path / "report.html")
    assert "fc.1.weight" in path.read_text()


def test_the_size_of_a_layer_is_that_of_all_its_branches():
    from bayesws.trials.select import LARGEST_LAYER, comparable_curvature

    wide = LARGEST_LAYER // 2 - 1
    halves = Branches(a=nn.Linear(wide, 1), b=nn.Linear(wide, 1))
    two = nn.ModuleList([nn.Linear(wide, 1), nn.Linear(wide, 1)])
    asked = partial(comparable_curvature, data=(torch.zeros(2, 3), torch.zeros(2, 1)), likelihood=bws.Gaussian())
    assert asked([halves]) == bws.Curvature("layer")  # by size: no network here takes these data
    larger = Branches(a=nn.Linear(wide + 1, 1), b=nn.Linear(wide + 1, 1))
    assert asked([larger]) == bws.Curvature("kron")
    assert asked([two]) == bws.Curvature("layer")


def test_the_report_of_a_fit(fit, tmp_path):
    (path,) = bws.write_report(fit, tmp_path / "report.html")
    page = path.read_text()
    for said in (
        f"ρ = {bws.sharing_strength(fit).layers[0].median:.3f}",
        "conv.weight",
        "fc.1.bias",
        "Parameters in use",
    ):
        assert said in page
    assert "ρ, 0" in page and "ρ, 3" not in page


def test_the_strength_command_measures_branches_as_one_layer(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    arguments = ["strength", "test_trials_any_layer:for_digits", "--test-size", "40", "--transforms", "flip"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "strength.json").read_text())
    assert list(record["errors"]["flip"]) == ["0", "3"] and record["errors"]["flip"]["0"]["transform"] == "flip"
    assert list(record["explained"]["flip"]) == ["0.conv"]  # weights are a convolution's own


def test_a_fit_with_branches_can_be_hardened(fit, data):
    hard = bws.harden(fit)
    torch.testing.assert_close(hard(data[0]).softmax(-1), fit.predict(data[0], kind="map"), rtol=1e-5, atol=1e-6)


def test_cells_of_a_table():
    rows = [
        SharingRow("lift", 0.9, {"shared": g, "free": 0.1}, {"shared": 72, "free": 288}, {"shared": 0.0, "free": 1.0})
        for g in (27.0, 28.0)
    ]
    assert in_use(rows) == "shared 27.5 of 72\nfree 0.1 of 288"
    assert (of_strength(0.456), of_strength(math.nan)) == ("0.46", "–")

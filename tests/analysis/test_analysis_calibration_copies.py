"""experiments/calibration: the symmetries that it counts copies by leave outputs and prior as they are."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from bayesws.layers import named_pathways

FOLDER = Path(__file__).parents[2] / "experiments" / "calibration"
CONFIG = json.loads((FOLDER / "config.json").read_text())
NETS = {name: spec for name, spec in CONFIG["nets"].items() if "hidden" in spec}
NETS |= {name: spec | {"likelihood": "regression"} for name, spec in CONFIG["structures"].items()}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import tiny_networks

    yield tiny_networks
    del sys.modules["tiny_networks"]


def turn_signs(net):
    """The first channel and what follows from it: tanh is odd."""
    for name, pathway in named_pathways(net):
        if name.startswith("hidden."):
            pathway.parameter[0] *= -1
    channels = len(net.hidden.bias)
    net.head.weight.unflatten(1, (channels, -1))[:, 0].mul_(-1)


def exchange(net):
    """The first and the last channel."""
    channels = len(net.hidden.bias)
    for name, pathway in named_pathways(net):
        if name.startswith("hidden."):
            pathway.parameter.copy_(pathway.parameter.flip(0))
    weight = net.head.weight
    weight.copy_(weight.unflatten(1, (channels, -1)).flip(1).flatten(1))


def relabel(net):
    """w → R_h w in the first channel: its unit g becomes what g h was."""
    layer, element = net.hidden, 1
    r = layer.representations()
    place = [next(k for k, other in enumerate(r) if torch.equal(one @ r[element], other)) for one in r]
    layer.shared[0] = layer.shared[0] @ r[element].T
    if layer.free is not None:
        layer.free[0] = layer.free[0][place]
    if not net.averages:
        net.head.weight[:, : len(r)] = net.head.weight[:, : len(r)][:, place]


def reorder(net):
    """Any order of a channel's units, where they share nothing and are averaged."""
    net.hidden.free[0] = net.hidden.free[0][[2, 0, 3, 1]]


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_symmetries_leave_outputs_and_prior(tiny, name):
    spec = NETS[name]
    net = tiny.drawn(
        tiny.network(spec, CONFIG),
        {}.fromkeys([n for n, _ in named_pathways(tiny.network(spec, CONFIG))], 0.0),
        torch.Generator().manual_seed(0),
    )
    moves = [turn_signs, exchange]
    if "pathways" in spec:
        moves.append(reorder if spec["pathways"] == ["free"] else relabel)
    x = torch.randn(5, CONFIG["inputs"], dtype=torch.float64)
    for move in moves:
        outputs, norms = net(x), [p.parameter.norm() for _, p in named_pathways(net)]
        weights = [p.parameter.clone() for _, p in named_pathways(net)]
        move(net)
        assert any(not torch.equal(w, p.parameter) for w, (_, p) in zip(weights, named_pathways(net), strict=True))
        torch.testing.assert_close(net(x), outputs, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close([p.parameter.norm() for _, p in named_pathways(net)], norms)


def test_copies_are_counted(tiny):
    """2^4 4! of four tanh units; of two channels 2! 2² 4² with a group of four, 2! 2² 24² of units in any order."""
    expected = {"perceptron, regression": 16 * 24, "shared": 128, "both": 128, "wrong": 128, "free": 2 * 48**2}
    for name, count in expected.items():
        assert tiny.log_copies(NETS[name]) == pytest.approx(math.log(count))
    assert tiny.log_copies(CONFIG["nets"]["linear"]) == 0

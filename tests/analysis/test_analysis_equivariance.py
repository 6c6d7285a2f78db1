"""Measured equivariance: zero where it is exact, the planted size where it is planted, one for unrelated outputs."""

import math

import pytest
import torch
from refusals import assert_refused
from torch import nn

import bayesws as bws
from bayesws.analysis.equivariance import EXACT, equivariance_errors

EXACT_NETS = [
    ("quarter-turns", 4, ["quarter-turn", "half-turn", "identity"], ["flip", "transpose"]),
    ("flips", 2, ["flip"], ["quarter-turn", "half-turn", "up-down-flip"]),
    ("dihedral", 8, ["quarter-turn", "flip", "transpose", "up-down-flip"], []),
]


def images(count=40, side=9, channels=2, seed=0):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("group, size, exact, broken", EXACT_NETS)
def test_group_convolutions_are_equivariant_to_their_group_alone(group, size, exact, broken):
    torch.manual_seed(0)
    net = bws.models.WSCNN(2, 3, 4, size, group=group, pathways=("shared",), dtype=torch.float64)
    for transform in exact:
        found = equivariance_errors(net, images(), transform)
        assert set(found) == {"lift", "group_convs.0", "head"}
        assert all(row.error < 1e-12 and row.interval[1] < 1e-12 for row in found.values())
        assert [row.channels for row in found.values()] == ["matched", "matched", "kept"]
    for transform in broken:
        assert all(row.error > 0.1 for row in equivariance_errors(net, images(), transform).values())


class Planted(nn.Module):
    """A map with an equivariant part of variance 1 - s and an unrelated one of variance s."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x):
        seeds = (x.sum((1, 2, 3)) * 1e6).round().long().tolist()
        noise = torch.stack([torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(abs(s))) for s in seeds])
        return (1 - self.share) ** 0.5 * x + self.share**0.5 * noise.to(x)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_error_is_the_root_of_the_unrelated_share(share):
    """f(Tx) - Tf(x) is the difference of two noises, of variance 2 s; 2 in the denominator: ε² = s.

    The noise follows from the sum of the image, which a turn would keep: it is salted first.
    """
    net = nn.Sequential(_Salt(), Planted(share))
    found = bws.equivariance_error(net, images(200, 12), channels="kept")
    # 100 images of 288 numbers: a standard error of 1 % of ε², and the estimate's own interval
    assert found.error == pytest.approx(share**0.5, abs=0.02)
    if share:
        low, high = found.interval
        assert low < share**0.5 < high or found.error == pytest.approx(share**0.5, abs=0.01)
        assert high - low < 0.05


class _Salt(nn.Module):
    """Adds to the images something tiny that a quarter turn does not keep, so that noises differ."""

    def forward(self, x):
        return x + 1e-4 * torch.arange(x.shape[-1], dtype=x.dtype)


def test_channels_are_matched_up_to_their_order():
    """Four filters that are turns of one: turning an image permutes their maps."""
    kernel = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    conv = nn.Conv2d(1, 4, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(torch.cat([kernel.rot90(k, (-2, -1)) for k in (2, 0, 3, 1)]))
    x = images(channels=1)
    assert bws.equivariance_error(conv, x).error < 1e-12
    kept = bws.equivariance_error(conv, x, channels="kept")
    assert kept.error > 0.3 and kept.channels == "kept"


def test_unrelated_outputs_have_an_error_of_one_and_constant_ones_of_none():
    x = images(400)
    conv = nn.Conv2d(2, 1, 3, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 0, 0] = 1.0  # a corner: turned, it looks at another, independent pixel
    found = bws.equivariance_error(conv, x)
    assert found.error == pytest.approx(1.0, abs=0.02) and found.interval[0] < 1.02
    with torch.no_grad():
        conv.weight.zero_()
    assert bws.equivariance_error(conv, x).error == 0.0


def test_interval_covers_the_large_sample_error():
    """60 draws of 40 images: the 95 % intervals hold the error on 4000 images in 80 % or more (bootstrap, small n)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)).double()
    gold = bws.equivariance_error(net, images(4000, 7, 1, seed=999), channels="kept").error
    covered = 0
    for seed in range(60):
        low, high = bws.equivariance_error(net, images(80, 7, 1, seed=seed), channels="kept").interval
        covered += low <= gold <= high
    assert covered >= 48


def test_transforms_are_those_of_the_pictures():
    x = images()
    assert torch.equal(EXACT["quarter-turn"](x), x.rot90(1, (-2, -1)))
    net = nn.Identity()
    for transform in (*EXACT, "rotate:30", "scale:0.7", "shift:0.25"):
        assert bws.equivariance_error(net, x, transform).error < 1e-12  # the identity moves as its input
    pointwise = nn.Conv2d(2, 3, 1).double()
    with torch.no_grad():
        pointwise.bias.zero_()  # resampled borders are zero inside and out
    for transform in ("rotate:30", "scale:0.7", "shift:0.3"):
        assert bws.equivariance_error(pointwise, x, transform).error < 1e-10
    circular = nn.Conv2d(2, 3, 3, padding=1).double()
    inner = bws.equivariance_error(circular, x, "shift:0.3").error
    assert 0 < inner < 0.8  # borders


def test_a_map_of_one_position_has_nothing_inside():
    net = nn.Conv2d(2, 3, 9).double()
    assert math.isnan(bws.equivariance_error(net, images(), "shift:0.5").error)


def test_on_every_device(device):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3)).double(), images()
    for transform in ("quarter-turn", "rotate:30", "shift:0.3"):
        there = bws.equivariance_error(net.to(device), x.to(device), transform)
        here = bws.equivariance_error(net.to("cpu"), x, transform)
        assert there.error == pytest.approx(here.error, rel=1e-9)


def test_the_network_is_left_in_its_mode():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout()).double().train()
    before = net[1].running_mean.clone()
    one, two = (bws.equivariance_error(net, images(), batch_size=size) for size in (7, 40))
    assert net.training and net[2].training and torch.equal(net[1].running_mean, before)
    assert one.error == pytest.approx(two.error, rel=1e-12) and not net[1].running_mean.isnan().any()


NET = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(147, 2)).double()
BAD = {
    "unknown transform": (lambda: bws.equivariance_error(NET, images(), "turn"), "'turn'.*quarter-turn"),
    "transform without its number": (lambda: bws.equivariance_error(NET, images(), "rotate"), "'rotate'.*DEGREES"),
    "scale of zero": (lambda: bws.equivariance_error(NET, images(), "scale:0"), "'scale:0'"),
    "no images": (lambda: bws.equivariance_error(NET, torch.zeros(5, 3)), "shape .5, 3."),
    "too few": (lambda: bws.equivariance_error(NET, images(3)), "at least four"),
    "not square": (lambda: bws.equivariance_error(NET, images()[:, :, :5]), "5×9.*square"),
    "channels": (lambda: bws.equivariance_error(NET, images(), channels="all"), "channels='all'"),
    "NaN": (lambda: bws.equivariance_error(NET, images() * math.nan), "NaN"),
    "unknown layer": (lambda: equivariance_errors(NET, images(), layers=["7"]), "'7'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name):
    assert_refused(*BAD[name])

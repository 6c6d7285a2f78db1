"""LayerwiseNet: the published sizes, what its blocks hold, and what passes through them."""

import math

import pytest
import torch

import bayesws as bws
from bayesws.evidence.nesting import nested
from bayesws.layers import Branches
from bayesws.layers.contract import named_pathways
from bayesws.models import LayerwiseNet

WEIGHTS = {"conv": 338_770, "fc": 133_635_690, "fc+conv": 133_865_010, "s-conv": 287_910}  # arXiv 2310.06131
SUMS = ["fc+conv", "s-fc+s-conv", "gconv+conv+f-fc"]  # every branch once


def small(blocks, size=16, choose="example"):
    return LayerwiseNet(blocks, width=1, in_channels=1, size=size, num_classes=3, choose=choose)


by_choice = pytest.mark.parametrize("choose", ["example", "input"])


@pytest.mark.parametrize("blocks", WEIGHTS)
def test_it_has_the_published_number_of_weights(blocks):
    net = LayerwiseNet(blocks, device=None if blocks == "s-conv" else "meta")
    assert sum(p.numel for _, p in named_pathways(net)) == WEIGHTS[blocks]


@pytest.mark.filterwarnings("ignore")  # of few epochs
@pytest.mark.parametrize("blocks, choose", [*((blocks, "example") for blocks in SUMS), ("gconv+conv+f-fc", "input")])
def test_it_trains_has_an_evidence_and_is_built_again(blocks, choose, tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(12, 1, 4, 4), torch.arange(12) % 3
    fit = bws.fit(small(blocks, 4, choose), (x, y), curvature="kron", epochs=4, burn_in=0.25, every=1, progress=False)
    assert fit.log_evidence < 0 and [row.name for row in fit.sharing][-2:] == ["head.0", "head.2"]
    assert len(fit.sharing) == 10 and fit.predict(x).shape == (12, 3)
    for row in fit.sharing[:8]:
        assert set(row.shares) == {name.replace("-", "_") for name in blocks.split("+")}
        assert math.isnan(sum(row.shares.values())) or sum(row.shares.values()) == pytest.approx(1)
    fit.save(tmp_path / "fit")
    again = bws.FitResult.load(tmp_path / "fit")
    assert torch.equal(again.model(x), fit.model(x))
    hard = bws.harden(fit, x[:2])
    torch.testing.assert_close(hard(x), fit.model(x), rtol=1e-4, atol=1e-5)


def test_a_block_is_the_rectified_sum_of_its_branches():
    net, x = small("fc+conv"), torch.randn(2, 1, 16, 16)
    first = net.blocks[0]
    assert isinstance(first, Branches)
    expected = (first.conv(x) + first.fc(x)).relu()
    features = []
    net.blocks[1].register_forward_pre_hook(lambda _m, given: features.append(given[0]))
    net(x)
    torch.testing.assert_close(features[0], expected)
    shapes = [(16, 1), (8, 2), (8, 2), (4, 4), (4, 4), (2, 8), (1, 8), (1, 16)]
    for block, (side, width) in zip(net.blocks, shapes, strict=True):
        x = block(x).relu()
        assert x.shape == (2, width, side, side)


@by_choice
def test_what_lies_within_what(choose):
    """Where the image is not halved, or is moved before; halving after it chooses positions: no fixed map does."""
    found = nested(dict(named_pathways(small("fc+conv", choose=choose))))
    blocks = {inner.split(".")[1] for inner in found}
    # at the end, of two rows or one, taps see the same
    assert blocks == ({"0", "2", "4"} if choose == "example" else {"0", "1", "2", "3", "4", "5"})
    assert {outer for outer, _ in found.values()} == {f"blocks.{k}.fc.{n}" for k in blocks for n in ("weight", "bias")}
    found = nested(dict(named_pathways(small("gconv+conv+f-fc"))))
    assert found["blocks.0.gconv.weight"] == ("blocks.0.conv.weight", 4.0)


def test_a_branch_beside_one_that_shares_more_starts_small():
    redrawn = (lambda net: None, bws.training.starts.redraw, LayerwiseNet.reset_parameters)
    for draw in redrawn:
        torch.manual_seed(0)
        net = LayerwiseNet("fc+conv+f-fc", width=2, in_channels=1, size=16)
        draw(net)
        block = net.blocks[0]
        for weight, bound in (
            (block.conv.weight, 6**0.5 / 3),
            (block.fc.weight, 0.1 * 6**0.5 / 16),
            (block.f_fc.inner.weight, 3**0.5 / 16),
            (block.f_fc.outer.weight, 0.1 * 6**0.5),
        ):
            assert 0.6 * bound < float(weight.detach().abs().max()) <= bound


@pytest.mark.parametrize("blocks", ["conv", "fc", "f-fc", "fc+conv", "gconv+conv+f-fc"])
def test_signals_keep_their_size_at_the_start(blocks):
    """Within a factor of four over eight blocks; by torch's own start they would be a thousandth."""
    torch.manual_seed(0)
    net, x = LayerwiseNet(blocks, width=8, in_channels=1, size=16), torch.randn(16, 1, 16, 16)
    features = net.lift(x)
    with torch.no_grad():
        for block in net.blocks:
            features = block(features).relu()
    assert 0.25 < float(features.square().mean().sqrt() / x.square().mean().sqrt()) < 4


@by_choice
def test_turns_of_the_image_pass_through_group_convolutions_alone(choose):
    net = small("gconv", choose=choose).double().eval()
    with torch.no_grad():
        x = torch.randn(3, 1, 16, 16, dtype=torch.float64)
        torch.testing.assert_close(net(x.rot90(1, (-2, -1))), net(x), rtol=1e-9, atol=1e-12)
        other = small("gconv+conv", choose=choose).double().eval()
        assert float((other(x.rot90(1, (-2, -1))) - other(x)).abs().max()) > 1e-9


@by_choice
def test_shifts_of_the_image_pass_through_convolutions(choose):
    net = small("conv", choose=choose).double().eval()
    with torch.no_grad():
        x = torch.randn(3, 1, 16, 16, dtype=torch.float64)
        for shift in ((1, 0), (3, 5)):
            torch.testing.assert_close(net(x.roll(shift, (-2, -1))), net(x), rtol=1e-9, atol=1e-12)
        fixed = small("fc", choose=choose).double().eval()
        assert float((fixed(x.roll(1, -1)) - fixed(x)).abs().max()) > 1e-9


@pytest.mark.parametrize(
    "settings, told",
    [
        (
            {"blocks": "conv+dense"},
            r"blocks='conv\+dense': expected one or more of gconv, conv, s-conv, f-fc",
        ),
        ({"blocks": "conv+conv"}, "blocks="),
        ({"blocks": ""}, "blocks=''"),
        ({"size": 28}, "size=28: expected a power of two, such as 32"),
        ({"width": 0}, "width=0"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"choose": "image"}, "choose='image': expected one of input, example, batch"),
    ],
)
def test_bad_settings_are_told(settings, told):
    with pytest.raises(ValueError, match=told):
        LayerwiseNet(**{"width": 1, "size": 8} | settings)

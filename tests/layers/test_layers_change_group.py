"""ChangeGroup: nothing is lost, the motions that both groups have act as before, its evidence is dense."""

import pytest
import torch

from bayesws.layers import ChangeGroup, WSConv2d, WSLiftConv2d
from bayesws.sharing import known_group

NAMES = ["trivial", "flips", "half-turns", "quarter-turns", "klein-four-axes", "dihedral"]
PAIRS = [(before, after) for before in NAMES for after in NAMES]


@pytest.mark.parametrize("before, after", PAIRS)
def test_there_and_back(before, after):
    h, k = known_group(before, 3, 3), known_group(after, 3, 3)
    x = torch.randn(2, 32 // h.size, h.size, 3, 3)
    y = ChangeGroup(h, k)(x)
    assert y.shape == (2, 32 // k.size, k.size, 3, 3)
    assert torch.equal(ChangeGroup(k, h)(y), x)
    if h is k:
        assert torch.equal(x, y)


@pytest.mark.parametrize("before, after", PAIRS)
def test_equivariant_to_the_motions_that_both_groups_have(before, after):
    h, k = known_group(before, 3, 3), known_group(after, 3, 3)
    common = {"dtype": torch.float64, "pathways": ("shared",), "stack": "fixed"}
    lift = WSLiftConv2d(2, 32 // h.size, 3, group=h, group_size=h.size, **common)
    conv = WSConv2d(32 // k.size, 32 // k.size, 3, group=k, group_size=k.size, **common)
    regroup, x = ChangeGroup(h, k), torch.randn(2, 2, 7, 7, dtype=torch.float64)
    y = conv(regroup(lift(x)))
    rows = h.permutations.tolist()
    on_images, on_maps = known_group("dihedral", 7, 7), known_group("dihedral", 3, 3)
    for motion, row in enumerate(on_maps.permutations.tolist()):
        if row not in rows or row not in k.permutations.tolist():
            continue
        moved = conv(regroup(lift((x.flatten(-2) @ on_images.matrices()[motion].T).reshape(x.shape))))
        on_axis = k.on_group_axis().matrices()[k.permutations.tolist().index(row)]
        expected = torch.einsum("ng,bcgx,yx->bcny", on_axis, y.flatten(-2), on_maps.matrices()[motion])
        torch.testing.assert_close(moved.flatten(-2), expected, rtol=1e-12, atol=1e-12)


BAD = [((2, 3, 2), "expected .batch, channels, 4"), ((2, 3, 4), "a multiple of 8")]


@pytest.mark.parametrize("shape, message", BAD)
def test_features_that_do_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        ChangeGroup(known_group("quarter-turns", 3, 3), known_group("dihedral", 3, 3))(torch.zeros(shape))

"""Convolutions: torch's geometry arguments, symmetry under known groups, what is refused."""

import pytest
import torch
from torch import nn

from bayesws.layers import WSConv2d, WSConv3d, WSLiftConv2d, WSLiftConv3d
from bayesws.layers.contract import declare
from bayesws.sharing import known_group

GEOMETRIES = [
    {"kernel_size": 3},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 3, "stride": (2, 3), "padding": (2, 1)},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": (2, 3), "padding": "same"},
    {"kernel_size": 2, "padding": "same", "dilation": (2, 3)},
    {"kernel_size": (1, 3), "dilation": 2, "padding": 1},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "replicate", "stride": 2},
    {"kernel_size": 3, "padding": 2, "padding_mode": "circular", "dilation": 2},
    {"kernel_size": (2, 3), "padding": "same", "padding_mode": "circular"},
    {"kernel_size": 3, "padding": "valid", "padding_mode": "reflect"},
]
CUBIC_GEOMETRIES = [
    {"kernel_size": 2},
    {"kernel_size": (1, 2, 3), "stride": (1, 3, 2), "padding": (0, 1, 2)},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": (2, 1, 2), "padding": "same", "dilation": (3, 1, 2), "padding_mode": "circular"},
    {"kernel_size": 2, "padding": (2, 0, 1), "padding_mode": "replicate", "dilation": 2},
    {"kernel_size": (1, 3, 2), "padding": 1, "padding_mode": "reflect"},
]
LAYERS = {
    WSLiftConv2d: (2, 3, 7, 8),
    WSConv2d: (2, 3, 2, 7, 8),
    WSLiftConv3d: (2, 3, 4, 5, 6),
    WSConv3d: (2, 3, 2, 4, 5, 6),
}
CASES = [(layer, g) for layer in LAYERS for g in (GEOMETRIES if "2d" in layer.__name__ else CUBIC_GEOMETRIES)]


@pytest.mark.parametrize("build, geometry", CASES, ids=[f"{layer.__name__}-{g}" for layer, g in CASES])
def test_geometry_is_torch_s(build, geometry):
    layer = build(3, 2, **geometry, group_size=2, stack="product", dtype=torch.float64)
    x = torch.randn(*LAYERS[build], dtype=torch.float64)
    images = x.flatten(1, 2) if build in (WSConv2d, WSConv3d) else x
    plain = nn.Conv2d if build in (WSLiftConv2d, WSConv2d) else nn.Conv3d
    twin = plain(images.shape[1], 4, **geometry, dtype=torch.float64)
    with torch.no_grad():
        layer.bias.normal_()
        twin.weight.copy_(layer.kernel().reshape(twin.weight.shape))
        twin.bias.copy_(layer.bias.repeat_interleave(2))
    y = layer(x)
    expected = twin(images).unflatten(1, (2, 2))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)  # the same sums in another order
    # patches times kernel is what the layer does: the evidence relies on it
    kernel = layer.kernel().flatten(2).flatten(0, 1)
    bias = layer.bias.repeat_interleave(2)
    torch.testing.assert_close(layer.responses(y), kernel @ layer.patches(x) + bias[:, None], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_patches_of_a_plain_convolution(geometry):
    layer = nn.Conv2d(3, 2, **geometry, dtype=torch.float64)
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    declaration = declare(layer)
    found = layer.weight.flatten(1) @ declaration.patches(x) + layer.bias[:, None]
    torch.testing.assert_close(declaration.responses(layer(x)), found, rtol=1e-12, atol=1e-12)


# Symmetry: y(g x)[h] = g · y(x)[g⁻¹ h]


def p4(padding_mode, **more):
    settings = {
        "padding": 1,
        "padding_mode": padding_mode,
        "stack": "fixed",
        "pathways": ("shared",),
        "dtype": torch.float64,
    } | more
    return WSLiftConv2d(2, 3, 3, **settings), WSConv2d(3, 2, 3, **settings)


MODES = ["zeros", "reflect", "replicate", "circular"]
GROUPS = [("quarter-turns", 4), ("dihedral", 8), ("half-turns", 2), ("flips", 2)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", [5, 6])
def test_quarter_turn_of_the_input_turns_and_shifts_the_output(mode, side):
    lift, conv = p4(mode, group_size=4)
    nn.init.normal_(lift.bias)
    x = torch.randn(2, 2, side, side, dtype=torch.float64)
    y, z = lift(x), conv(lift(x).tanh())
    for k in range(4):
        turned = torch.rot90(x, k, (-2, -1))
        for found, still in ((lift(turned), y), (conv(lift(turned).tanh()), z)):
            expected = torch.rot90(still, k, (-2, -1)).roll(k, 2)
            # sums of at most 108 products in another order
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name, size", GROUPS)
def test_equivariance_to_every_known_group(name, size):
    lift, conv = p4("zeros", group_size=size, group=name)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    on_image = known_group(name, 5, 5).matrices()
    table = known_group(name, 5, 5).table
    y, z = lift(x), conv(lift(x).tanh())

    def moved(images, g):
        return (images.flatten(-2) @ on_image[g].T).unflatten(-1, (5, 5))

    for g in range(size):
        found = lift(moved(x, g)), conv(lift(moved(x, g)).tanh())
        for now, before in zip(found, (y, z), strict=True):
            expected = torch.empty_like(before)
            for h in range(size):
                expected[:, :, table[g, h]] = moved(before[:, :, h], g)
            torch.testing.assert_close(now, expected, rtol=1e-10, atol=1e-12)


def test_turns_of_a_cube_turn_voxels_and_permute_the_group_axis():
    """All 24 of them, through a lifting layer that is padded and a group convolution that is not."""
    sharing = {"group_size": 24, "stack": "fixed", "group": "cube-turns", "pathways": ("shared",)}
    lift = WSLiftConv3d(1, 2, 3, padding=1, **sharing, dtype=torch.float64)
    conv = WSConv3d(2, 1, 2, **sharing, dtype=torch.float64)
    nn.init.normal_(lift.bias)
    x = torch.randn(1, 1, 5, 5, 5, dtype=torch.float64)
    y = lift(x)
    z = conv(y.tanh())
    assert y.shape == (1, 2, 24, 5, 5, 5) and z.shape == (1, 1, 24, 4, 4, 4)
    table, turns = known_group("cube-turns", 5, 5, 5).table, {n: known_group("cube-turns", n, n, n) for n in (4, 5)}

    def turned(voxels, g):
        positions = turns[voxels.shape[-1]].permutations[g]
        return voxels.flatten(-3)[..., positions].unflatten(-1, voxels.shape[-3:])

    for g in range(24):
        moved = lift(turned(x, g))
        for now, before in ((moved, y), (conv(moved.tanh()), z)):
            expected = torch.empty_like(before)
            expected[:, :, table[g]] = turned(before, g)
            torch.testing.assert_close(now, expected, rtol=1e-10, atol=1e-12)
            # the group axis has to move along
            assert g == 0 or not torch.allclose(now, turned(before, g), atol=1e-3)


def test_free_pathway_breaks_the_symmetry():
    lift, _ = p4("zeros", group_size=4, pathways=("shared", "free"))
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    turned = lift(torch.rot90(x, 1, (-2, -1)))
    assert not torch.allclose(turned, torch.rot90(lift(x), 1, (-2, -1)).roll(1, 2), atol=1e-3)


# What is refused

BAD_ARGUMENTS = [
    ({"in_channels": 0}, "in_channels=0: expected at least 1"),
    ({"out_channels": -1}, "out_channels=-1: expected at least 1"),
    ({"kernel_size": 0}, "kernel_size=0"),
    ({"kernel_size": (3, 3, 3)}, r"kernel_size=\(3, 3, 3\)"),
    ({"stride": 0}, "stride=0"),
    ({"dilation": 0}, "dilation=0"),
    ({"padding": -1}, "padding=-1"),
    ({"padding": "full"}, "padding='full'.*'same' or 'valid'"),
    ({"padding": "same", "stride": 2}, "padding='same' with stride=2"),
    ({"padding_mode": "mirror"}, "padding_mode='mirror'.*zeros, reflect"),
    ({"group_size": 0}, "group_size=0"),
    ({"stack": "soft"}, "stack 'soft': expected one of fixed, dense, product, power"),
    ({"stack": "fixed", "group_size": 3}, "group_size=3.*name one with group="),
    ({"stack": "fixed", "group": "flips"}, "group 'flips' has 2 elements.*group_size=4"),
    ({"stack": "fixed", "kernel_size": (2, 3)}, "does not fit a 2×3 kernel.*square"),
    ({"stack": "fixed", "group": "quater-turns"}, "did you mean 'quarter-turns'"),
    ({"stack": "fixed", "group": known_group("quarter-turns", 2, 2)}, "on 4 positions.*on 9"),
    ({"stack": "dense", "group": "flips"}, "needs stack='fixed'"),
    ({"stack": "dense", "pathways": ("free",)}, "nothing is shared; use stack='fixed'"),
    ({"bias": "shared"}, "bias='shared': expected True .*'free' .*or False"),
    ({"pathways": ()}, r"pathways=\(\): expected 'shared', 'free' or both"),
    ({"pathways": ("shared", "loose")}, "'loose'.*expected 'shared', 'free' or both"),
    ({"pathways": ("shared", "shared")}, "expected 'shared', 'free' or both"),
]


@pytest.mark.parametrize("arguments, message", BAD_ARGUMENTS, ids=[str(a) for a, _ in BAD_ARGUMENTS])
@pytest.mark.parametrize("build", [WSLiftConv2d, WSConv2d])
def test_bad_arguments(build, arguments, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        build(**{"in_channels": 2, "out_channels": 3, "kernel_size": 3} | arguments)


BAD_CUBES = [
    ({"kernel_size": (3, 3)}, r"kernel_size=\(3, 3\): expected a whole number of at least 1, or 3 of them"),
    ({"padding": "full"}, "padding='full': expected a number, 3 of them, 'same' or 'valid'"),
    ({"padding": "same", "stride": (1, 1, 2)}, r"padding='same' with stride=\(1, 1, 2\)"),
    ({"stack": "fixed"}, "'quarter-turns' on a 3×3×3 support: expected one of trivial, cube-turns"),
    ({"stack": "fixed", "group": "cube-turns"}, "'cube-turns' has 24 elements.*group_size=4"),
]


@pytest.mark.parametrize("arguments, message", BAD_CUBES, ids=[str(a) for a, _ in BAD_CUBES])
@pytest.mark.parametrize("build", [WSLiftConv3d, WSConv3d])
def test_bad_arguments_for_voxels(build, arguments, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        build(**{"in_channels": 2, "out_channels": 3, "kernel_size": 3} | arguments)


BAD_INPUTS = [
    (WSLiftConv2d, (1, 3, 5, 5), r"\(1, 3, 5, 5\): expected \(batch, 2, height, width\).*WSLiftConv2d"),
    (WSLiftConv2d, (2, 5, 5), r"expected \(batch, 2, height, width\)"),
    (WSLiftConv2d, (1, 2, 4, 5, 5), r"expected \(batch, 2, height, width\)"),
    (WSConv2d, (1, 2, 5, 5), r"\(1, 2, 5, 5\): expected \(batch, 2, 4, height, width\).*WSConv2d"),
    (WSConv2d, (1, 2, 3, 5, 5), r"expected \(batch, 2, 4, height, width\)"),
    (WSConv2d, (1, 8, 5, 5), r"expected \(batch, 2, 4, height, width\)"),
    (WSLiftConv3d, (1, 2, 5, 5), r"expected \(batch, 2, depth, height, width\) for this WSLiftConv3d"),
    (WSLiftConv3d, (1, 2, 5, 5, 2), r"5×5×2 positions with padding \(0, 0, 0\): smaller than the 3×3×3"),
    (WSConv3d, (1, 2, 5, 5, 5), r"expected \(batch, 2, 4, depth, height, width\) for this WSConv3d"),
]


@pytest.mark.parametrize("build, shape, message", BAD_INPUTS)
def test_bad_inputs(build, shape, message):
    with pytest.raises(ValueError, match=message):
        build(2, 3, 3, stack="product")(torch.zeros(*shape))

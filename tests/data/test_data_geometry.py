"""Motions against closed forms: rot90, flips, shifts counted by hand, a rotated corner, a doubled image."""

import pytest
import torch

from bayesws.data.geometry import mirror, quarter_turn, rescale, rotate, shift


def noise(n=8, channels=2, height=5, width=5, dtype=torch.float64):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=dtype)


def each(n, value, dtype=torch.float64):
    return torch.full((n,), value, dtype=dtype)


@pytest.mark.parametrize("side", [1, 4, 5])
def test_quarter_turn_is_rot90_of_each(side):
    x, turns = noise(height=side, width=side), torch.tensor([0, 1, 2, 3, 4, 7, -1, 1])
    for image, k, out in zip(x, turns.tolist(), quarter_turn(x, turns), strict=True):
        assert torch.equal(out, torch.rot90(image, k, dims=(1, 2)))


def test_quarter_turn_refuses_what_is_not_square():
    with pytest.raises(ValueError, match=r"square images, got height 5 and width 4; .*'half-turned'"):
        quarter_turn(noise(width=4), torch.zeros(8, dtype=torch.int64))


@pytest.mark.parametrize("axes", [(-1,), (-2, -1)])
def test_mirror_reverses_only_those_chosen(axes):
    x, which = noise(width=4), torch.arange(8) % 3 == 0
    out = mirror(x, which, axes)
    assert torch.equal(out[which], x[which].flip(axes)) and torch.equal(out[~which], x[~which])


def test_shift_by_hand():
    x = torch.arange(1.0, 7.0).reshape(1, 1, 2, 3)  # 1 2 3 / 4 5 6
    moved = {
        (0, 1): [0, 1, 2, 0, 4, 5],
        (1, 0): [0, 0, 0, 1, 2, 3],
        (-1, -2): [6, 0, 0, 0, 0, 0],
        (2, 0): [0] * 6,
    }
    for (down, right), expected in moved.items():
        out = shift(x, torch.tensor([down]), torch.tensor([right]))
        assert out.flatten().tolist() == expected


def test_shift_there_and_back_loses_only_the_border():
    x, by = noise(), torch.tensor([-2, -1, 0, 1, 2, 0, 1, -1])
    back = shift(shift(x, by, -by), -by, by)
    assert torch.equal(back[..., 2:3, 2:3], x[..., 2:3, 2:3])
    assert torch.equal(back, x * (back != 0))


@pytest.mark.parametrize("side", [5, 28])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [-1, 0, 1, 2, 3, 4])
def test_rotation_by_quarter_turns_is_rot90(side, dtype, k):
    x = noise(height=side, width=side, dtype=dtype)
    out = rotate(x, each(8, 90.0 * k))
    assert out.dtype == dtype
    torch.testing.assert_close(out, torch.rot90(x, k, dims=(-2, -1)), rtol=0, atol=1e-5)


def test_half_rotation_of_an_oblong_image_is_its_reversal():
    x = noise(height=4, width=7)
    torch.testing.assert_close(rotate(x, each(8, 180.0)), x.flip((-2, -1)), rtol=0, atol=1e-10)


def test_a_quarter_turn_of_an_oblong_image_keeps_its_pixels_square():
    x = torch.zeros(1, 1, 3, 7, dtype=torch.float64)
    x[0, 0, 1, 4] = 1.0  # one to the right of the centre goes one above it
    expected = torch.zeros_like(x)
    expected[0, 0, 0, 3] = 1.0
    torch.testing.assert_close(rotate(x, each(1, 90.0)), expected, rtol=0, atol=1e-10)


def test_rotation_by_45_degrees_of_a_point_by_hand():
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    x[0, 0, 2, 3] = 1.0  # (right, down) = (1, 0)
    out = rotate(x, each(1, 45.0))[0, 0]
    # the output pixel (1, -1) reads the input at (√2, 0), at distance √2 - 1 from the point
    assert out[1, 3].item() == pytest.approx(1 - (2**0.5 - 1), abs=1e-12)
    assert out[3, 3].item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("move", [rotate, rescale])
@pytest.mark.parametrize("n", [1, 4095, 4096, 4097])
def test_the_batch_is_moved_one_by_one_whatever_its_length(move, n):
    x, by = noise(n=n, height=3, width=3), torch.linspace(0.5, 2.0, n, dtype=torch.float64)
    out = move(x, by)
    for i in {0, n // 2, n - 1}:
        torch.testing.assert_close(out[i : i + 1], move(x[i : i + 1], by[i : i + 1]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(5, 5), (4, 7), (28, 28)])
def test_rescale_by_one_is_the_identity(height, width):
    x = noise(height=height, width=width)
    torch.testing.assert_close(rescale(x, each(8, 1.0)), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(rescale(x.float(), each(8, 1.0)), x.float(), rtol=0, atol=1e-5)


def test_rescale_by_half_averages_the_four_pixels_about_each_centre_and_leaves_a_border():
    x = noise(height=4, width=4)
    out = rescale(x, each(8, 0.5))
    torch.testing.assert_close(out[..., 1:3, 1:3], torch.nn.functional.avg_pool2d(x, 2), rtol=0, atol=1e-12)
    assert out.sum() == pytest.approx(out[..., 1:3, 1:3].sum().item(), abs=1e-10)


def test_rescale_by_two_magnifies_about_the_centre():
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    x[0, 0, 2, 3] = 1.0
    row = rescale(x, each(1, 2.0))[0, 0, 2]
    torch.testing.assert_close(row, torch.tensor([0, 0, 0, 0.5, 1.0], dtype=torch.float64))

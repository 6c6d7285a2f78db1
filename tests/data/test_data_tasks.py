"""Tasks: that what is drawn is what is done, where the numbers come from, and what is refused."""

import pickle

import pytest
import torch

from bayesws.data import ImageData, task_names, transform
from bayesws.data.tasks import task

NAMES = (*task_names(), "translated:0.5", "rotated:-30:30", "rotated:90:90", "rescaled:0.5:2", "rescaled:1:1")


def noise(n=64, height=5, width=5, seed=1):
    return torch.rand(n, 1, height, width, generator=torch.Generator().manual_seed(seed)) + 0.1


def image_data(n=64, height=5, width=5):
    y = torch.arange(n) % 10
    return ImageData("noise", (noise(n, height, width), y), (noise(n, height, width, seed=2), y), num_classes=10)


def draw():
    return torch.Generator().manual_seed(7)


def test_turned_and_orientation_are_rot90_by_the_turns_drawn():
    x, y = noise(), torch.arange(64) % 10
    turned, kept = task("turned").apply(x, y, draw())
    again, turns = task("orientation").apply(x, y, draw())
    assert torch.equal(turned, again) and torch.equal(kept, y) and turns.dtype == torch.int64
    assert torch.equal(turns, torch.randint(4, (64,), generator=draw())) and set(turns.tolist()) == {
        0,
        1,
        2,
        3,
    }
    for image, k, out in zip(x, turns.tolist(), turned, strict=True):
        assert torch.equal(out, torch.rot90(image, k, dims=(1, 2)))


def test_an_image_is_placed_in_the_quadrant_that_is_told():
    x, y = noise(64, 2, 3), torch.arange(64) % 10
    placed, kept = task("quadrant").apply(x, y, draw())
    again, told = task("quadrant-told").apply(x, y, draw())
    assert torch.equal(placed, again) and torch.equal(kept, y) and torch.equal(told // 4, y)
    assert set((told % 4).tolist()) == {0, 1, 2, 3} and placed.shape == (64, 1, 4, 6)
    for image, quadrant, canvas in zip(x, (told % 4).tolist(), placed, strict=True):
        down, right = 2 * (quadrant // 2), 3 * (quadrant % 2)
        assert torch.equal(canvas[:, down : down + 2, right : right + 3], image)
        assert torch.isclose(canvas.sum(), image.sum())


def square():
    return [torch.rot90(image, k, (-2, -1)) for image in (noise(), noise().flip(-1)) for k in range(4)]


@pytest.mark.parametrize(
    ("name", "motions"),
    [
        ("upright", lambda: [noise()]),
        ("turned", lambda: square()[:4]),
        ("flipped", lambda: [noise(), noise().flip(-1)]),
        ("half-turned", lambda: [noise(), noise().flip((-2, -1))]),
        ("dihedral", square),
    ],
)
def test_every_motion_of_the_group_occurs_and_no_other(name, motions):
    out, _ = task(name).apply(noise(), torch.zeros(64, dtype=torch.int64), draw())
    is_motion = torch.stack([(out == moved).flatten(1).all(1) for moved in motions()])
    assert is_motion.any(0).all() and is_motion.any(1).all()


def test_translated_moves_by_whole_pixels_within_the_fraction():
    x = torch.zeros(500, 1, 9, 5)
    x[:, :, 4, 2] = 1.0
    out, _ = task("translated:0.4").apply(x, torch.zeros(500, dtype=torch.int64), draw())
    where = out.nonzero()
    assert len(where) == 500 and out.sum() == 500
    assert set((where[:, 2] - 4).tolist()) == {-3, -2, -1, 0, 1, 2, 3}  # floor(0.4 * 9) = 3
    assert set((where[:, 3] - 2).tolist()) == {-2, -1, 0, 1, 2}  # floor(0.4 * 5) = 2
    assert task("translated").description == "moved by up to 0.25 of the side"


def test_a_fraction_that_floating_point_rounds_down_is_not_lost():
    x = torch.zeros(500, 1, 100, 1)
    x[:, :, 50] = 1.0
    out, _ = task("translated:0.29").apply(x, torch.zeros(500, dtype=torch.int64), draw())  # 0.29 * 100 < 29
    assert (out.nonzero()[:, 2] - 50).abs().max() == 29


def test_rotated_by_exactly_90_degrees_is_rot90():
    out, _ = task("rotated:90:90").apply(noise(), torch.zeros(64, dtype=torch.int64), draw())
    torch.testing.assert_close(out, torch.rot90(noise(), 1, (-2, -1)), rtol=0, atol=1e-5)


def test_rescaled_by_exactly_one_is_the_identity():
    out, _ = task("rescaled:1:1").apply(noise(), torch.zeros(64, dtype=torch.int64), draw())
    torch.testing.assert_close(out, noise(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("rotated", 0, 360), ("rotated:-30:30", -30, 30), ("rescaled", 0.3, 1), ("rescaled:0.5:2", 0.5, 2)],
)
def test_angles_and_factors_are_uniform_between_their_bounds(name, low, high):
    seen = []

    def record(x, t):
        seen.append(t)
        return x

    vary, x = task(name).apply, noise(4000, 1, 1)
    vary.func(x, torch.zeros(4000), draw(), record, vary.keywords["low"], vary.keywords["high"])
    t = (seen[0] - low) / (high - low)
    assert 0 <= t.min() < 0.01 and 0.99 < t.max() < 1
    assert abs(t.mean() - 0.5) < 4 / (12 * 4000) ** 0.5  # four standard errors of a uniform mean


@pytest.mark.parametrize("name", NAMES)
def test_transform_is_seeded_and_leaves_the_global_generator_alone(name):
    data = image_data()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = transform(data, name, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    second, other = transform(data, name, seed=1), transform(data, name, seed=2)
    for split in ("train", "test"):
        for a, b in zip(getattr(first, split), getattr(second, split), strict=True):
            assert torch.equal(a, b)
    fixed = name in ("upright", "rotated:90:90", "rescaled:1:1")
    assert torch.equal(first.train[0], other.train[0]) == fixed
    assert first.num_classes == {"orientation": 4, "quadrant-told": 40}.get(name, 10)
    assert first.name == ("noise" if name == "upright" else f"noise/{name}")
    channels, *sides = data.image_shape
    assert first.image_shape == (channels, *(side * (2 if "quadrant" in name else 1) for side in sides))
    assert -1e-6 < first.train[0].min() and first.train[0].max() < 1.1001


def test_the_splits_draw_independently_and_the_input_is_not_changed():
    data = image_data()
    x = data.train[0].clone()
    moved = transform(data, "orientation", seed=0)
    assert not torch.equal(moved.train[1], moved.test[1]) and torch.equal(data.train[0], x)
    assert torch.equal(moved.train[0], transform(data, "turned", seed=0).train[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_task_pickles_and_describes_itself_in_a_line(name):
    chosen = pickle.loads(pickle.dumps(task(name)))
    assert chosen.name == name and chosen.description and "\n" not in chosen.description


@pytest.mark.parametrize("name", ["turned", "orientation", "dihedral"])
def test_quarter_turns_need_square_images(name):
    with pytest.raises(ValueError, match="quarter turns need square images, got height 5 and width 4"):
        transform(image_data(width=4), name, seed=0)


@pytest.mark.parametrize("name", ["upright", "flipped", "half-turned", "translated", "rotated", "rescaled"])
def test_the_others_do_not(name):
    assert transform(image_data(width=4), name, seed=0).image_shape == (1, 5, 4)


def test_a_translation_by_less_than_a_pixel_is_refused_and_the_advice_works():
    with pytest.raises(ValueError, match=r"images of 5x4 pixels by less than one pixel.*'translated:0.2'"):
        transform(image_data(width=4), "translated:0.1", seed=0)
    transform(image_data(width=4), "translated:0.2", seed=0)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "turnt",
            "unknown task 'turnt'; did you mean 'turned'. Known: upright, turned, orientation, flipped",
        ),
        ("Rotated:0:5", "unknown task 'Rotated'; did you mean 'rotated'"),
        ("", "unknown task ''. Known: upright"),
        ("turned:90", "task 'turned:90' has numbers, expected none; try 'turned'"),
        ("rotated:90", "task 'rotated:90' has 1 numbers, expected rotated:LOW:HIGH; try 'rotated:0:360'"),
        ("translated:0.1:0.2", "has 2 numbers, expected translated:FRACTION; try 'translated:0.25'"),
        ("rescaled:a:b", "does not read as rescaled:LOW:HIGH .*'a'.*; try 'rescaled:0.3:1'"),
        ("rotated:", "has 1 numbers"),
        ("rotated:nan:5", "out of range, expected finite numbers"),
        ("rotated:0:inf", "out of range, expected finite numbers"),
        ("rotated:30:-30", "out of range, expected LOW <= HIGH, in degrees; try 'rotated:-30:30'"),
        ("rescaled:0:1", "out of range, expected 0 < LOW <= HIGH, as factors; try 'rescaled:0.3:1'"),
        ("rescaled:2:1", "out of range, expected 0 < LOW <= HIGH"),
        ("translated:1", "out of range, expected 0 < FRACTION < 1; try 'translated:0.25'"),
        ("translated:0", "out of range, expected 0 < FRACTION < 1"),
    ],
)
def test_names_refused(name, says):
    for refuse in (lambda: task(name), lambda: transform(image_data(), name, seed=0)):
        with pytest.raises(ValueError, match=says) as caught:
            refuse()
        assert "\n" not in str(caught.value)

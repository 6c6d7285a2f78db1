"""Loading by name: what each argument reaches."""

import numpy as np
import pytest
import torch

from bayesws.data import load
from bayesws.data.digits import digits
from bayesws.data.seeding import generator


def write_set(path, n=40):
    x = np.arange(n, dtype=np.float32)[:, None, None].repeat(4, 1).repeat(4, 2) / n
    np.savez(path, train_x=x, train_y=np.arange(n) % 3, test_x=x, test_y=np.arange(n) % 3)
    return path


def test_digits_are_split_by_size_and_seed():
    data = load("digits", seed=3)
    assert repr(data) == "ImageData('digits', train=1000, test=797, images=1x8x8, num_classes=10)"
    assert torch.equal(data.train[0], digits(1000, seed=3).train[0])
    small = load("digits", seed=3, train_size=100, test_size=50)
    assert torch.equal(small.train[0], data.train[0][:100]) and len(small.test[0]) == 50


def test_a_task_is_applied_and_named():
    data = load("digits", task="orientation", train_size=20)
    assert (data.name, data.num_classes) == ("digits/orientation", 4)
    assert not torch.equal(data.train[0], load("digits", train_size=20).train[0])
    assert torch.equal(data.train[0], load("digits", task="turned", train_size=20).train[0])


@pytest.mark.parametrize("as_path", [str, lambda path: path])
def test_a_path_to_an_npz(tmp_path, as_path):
    path = as_path(write_set(tmp_path / "ramp.npz"))
    assert repr(load(path)) == "ImageData('ramp', train=40, test=40, images=1x4x4, num_classes=3)"
    data = load(path, train_size=10, test_size=5, seed=1)
    assert (len(data.train[0]), len(data.test[0])) == (10, 5)
    assert torch.equal(data.train[0], load(path, train_size=10, seed=1).train[0])
    assert not torch.equal(data.train[0], load(path, train_size=10, seed=2).train[0])


def test_the_root_reaches_the_downloaded_sets(tmp_path):
    write_set(tmp_path / "cifar10-12k.npz")
    assert load("cifar10", root=tmp_path, task="flipped", train_size=7).name == "cifar10-12k/flipped"
    for name in ("mnist", "fashion-mnist"):
        with pytest.raises(ValueError, match=f"{name} is not under {tmp_path}"):
            load(name, root=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "MNIST"}, "unknown data set 'MNIST'; did you mean 'mnist'"),
        ({"name": "fashionmnist"}, "did you mean 'fashion-mnist'"),
        ({"name": "imagenet"}, "Known: digits, mnist, fashion-mnist, cifar10, or a path that ends in .npz"),
        ({"name": "mnist", "task": "turnd"}, "unknown task 'turnd'; did you mean 'turned'"),
        ({"name": "none.npz"}, "none.npz is not a file"),
        ({"name": "digits", "train_size": 1.5}, "train_size=1.5: expected .*a whole number"),
        ({"name": "digits", "seed": "a"}, "seed='a': expected a whole number"),
        ({"name": "digits", "train_size": 0}, "train_size is 0, expected 1 to 1796"),
        (
            {"name": "digits", "train_size": 1700, "test_size": 98},
            "98 test images asked for, expected 1 to 97",
        ),
        ({"name": "cifar10", "train_size": 41}, "41 train images asked for, expected 1 to 40"),
        ({"name": "cifar10", "task": "translated:0.1"}, "less than one pixel"),
    ],
)
def test_refused(tmp_path, arguments, says):
    write_set(tmp_path / "cifar10-12k.npz")
    with pytest.raises(ValueError, match=says) as caught:
        load(**arguments, root=tmp_path)
    assert "\n" not in str(caught.value)


def test_the_uses_of_one_seed_are_independent_streams():
    uses = [
        ("split",),
        ("subset", "train"),
        ("subset", "test"),
        ("transform", "train"),
        ("transform", "test"),
    ]
    drawn = {tuple(torch.randint(4, (64,), generator=generator(s, *use)).tolist()) for use in uses for s in (-1, 0, 1)}
    assert len(drawn) == 15


def test_seeds_stay_what_they_are():
    assert [generator(seed, "split").initial_seed() for seed in (0, 1)] == [1755515551, 2928747489]

"""The embedded digits: their numbers, their split, their seed."""

import pytest
import torch
from sklearn.datasets import load_digits

from bayesws.data.digits import digits


def rows(x):
    return sorted(map(tuple, x.flatten(1).tolist()))


def test_the_two_splits_together_are_the_whole_set():
    data = digits(train_size=1000)
    (a, s), (b, t) = data.train, data.test
    assert (len(a), len(b), data.num_classes, data.image_shape) == (1000, 797, 10, (1, 8, 8))
    bunch = load_digits()
    assert rows(torch.cat((a, b))) == rows(torch.from_numpy(bunch.images / 16).float()[:, None])
    assert torch.equal(torch.cat((s, t)).bincount(), torch.from_numpy(bunch.target).bincount())
    assert a.min() == 0 and a.max() == 1


def test_images_keep_their_labels():
    bunch = load_digits()
    known = {image.tobytes(): label for image, label in zip(bunch.images, bunch.target, strict=True)}
    x, y = digits(train_size=100, seed=5).train
    assert [known[(image[0].double() * 16).numpy().tobytes()] for image in x] == y.tolist()


def test_the_seed_decides_and_the_global_generator_does_not():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = digits(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(first.train[0], digits(seed=1).train[0])
    assert not torch.equal(first.train[0], digits(seed=2).train[0])


@pytest.mark.parametrize("train_size", [0, -3, 1797, 5000])
def test_a_split_without_images_is_refused(train_size):
    with pytest.raises(ValueError, match=f"train_size is {train_size}, expected 1 to 1796 of the 1797 digits"):
        digits(train_size=train_size)

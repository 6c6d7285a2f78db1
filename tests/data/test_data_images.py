"""What an image set refuses, keeps and draws."""

import pytest
import torch

from bayesws.data.images import ImageData, check_images


def images(n=6, side=4):
    return torch.arange(n * side * side, dtype=torch.float32).reshape(n, 1, side, side) / (n * side * side)


def labels(n=6):
    return torch.arange(n) % 3


def image_data(n=6):
    return ImageData("ramp", (images(n), labels(n)), (images(4), labels(4)), num_classes=3)


def spoiled(value, index):
    x = images()
    x[index] = value
    return x


REFUSED = [
    ("not tensors", images().numpy(), labels(), 3, "images and labels are ndarray and Tensor"),
    (
        "rank 3",
        images()[:, 0],
        labels(),
        3,
        r"shape \(6, 4, 4\), expected \(batch, channels, height, width\)",
    ),
    ("no images", images()[:0], labels()[:0], 3, r"empty, shape \(0, 1, 4, 4\)"),
    ("no pixels", images()[..., :0], labels(), 3, r"empty, shape \(6, 1, 4, 0\)"),
    ("labels of rank 2", images(), labels()[:, None], 3, r"labels have shape \(6, 1\), expected \(batch,\)"),
    ("lengths differ", images(), labels(5), 3, "6 images but 5 labels"),
    ("bytes", images().to(torch.uint8), labels(), 3, "images are torch.uint8, expected floats"),
    ("floating labels", images(), labels().float(), 3, "labels are torch.float32, expected integers"),
    ("boolean labels", images(), labels() > 0, 3, "labels are torch.bool, expected integers"),
    ("NaN", spoiled(float("nan"), (2, 0, 1, 3)), labels(), 3, r"hold 1 NaN .* first at index \(2, 0, 1, 3\)"),
    ("infinite", spoiled(-float("inf"), 4), labels(), 3, r"hold 16 NaN .* first at index \(4, 0, 0, 0\)"),
    ("beyond float32", images().double() * 1e300, labels(), 3, "hold 95 NaN or infinite"),
    ("no classes", images(), labels(), 0, "num_classes is 0"),
    ("label too large", images(), labels(), 2, "labels run from 0 to 2, expected 0 to 1 for 2 classes"),
    ("label negative", images(), labels() - 1, 3, "labels run from -1 to 1, expected 0 to 2"),
]


@pytest.mark.parametrize(("x", "y", "num_classes", "says"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused_in_one_line_that_names_the_split(x, y, num_classes, says):
    with pytest.raises(ValueError, match=f"(test|num_classes).*{says}|{says}") as caught:
        check_images(x, y, num_classes, what="test")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(("test ", "num_classes "))


def test_both_splits_are_checked():
    good, bad = (images(), labels()), (images(), labels() + 7)
    for splits, says in (((bad, good), "train labels"), ((good, bad), "test labels")):
        with pytest.raises(ValueError, match=says):
            ImageData("x", *splits, num_classes=3)


def test_splits_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"train images are \(1, 4, 4\) but test images \(1, 5, 5\)"):
        ImageData("x", (images(), labels()), (images(side=5), labels()), num_classes=3)


def test_kept_as_float32_and_int64():
    data = ImageData("x", (images().double(), labels().int()), (images().half(), labels().byte()), num_classes=3)
    for x, y in (data.train, data.test):
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert data.image_shape == (1, 4, 4)
    assert repr(data) == "ImageData('x', train=6, test=6, images=1x4x4, num_classes=3)"


def test_subset_is_drawn_without_replacement_and_keeps_pairs_together():
    data = image_data(60)
    x, y = data.subset(train=60).train
    assert x.flatten(1)[:, 0].unique().numel() == 60 and not torch.equal(x, data.train[0])
    index = (x.flatten(1)[:, 0] * 60).round().long()
    assert torch.equal(y, data.train[1][index])


def test_subset_is_seeded_nested_and_touches_one_split_only():
    data = image_data(60)
    small, large = data.subset(train=5, seed=3), data.subset(train=20, test=2, seed=3)
    assert torch.equal(small.train[0], large.train[0][:5])
    assert small.test[0] is data.test[0] and len(large.test[0]) == 2
    assert not torch.equal(small.train[0], data.subset(train=5, seed=4).train[0])


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"train": 7}, "7 train images asked for, expected 1 to 6.*fewer"),
        ({"test": 5}, "5 test images asked for, expected 1 to 4.*fewer"),
        ({"train": 0}, "0 train images asked for, expected 1 to 6.*at least one"),
        ({"test": -1}, "-1 test images asked for, expected 1 to 4.*at least one"),
    ],
)
def test_subset_refuses(sizes, says):
    with pytest.raises(ValueError, match=says):
        image_data().subset(**sizes)

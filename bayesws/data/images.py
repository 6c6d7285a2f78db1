"""Images with labels, in a train and a test split, checked once where they enter the library."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesws.data.seeding import generator

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_images(x: object, y: object, num_classes: int, what: str = "train") -> None:
    """Refuse images and labels that no classifier could be trained on; anything may come.

    Args:
        x: images, a floating tensor, shape (batch, channels, height, width), finite as float32. Their range
            is not checked: standardised images are welcome.
        y: labels, a tensor of integers in [0, num_classes), shape (batch,).
        num_classes: how many classes there are, at least 1.
        what: the split that error messages name.

    Raises:
        ValueError: if they are not tensors, of wrong rank or type, empty or of different lengths, if pixels
            are NaN or infinite, or labels out of range.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        came = f"{type(x).__name__} and {type(y).__name__}"
        raise ValueError(f"{what} images and labels are {came}, expected torch tensors; try torch.as_tensor")
    if x.ndim != 4:
        raise ValueError(
            f"{what} images have shape {tuple(x.shape)}, expected (batch, channels, height, width);"
            " for gray images of shape (batch, height, width) try images[:, None]"
        )
    if x.numel() == 0:
        raise ValueError(
            f"{what} images are empty, shape {tuple(x.shape)}, expected one or more; check what was cut away"
        )
    if y.ndim != 1:
        raise ValueError(
            f"{what} labels have shape {tuple(y.shape)}, expected (batch,); for one-hot try labels.argmax(1)"
        )
    if len(x) != len(y):
        raise ValueError(
            f"{what} has {len(x)} images but {len(y)} labels, expected one label an image; check the slicing"
        )
    if not x.is_floating_point():
        raise ValueError(f"{what} images are {x.dtype}, expected floats in [0, 1]; try images.float() / 255")
    if y.dtype not in _INTEGERS:
        raise ValueError(f"{what} labels are {y.dtype}, expected integers; try labels.long()")
    if not all(bool(part.to(torch.float32).isfinite().all()) for part in x.split(1000)):
        bad = ~x.to(torch.float32).isfinite()
        count, first = int(bad.sum()), tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{what} images hold {count} NaN or infinite pixels, the first at index {first}, expected none;"
            " drop those images, or try images.nan_to_num()"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, expected at least 1; try int(labels.max()) + 1")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{what} labels run from {low} to {high}, expected 0 to {num_classes - 1}"
            f" for {num_classes} classes; renumber them or raise num_classes"
        )


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """A labelled image set: a train split and a test split of one shape.

    Args:
        name: what tables call it, e.g. ``"digits/turned"``.
        train: images (N, C, H, W), kept as float32, in [0, 1] for the sets offered here, and labels (N,),
            kept as int64.
        test: the same, other images.
        num_classes: how many classes the labels may name.

    Raises:
        ValueError: if a split does not pass `check_images`, or the two differ in (C, H, W).
    """

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    num_classes: int

    def __post_init__(self) -> None:
        for what in ("train", "test"):
            x, y = getattr(self, what)
            check_images(x, y, self.num_classes, what)
            object.__setattr__(self, what, (x.to(torch.float32), y.to(torch.int64)))
        train, test = self.image_shape, tuple(self.test[0].shape[1:])
        if train != test:
            raise ValueError(
                f"train images are {train} but test images {test} (channels, height, width);"
                " expected one shape, crop or resize one of them"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        _, channels, height, width = self.train[0].shape
        return channels, height, width

    def subset(self, train: int | None = None, test: int | None = None, seed: int = 0) -> "ImageData":
        """So many images of each split, drawn without replacement; None keeps the split as it is.

        The draw is a prefix of one seeded permutation: with equal seeds a small subset lies inside a large
        one. What is drawn of one split does not depend on the other.

        Args:
            train: number of training images.
            test: number of test images.
            seed: of both draws.

        Raises:
            ValueError: if a number is below 1 or above what there is.
        """
        return replace(
            self,
            train=_draw(self.train, train, seed, "train"),
            test=_draw(self.test, test, seed, "test"),
        )

    def padded(self, pad: int) -> "ImageData":
        """So many pixels of zeros at each of the four sides of every image.

        Raises:
            ValueError: fewer than none, or more than the images' longer side has.
        """
        _, height, width = self.image_shape
        if not 0 <= pad <= max(height, width):
            raise ValueError(f"pad={pad} around images of {height}×{width}: expected 0 to {max(height, width)}")
        larger = [(F.pad(x, [pad] * 4), y) for x, y in (self.train, self.test)]
        return replace(self, train=larger[0], test=larger[1])

    def shrunk(self, side: int) -> "ImageData":
        """The images averaged down to side × side pixels, each the mean of a square of theirs.

        Raises:
            ValueError: images that are not square, or whose side is no multiple of the new one.
        """
        _, height, width = self.image_shape
        if height != width or side < 1 or height % side:
            raise ValueError(f"images of {height}×{width} cannot be averaged to a side of {side}: expected a divisor")
        smaller = [(F.avg_pool2d(x, height // side), y) for x, y in (self.train, self.test)]
        return replace(self, train=smaller[0], test=smaller[1])

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        sizes = f"train={len(self.train[1])}, test={len(self.test[1])}"
        return f"ImageData({self.name!r}, {sizes}, images={shape}, num_classes={self.num_classes})"


def _draw(split: tuple[Tensor, Tensor], size: int | None, seed: int, what: str) -> tuple[Tensor, Tensor]:
    if size is None:
        return split
    x, y = split
    if not 1 <= size <= len(y):
        advice = "ask for fewer, or for None to keep them all" if size > 0 else "ask for at least one"
        raise ValueError(f"{size} {what} images asked for, expected 1 to {len(y)}, which there are; {advice}")
    chosen = torch.randperm(len(y), generator=generator(seed, "subset", what))[:size]
    return x[chosen], y[chosen]

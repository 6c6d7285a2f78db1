"""Tasks: what is done to the images so that a symmetry is planted, or broken, on purpose."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Generator, Tensor

from bayesws.data import transforms
from bayesws.data.geometry import rescale, rotate
from bayesws.data.images import ImageData
from bayesws.data.messages import unknown_name
from bayesws.data.seeding import generator


@dataclass(frozen=True)
class Task:
    """A transformation of labelled images.

    Args:
        name: with its numbers, e.g. ``"rotated:-30:30"``.
        description: one line for a help page.
        apply: (x, y, generator) to (x, y); x of shape (batch, channels, height, width), y of shape (batch,),
            the generator on the CPU. It draws from that generator and from nothing else.
        classes: how many classes it makes, None where the labels stay.
        times: how many classes it makes of each, where they stay otherwise.
    """

    name: str
    description: str
    apply: Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor]]
    classes: int | None = None
    times: int = 1

    def num_classes(self, original: int) -> int:
        """How many classes it makes of the original number."""
        return self.times * original if self.classes is None else self.classes


_PLAIN = {
    plain.name: plain
    for plain in (
        Task("upright", "the images as they are", transforms.stay),
        Task("turned", "turned by a random multiple of 90 degrees, label kept", transforms.turn),
        Task(
            "orientation",
            "turned the same way, label = number of quarter turns",
            partial(transforms.turn, relabel=True),
            classes=4,
        ),
        Task("flipped", "mirrored left-right at random", partial(transforms.reverse, axes=(-1,))),
        Task("half-turned", "turned by 180 degrees at random", partial(transforms.reverse, axes=(-2, -1))),
        Task("dihedral", "moved by a random one of the eight motions of the square", transforms.turn_and_flip),
        Task("quadrant", "in a random quadrant of a canvas of twice the side, label kept", transforms.place),
        Task(
            "quadrant-told",
            "the same, label = 4 times the label + number of the quadrant",
            partial(transforms.place, relabel=True),
            times=4,
        ),
    )
}
# name: (how it is written with numbers, what these are when it is written without)
_NUMBERED = {
    "translated": ("translated:FRACTION", (0.25,)),
    "rotated": ("rotated:LOW:HIGH", (0.0, 360.0)),
    "rescaled": ("rescaled:LOW:HIGH", (0.3, 1.0)),
}


def task_names() -> tuple[str, ...]:
    """The names `task` knows, without the numbers that some of them take."""
    return (*_PLAIN, *_NUMBERED)


def task(name: str) -> Task:
    """The task of that name.

    Args:
        name: one of `task_names`. Three take numbers: ``translated:FRACTION`` (of the side, at most; 0.25),
            ``rotated:LOW:HIGH`` (degrees anticlockwise, 0 to 360), ``rescaled:LOW:HIGH`` (factors, 0.3 to 1).

    Raises:
        ValueError: if the name is unknown, or its numbers are not those it takes.

    >>> task("orientation").num_classes(10), task("rotated:-30:30").num_classes(10)
    (4, 10)
    """
    kind, *words = name.split(":")
    if kind not in task_names():
        raise unknown_name("task", kind, task_names())
    if kind in _PLAIN:
        if words:
            raise ValueError(f"task {name!r} has numbers, expected none; try {kind!r}")
        return _PLAIN[kind]
    numbers = _numbers(name, words) if words else _NUMBERED[kind][1]
    if kind == "translated":
        (fraction,) = numbers
        _require(0 < fraction < 1, name, "0 < FRACTION < 1", "translated:0.25")
        return Task(name, f"moved by up to {fraction:g} of the side", partial(transforms.translate, fraction=fraction))
    low, high = numbers
    if kind == "rotated":
        _require(low <= high, name, "LOW <= HIGH, in degrees", "rotated:-30:30")
        return Task(
            name,
            f"rotated by {low:g} to {high:g} degrees",
            partial(transforms.vary, move=rotate, low=low, high=high),
        )
    _require(0 < low <= high, name, "0 < LOW <= HIGH, as factors", "rescaled:0.3:1")
    return Task(
        name,
        f"scaled by a factor of {low:g} to {high:g}",
        partial(transforms.vary, move=rescale, low=low, high=high),
    )


_named = task  # `transform` has an argument of that name


def transform(data: ImageData, task: str, seed: int) -> ImageData:
    """The image set with a task applied to both splits, each with a random stream of its own.

    ``turned`` and ``orientation`` draw the same turns from the same seed. ``upright`` changes nothing, not
    even the name.

    Args:
        data: the images.
        task: a name that the function `task` knows; ``data.name`` gains it, as in ``"digits/turned"``.
        seed: of the random transforms.

    Raises:
        ValueError: if the task is unknown, or the images do not allow it.
    """
    chosen = _named(task)
    if chosen.name == "upright":
        return data
    train = chosen.apply(*data.train, generator(seed, "transform", "train"))
    test = chosen.apply(*data.test, generator(seed, "transform", "test"))
    return ImageData(f"{data.name}/{chosen.name}", train, test, chosen.num_classes(data.num_classes))


def _numbers(name: str, words: list[str]) -> tuple[float, ...]:
    form, default = _NUMBERED[name.split(":")[0]]
    example = ":".join((name.split(":")[0], *(f"{number:g}" for number in default)))
    if len(words) != len(default):
        raise ValueError(f"task {name!r} has {len(words)} numbers, expected {form}; try {example!r}")
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError as error:
        raise ValueError(f"task {name!r} does not read as {form} ({error}); try {example!r}") from error
    _require(all(map(math.isfinite, numbers)), name, "finite numbers", example)
    return numbers


def _require(met: bool, name: str, expected: str, example: str) -> None:
    if not met:
        raise ValueError(f"task {name!r} is out of range, expected {expected}; try {example!r}")

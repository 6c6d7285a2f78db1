"""The image sets by name."""

import os

from bayesws.data.digits import digits
from bayesws.data.images import ImageData
from bayesws.data.messages import unknown_name
from bayesws.data.npz import npz
from bayesws.data.tasks import task as find_task
from bayesws.data.tasks import transform
from bayesws.data.torchvision_sets import Root, cifar10, fashion_mnist, mnist
from bayesws.io.arguments import seed_of, whole

_DOWNLOADED = {"mnist": mnist, "fashion-mnist": fashion_mnist, "cifar10": cifar10}


def load(
    name: str | os.PathLike[str],
    *,
    task: str = "upright",
    seed: int = 0,
    root: Root = None,
    download: bool = False,
    train_size: int | None = None,
    test_size: int | None = None,
    pad: int = 0,
    side: int | None = None,
) -> ImageData:
    """An image set by name, cut to size, with a symmetry planted.

    Args:
        name: ``digits``, ``mnist``, ``fashion-mnist``, ``cifar10``, or a path that ends in ``.npz``.
        task: see `bayesws.data.tasks.task`.
        seed: of the digits' split, of the draw of a subset and of the task's motions, which are independent.
        root: folder of the downloaded sets, else $BAYESWS_DATA, else ``~/.cache/bayesws``.
        download: let torchvision fetch a set that is not there.
        train_size: number of training images; None is 1000 for digits and all for the others.
        test_size: number of test images; None is all (for digits, all that do not train).
        pad: pixels of zeros to put around every image, before the task's motions; 2 make MNIST 32×32.
        side: pixels a side to average the images down to, after the task's motions; None leaves them.

    Raises:
        ValueError: if the name or the task is unknown, the set is not found or corrupt, or too
            small.

    >>> load("digits", task="orientation", train_size=500)
    ImageData('digits/orientation', train=500, test=1297, images=1x8x8, num_classes=4)
    """
    seed = seed_of(seed)
    for what, size in (("train_size", train_size), ("test_size", test_size), ("pad", pad), ("side", side)):
        if size is not None:
            whole(what, size, 0)  # what a set has enough of it tells itself
    find_task(task)  # a misspelt task is told before anything is read or downloaded
    name = os.fspath(name)
    if name == "digits":
        data = digits(1000 if train_size is None else train_size, seed).subset(test=test_size, seed=seed)
    elif name in _DOWNLOADED:
        data = _DOWNLOADED[name](root, download).subset(train_size, test_size, seed)
    elif name.endswith(".npz"):
        data = npz(name).subset(train_size, test_size, seed)
    else:
        raise unknown_name("data set", name, ("digits", *_DOWNLOADED), also=", or a path that ends in .npz")
    moved = transform(data.padded(pad) if pad else data, task, seed)
    return moved if side is None else moved.shrunk(side)

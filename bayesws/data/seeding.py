"""Random streams that are named, so that two uses of one seed never share their numbers."""

import hashlib
import operator

import torch


def generator(seed: int, *use: str) -> torch.Generator:
    """A CPU generator for one use of a seed: seeded with the SHA-256 of ``seed/use/…``.

    Feeding one seed to two generators makes their draws equal: a split and a quarter turn drawn that way
    would depend on each other. Naming the use keeps them independent. The global generator is never touched.

    Args:
        seed: any integer.
        use: what the numbers are for, e.g. ``"transform", "train"``.

    >>> a, b = generator(0, "split"), generator(0, "transform", "train")
    >>> a.initial_seed() == b.initial_seed(), a.initial_seed() == generator(0, "split").initial_seed()
    (False, True)
    """
    label = "/".join((str(operator.index(seed)), *use))
    digest = hashlib.sha256(label.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))

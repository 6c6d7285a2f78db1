"""The handwritten digits that scikit-learn carries: no download, eight by eight pixels."""

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]

from bayesws.data.images import ImageData
from bayesws.data.seeding import generator


def digits(train_size: int = 1000, seed: int = 0) -> ImageData:
    """The 1797 digits of the UCI optical recognition set, 8x8, gray values k/16 for k = 0, …, 16.

    Args:
        train_size: how many of them train, 1 to 1796; the rest is the test split.
        seed: of the permutation that makes the split.

    Raises:
        ValueError: if a split would be empty.

    Reference: https://doi.org/10.24432/C50P49

    >>> digits(train_size=1000, seed=0)
    ImageData('digits', train=1000, test=797, images=1x8x8, num_classes=10)
    """
    bunch = load_digits()
    x = torch.from_numpy(bunch.images).to(torch.float32)[:, None] / 16
    y = torch.from_numpy(bunch.target).to(torch.int64)
    if not 1 <= train_size < len(y):
        raise ValueError(
            f"train_size is {train_size}, expected 1 to {len(y) - 1} of the {len(y)} digits, so that some"
            " are left to test; try 1000"
        )
    order = torch.randperm(len(y), generator=generator(seed, "split"))
    train, test = order[:train_size], order[train_size:]
    return ImageData("digits", (x[train], y[train]), (x[test], y[test]), num_classes=10)

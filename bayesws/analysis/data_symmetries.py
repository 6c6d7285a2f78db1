"""What the images of a data set allow a layer to share over, before any network, training or label is there."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesws.evidence.examples import as_float, inputs_of
from bayesws.evidence.reading import read_whole
from bayesws.io.arguments import whole
from bayesws.layers.patches import image_patches
from bayesws.layers.start import BLOCKS, moments
from bayesws.sharing.candidates import Candidates, candidates_of


def candidates(data: Any, kernel_size: int = 3, keep: int = 64) -> Candidates:
    """The approximate symmetries of a data set's patches, and the group that it is symmetric under.

        print(bws.candidates(images))

    Permutations P of the positions of a patch by their misfit ‖P M Pᵀ - M‖ / ‖M‖ to the patches' second and third
    moments M; the groups among them; and the largest group whose misfits are no more than sampling noise.

    Args:
        data: images (n, channels, height, width), or with one or three dimensions of space, as a tensor or a numpy
            array; or a pair (images, labels), a Dataset or a DataLoader, whose labels are not looked at.
        kernel_size: k, a patch has k positions a side.
        keep: how many permutations to list at most.

    A misfit counts as sampling noise while its probability is at least 10⁻⁴ if the data is symmetric; with few images
    the test has little power, and the largest group that fits may be too large.

    Raises:
        ValueError: anything but images, images smaller than the kernel, fewer than two, values that are not finite or
            all the same.
    """
    images = inputs_of(data if isinstance(data, Tensor | np.ndarray) else read_whole(data)[0], "images")
    if not images.is_floating_point():
        images = as_float(images, torch.float32)
    if not 3 <= images.ndim <= 5:
        raise ValueError(
            f"images {tuple(images.shape)} of type {images.dtype}: expected floating (images, channels, height, width)"
        )
    kernel_size, keep = whole("kernel_size", kernel_size, 2), whole("keep", keep, 2)
    if min(images.shape[2:]) < kernel_size:
        raise ValueError(
            f"kernel_size={kernel_size} on images of shape {tuple(images.shape[2:])}: expected a whole number of at "
            "least 2, and no larger than the images"
        )
    support = (kernel_size,) * (images.ndim - 2)
    if len(images) < 2:
        raise ValueError(f"{len(images)} images: expected two or more, to tell a symmetry from noise")
    if images.min() == images.max():
        raise ValueError(
            f"images {tuple(images.shape)} that are the same everywhere: expected some that show something"
        )
    images = images / images.abs().max()  # misfits have no scale, but squares and cubes may leave float32
    ones = (1,) * len(support)
    blocks = [
        moments(image_patches(part, support, ones, "valid", ones, "zeros").unflatten(1, (images.shape[1], -1)))
        for part in images.tensor_split(min(BLOCKS, len(images)))
    ]
    return candidates_of(torch.stack(blocks).double(), support, keep=keep, examples=len(images))

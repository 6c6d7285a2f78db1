"""Image sets of one's own, in a NumPy ``.npz`` file."""

import io
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bayesws.data.images import ImageData
from bayesws.data.messages import one_line

_KEYS = ("train_x", "train_y", "test_x", "test_y")


def npz(path: str | os.PathLike[str]) -> ImageData:
    """The image set in a ``.npz`` file, named after the file.

    Args:
        path: a file with the arrays ``train_x`` and ``test_x``, of shape (N, C, H, W) or (N, H, W), and
            ``train_y`` and ``test_y``, integers of shape (N,). uint8 images are divided by 255, floating ones
            are taken as they are, in float32. There is one class more than the largest label. Nothing is
            unpickled.

    Raises:
        ValueError: if the file is missing, corrupt or truncated, lacks a key, or holds an array that is
            pickled, of another type, or refused by `check_images`.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"{path} is not a file, expected a .npz with {', '.join(_KEYS)}; check the path")
    members = _members(path)
    train_x, test_x = (_images(path, key, _array(path, key, members[key])) for key in ("train_x", "test_x"))
    train_y, test_y = (_labels(path, key, _array(path, key, members[key])) for key in ("train_y", "test_y"))
    largest = max((int(y.max()) for y in (train_y, test_y) if y.numel()), default=0)
    try:
        return ImageData(path.stem, (train_x, train_y), (test_x, test_y), num_classes=max(largest, 0) + 1)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _members(path: Path) -> dict[str, bytes]:
    """The four ``.npy`` files inside, their checksums verified."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            missing = [key for key in _KEYS if f"{key}.npy" not in names]
            if not missing:
                return {key: archive.read(f"{key}.npy") for key in _KEYS}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"{path} is truncated or corrupt ({one_line(error)}), expected a whole .npz file; copy or write it again"
        ) from error
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({one_line(error)}); check its permissions or copy it again"
        ) from error
    there = ", ".join(ascii(name.removesuffix(".npy"))[1:-1] for name in names) or "nothing"
    raise ValueError(
        f"{path} lacks {', '.join(missing)}, it has {there}; write it with"
        f" np.savez(path, {', '.join(f'{key}=…' for key in _KEYS)})"
    )


def _array(path: Path, key: str, member: bytes) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(member), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path}: {key} cannot be read ({one_line(error)}), expected a plain array of numbers;"
            " objects and pickles are refused, save it as uint8, floats or integers"
        ) from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: {key} is an archive, expected an array; write the file with np.savez")
    return array


def _images(path: Path, key: str, array: np.ndarray) -> Tensor:
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"{path}: {key} is {array.dtype}, expected uint8 (0 to 255) or floats; try {key}.astype(np.uint8)"
        )
    with np.errstate(over="ignore"):  # what overflows becomes infinite, which `check_images` reports
        x = torch.from_numpy(array.astype(np.float32))
    x = x / 255 if array.dtype == np.uint8 else x
    return x[:, None] if x.ndim == 3 else x


def _labels(path: Path, key: str, array: np.ndarray) -> Tensor:
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{path}: {key} is {array.dtype}, expected integers; try {key}.astype(np.int64)")
    return torch.from_numpy(array.astype(np.int64))

"""Image sets of one's own, in a NumPy ``.npz`` file."""

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from bayesws.data.images import ImageData
from bayesws.io.archives import weighed
from bayesws.io.arguments import whole_text

MOST_CLASSES = 2**16
CHUNK = 2**20  # numbers that are read at once
CURE = "copy or write it again"
_KEYS = ("train_x", "train_y", "test_x", "test_y")
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_PLAIN = "expected a plain array of numbers; objects and pickles are refused, save it as uint8, floats or integers"


@dataclass(frozen=True)
class _Array:
    """What the header of a .npy file says, and the stream that its numbers come from."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    by_columns: bool
    stream: IO[bytes]

    def read(self, dtype: type[np.number[Any]]) -> Tensor:
        """All numbers as another type, without a second copy of them all in their own."""
        numbers = np.empty(math.prod(self.shape), dtype)
        for start in range(0, len(numbers), CHUNK):
            part = self.stream.read(min(CHUNK, len(numbers) - start) * self.dtype.itemsize)
            numbers[start : start + CHUNK] = np.frombuffer(part, self.dtype)
        order = reversed(range(len(self.shape))) if self.by_columns else range(len(self.shape))
        return torch.from_numpy(numbers).reshape(self.shape[::-1] if self.by_columns else self.shape).permute(*order)


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
    with weighed(path, str(path), CURE) as archive:
        _check_keys(path, archive)
        train_x, test_x = (_images(path, key, archive) for key in ("train_x", "test_x"))
        train_y, test_y = (_labels(path, key, archive) for key in ("train_y", "test_y"))
    largest = max((int(y.max()) for y in (train_y, test_y) if y.numel()), default=0)
    if largest >= MOST_CLASSES:
        raise ValueError(f"{path} has a label {largest}, expected less than {MOST_CLASSES}; renumber them from 0")
    try:
        return ImageData(path.stem, (train_x, train_y), (test_x, test_y), num_classes=max(largest, 0) + 1)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_keys(path: Path, archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    if missing := [key for key in _KEYS if f"{key}.npy" not in names]:
        there = ", ".join(ascii(name.removesuffix(".npy"))[1:-1] for name in names) or "nothing"
        raise ValueError(
            f"{path} lacks {', '.join(missing)}, it has {there}; write it with"
            f" np.savez(path, {', '.join(f'{key}=…' for key in _KEYS)})"
        )


@contextmanager
def _array(path: Path, key: str, archive: zipfile.ZipFile) -> Iterator[_Array]:
    """An array whose numbers are all in its member, to be read."""
    with archive.open(f"{key}.npy") as stream:
        try:
            header = _HEADERS[np.lib.format.read_magic(stream)](stream)
        except (ValueError, EOFError, KeyError, TypeError, RecursionError, MemoryError) as error:
            raise ValueError(f"{path}: {key} cannot be read ({whole_text(error)}), {_PLAIN}") from error
        shape, by_columns, dtype = header
        if dtype.hasobject:
            raise ValueError(f"{path}: {key} cannot be read (it holds objects), {_PLAIN}")
        declared, there = math.prod(shape) * dtype.itemsize, archive.getinfo(f"{key}.npy").file_size - stream.tell()
        if declared != there or any(size < 0 for size in shape):
            raise ValueError(f"{path}: {key} cannot be read ({declared} bytes declared, {there} there), {_PLAIN}")
        yield _Array(dtype, shape, by_columns, stream)


def _images(path: Path, key: str, archive: zipfile.ZipFile) -> Tensor:
    """In float32, without a second copy of them all in the type that they are kept in."""
    with _array(path, key, archive) as array:
        if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
            raise ValueError(
                f"{path}: {key} is {array.dtype}, expected uint8 (0 to 255) or floats; try {key}.astype(np.uint8)"
            )
        with np.errstate(over="ignore"):  # what overflows becomes infinite, which `check_images` reports
            x = array.read(np.float32)
    x = x.div_(255) if array.dtype == np.uint8 else x
    return x[:, None] if x.ndim == 3 else x


def _labels(path: Path, key: str, archive: zipfile.ZipFile) -> Tensor:
    with _array(path, key, archive) as array:
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{path}: {key} is {array.dtype}, expected integers; try {key}.astype(np.int64)")
        return array.read(np.int64)

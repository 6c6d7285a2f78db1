"""The IDX format of the MNIST files: two zero bytes, a type, a rank, big-endian sizes, then the numbers."""

import gzip
import math
import zlib
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from bayesws.io.archives import FOLDS, FREE

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, rank: int) -> UInt8[Tensor, "..."]:
    """An IDX file of unsigned bytes; one whose name ends in ``.gz`` is unpacked in memory, never on disk.

    Args:
        path: the file.
        rank: the expected number of axes, 3 for images and 1 for labels.

    Raises:
        ValueError: if it cannot be read, is truncated or corrupt, or not IDX bytes of that rank.

    Reference: http://yann.lecun.com/exdb/mnist/
    """
    retry = "delete it and download it again"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = 4 + 4 * rank
            header = file.read(start)
            if header[:4] != bytes((0, 0, _UNSIGNED_BYTE, rank)):
                raise ValueError(
                    f"{path} starts with {header[:4].hex() or 'nothing'}, expected 000008{rank:02x}"
                    f" (IDX, unsigned bytes, {rank} axes); {retry}"
                )
            shape = [int.from_bytes(header[i : i + 4], "big") for i in range(4, start, 4)]
            expected, room = math.prod(shape), max(FREE, FOLDS * path.stat().st_size)
            if expected > room:
                raise ValueError(f"{path} declares {expected} values, expected at most {room}; {retry}")
            content = bytearray(file.read(expected + 1))  # one more shows that it goes on
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is truncated or corrupt ({error}), expected a whole gzip file; {retry}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if len(content) != expected or not content:
        raise ValueError(f"{path} holds {len(content)} values, expected {expected} for shape {tuple(shape)}; {retry}")
    return torch.frombuffer(content, dtype=torch.uint8).reshape(shape)

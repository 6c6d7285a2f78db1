"""The IDX format of the MNIST files: two zero bytes, a type, a rank, big-endian sizes, then the numbers."""

import gzip
import math
import zlib
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

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
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is truncated or corrupt ({error}), expected a whole gzip file; {retry}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if len(content) < 4 or content[:3] != bytes((0, 0, _UNSIGNED_BYTE)) or content[3] != rank:
        raise ValueError(
            f"{path} starts with {content[:4].hex() or 'nothing'}, expected 000008{rank:02x}"
            f" (IDX, unsigned bytes, {rank} axes); {retry}"
        )
    start = 4 + 4 * rank
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    there, expected = len(content) - start, math.prod(shape)
    if there != expected or expected == 0:
        raise ValueError(f"{path} holds {max(there, 0)} values, expected {expected} for shape {tuple(shape)}; {retry}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(shape)

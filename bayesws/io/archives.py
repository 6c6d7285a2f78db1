"""Zip archives, such as .npz, .pt and .pt2: weighed by their directory before a member is opened.

What a directory declares is compared with what lies in the file, so that a small file cannot unfold into a large one:
deflate reaches a thousandfold, images of digits fortyfold.
"""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

from bayesws.io.arguments import whole_text

FOLDS = 200  # times its size that a compressed member may unfold to,
FREE = 2**26  # bytes above which that is looked at
MEMBERS = 100_000
KNOWN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the readers of the others take memory without bound


@contextmanager
def weighed(source: Path | bytes, name: str, cure: str, stored: bool = False) -> Iterator[zipfile.ZipFile]:
    """A zip archive whose directory can be believed; what is read from it has its checksums verified.

    Args:
        source: a file, or its content.
        name: what an error calls it.
        cure: what to do about it, the end of every error.
        stored: nothing in it may be compressed.

    Raises:
        ValueError: in one line, here or while a member is read: a file that is none or is damaged, members that are
            named twice, encrypted, compressed in a way that cannot be weighed or beyond what data are.
    """
    try:
        file: IO[bytes] = BytesIO(source) if isinstance(source, bytes) else source.open("rb")
        with file, zipfile.ZipFile(file) as archive:
            size = file.seek(0, 2)
            _weigh(archive, size, name, cure, stored)
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        said = whole_text(error)
        raise ValueError(f"{name} is truncated or corrupt ({said}), expected a whole zip archive; {cure}") from error
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror or error}); {cure}") from error


def _weigh(archive: zipfile.ZipFile, size: int, name: str, cure: str, stored: bool) -> None:
    members = archive.infolist()
    if len(members) > MEMBERS:
        raise ValueError(f"{name} has {len(members)} members, expected at most {MEMBERS}; {cure}")
    seen: set[str] = set()
    unfolded = 0
    for member in members:
        what = f"{name}: member {member.filename!a}"
        if member.filename in seen:
            raise ValueError(f"{what} is there twice, expected every name once; {cure}")
        seen.add(member.filename)
        if member.flag_bits & 1:
            raise ValueError(f"{what} is encrypted, expected a plain one; {cure}")
        if member.compress_type not in KNOWN or (stored and member.compress_type != zipfile.ZIP_STORED):
            expected = "an uncompressed one" if stored else "stored or deflated"
            raise ValueError(f"{what} is compressed by method {member.compress_type}, expected {expected}; {cure}")
        if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
            raise ValueError(f"{what} declares {member.file_size} bytes and has {member.compress_size}; {cure}")
        unfolded += member.file_size
    packed = sum(member.compress_size for member in members)
    if packed > size:
        raise ValueError(f"{name}: its members have {packed} bytes, in a file of {size}; {cure}")
    if unfolded > max(FREE, FOLDS * size):
        raise ValueError(
            f"{name}: {size} bytes that would unfold to {unfolded}, expected at most {FOLDS} times as many; {cure}"
        )

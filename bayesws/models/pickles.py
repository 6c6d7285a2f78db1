"""What torch.save wrote, looked through before it is read: which names it would call, and how large it says it is.

torch.load with weights_only=True calls nothing but torch's own; it is always asked for, and this comes before it: a
number in a pickle is memory as soon as it is read, and a name that is no tensor's is told by name.
"""

import io
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesws.io.archives import weighed
from bayesws.io.arguments import first_line
from bayesws.io.tables import visible

ZIP = b"PK\x03\x04"
LEGACY_PICKLES = 4  # magic number, protocol, system, and what was saved
ALWAYS = 2**20  # a number that may stand in any file
PLAIN = re.compile(
    r"collections OrderedDict|torch (\w+Storage|Size|device|u?int\d+|b?float\w+|complex\d+|bool)"
    r"|torch\.storage \w+Storage|torch\.nn\.parameter Parameter"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
)
NAMING = ("GLOBAL", "INST")
NUMBERS = ("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4")
BY_STACK = ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX")  # of newer protocols than torch.save's own


def state_of(path: Path, cure: str) -> Any:
    """What torch.save put into a file, of which nothing is called but what makes tensors.

    Args:
        path: the file.
        cure: what to do where it cannot be read, the end of every error.

    Raises:
        ValueError: in one line, a file that is damaged, calls something else, or declares more than it has.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; {cure}") from error
    content = check_pickles(content, str(path), cure)
    try:
        found = torch.load(io.BytesIO(content), "cpu", weights_only=True)
    except Exception as error:  # pickle's own and torch's: a damaged file fails in many ways
        raise ValueError(f"{path} cannot be read: {visible(first_line(error))}; {cure}") from error
    return found


def check_pickles(content: bytes, name: str, cure: str) -> bytes:
    """What torch.save wrote, as it may be read by torch.load: a pickle, or an archive with one, of tensors alone.

    Raises:
        ValueError: as `state_of`.
    """
    if not content.startswith(ZIP):
        _look_through(content, name, cure, len(content), LEGACY_PICKLES)
        return content
    with weighed(content, name, cure, stored=True) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    for member, pickled in members.items():
        if member.endswith(".pkl"):
            _look_through(pickled, f"{name}: member {member!a}", cure, len(content), 1)
    return whole(members)


def whole(members: Mapping[str, bytes]) -> bytes:
    """A zip archive of these members and nothing else: what another reader would see in theirs is left behind."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return buffer.getvalue()


def _look_through(content: bytes, name: str, cure: str, size: int, count: int) -> None:
    """Raise ValueError for a pickle that calls what is no tensor's, or that has a number beyond its file."""
    stream = io.BytesIO(content)
    try:
        for part in range(count):
            for operation, argument, _place in pickletools.genops(stream):
                if operation.name in BY_STACK:
                    raise _Told("holds more than tensors: names that are put together as it is read")
                if operation.name in NAMING and not PLAIN.fullmatch(str(argument)):
                    raise _Told(f"holds more than tensors, it would call {visible(str(argument))!r}")
                number = argument if operation.name in NUMBERS and part == count - 1 else 0
                if isinstance(number, int) and number > max(size, ALWAYS):
                    raise _Told(f"has a size of {number} in {size} bytes, expected at most as many")
    except _Told as error:
        raise ValueError(f"{name} {error}; {cure}") from error
    except (ValueError, EOFError, IndexError, KeyError) as error:
        raise ValueError(f"{name} cannot be read: {visible(' '.join(str(error).split()))}; {cure}") from error


class _Told(Exception):
    """What is amiss with a pickle that can be read."""


def check_sizes(tensors: Mapping[str, Tensor], path: Path, cure: str) -> None:
    """Raise ValueError for tensors beyond the file that they are in, or of another kind than numbers in memory."""
    size = path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            came = f"{tensor.layout} on {tensor.device}"
            raise ValueError(f"{path} has {visible(name)!r} as {came}, expected plain numbers; {cure}")
        if tensor.numel() * tensor.element_size() > size:
            raise ValueError(f"{path} has {visible(name)!r} of shape {tuple(tensor.shape)} in {size} bytes; {cure}")

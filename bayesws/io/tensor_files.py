"""Tensors read from files: weighed by their header, known by the SHA-256 that the record beside them has."""

import hashlib
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from bayesws.io.arguments import whole_text
from bayesws.io.json_files import parsed

LARGEST_HEADER = 2**21  # bytes: some twenty thousand tensors

Digest = Annotated[str, Len(64, 64)]
Headers = dict[str, dict[str, Any]]


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path, cure: str, digest: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name in a safetensors file, and the texts that its header keeps beside them.

    Args:
        path: of the file.
        cure: what to do where it is not what it should be, the end of every error.
        digest: the SHA-256 that its bytes must have.

    Raises:
        ValueError: in one line, a file that is missing, damaged or of another digest.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; {cure}") from error
    if digest is not None and (found := hashlib.sha256(content).hexdigest()) != digest:
        raise ValueError(
            f"{path} was changed, or is of another fit: its SHA-256 is {found[:12]}…, expected {digest[:12]}…; {cure}"
        )
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(len(content) - 8, LARGEST_HEADER):
        most = min(max(len(content) - 8, 0), LARGEST_HEADER)
        raise ValueError(f"{path} is damaged: a header of {length} bytes, expected at most {most}; {cure}")
    header = parsed(content[8 : 8 + length].rstrip(), f"{path}", Headers, cure, sealed=False)
    try:
        return load(content), header.get("__metadata__", {})
    except (SafetensorError, ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {whole_text(error)}; {cure}") from error

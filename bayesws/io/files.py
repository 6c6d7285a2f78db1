"""Files and folders that are written whole or not at all, whenever the process that writes them is killed."""

import glob
import math
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

LONGEST_SHOWN = 150  # characters of a path in an error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a draft beside `path`, then put it in place in one step.

    Raises:
        ValueError: a place that cannot be written.
    """
    draft = draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.touch(exist_ok=False)
        write(draft)
        draft.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if path.parent.is_dir():
            draft.unlink(missing_ok=True)


def write_folder_whole(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a draft beside `folder`, then put it in the place of what is there.

    A kill between the two renames leaves no `folder`, never a part of one.

    Raises:
        ValueError: a place that cannot be written.
    """
    folder = folder.resolve()  # of a link what it points to
    draft, before = draft_of(folder), draft_of(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        write(draft)
        if folder.exists():
            folder.rename(before)
        draft.rename(folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    finally:
        if before.exists() and not folder.exists():
            before.rename(folder)
        for left in (draft, before):
            shutil.rmtree(left, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder as a whole: under its own name it is never seen in part."""
    left = draft_of(folder)
    folder.rename(left)
    shutil.rmtree(left)


def draft_of(path: Path) -> Path:
    """A new name beside `path`, for what is not yet or no longer it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")


def sweep_drafts(folder: Path, name: str | None = None) -> None:
    """Remove what processes that were killed left under names of `draft_of`; of all paths, or of that with a name.

    Only for who knows that nobody else writes there: see `only_writer`.
    """
    of = "*" if name is None else glob.escape(name)
    for left in folder.glob(f".{of}.{'[0-9a-f]' * 8}.draft"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def check_writable(folder: Path) -> None:
    """Raise ValueError, and leave nothing behind, where `folder` could not be made or written into.

    Looks at the folder itself or, where it is still to be made, at the nearest folder above it.
    """
    place = folder.absolute()
    try:
        if place.name:
            _is_there(draft_of(place))  # whose name is the longest beside it
        while not _is_there(place):
            place = place.parent
        if not place.is_dir():
            raise ValueError(f"cannot write into {_short(folder)}: {place} is not a folder; choose another place")
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(f"cannot write into {_short(folder)}: {error.strerror}; choose another place") from error


def without_nan(value: Any) -> Any:
    """A record as JSON has it: None for numbers that are not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, by ourselves: safetensors' own writer has drafts that nobody sweeps."""
    path.write_bytes(save(tensors, metadata))


def _is_there(path: Path) -> bool:
    """Whether anything has this name; raises OSError where nothing can have it."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _cannot_write(path: Path, error: OSError) -> ValueError:
    return ValueError(f"cannot write {_short(path)}: {error.strerror}; choose another place")


def _short(path: Path) -> str:
    """As it is shown in one line."""
    text = str(path)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."

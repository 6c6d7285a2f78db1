"""One process at a time writes into a folder, and tidies up first what a killed one left there."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bayesws.io.files import check_writable, sweep_drafts


@contextmanager
def only_writer(folder: Path, lock: Path | None = None) -> Iterator[None]:
    """Keep all others that ask for it out of `folder`, and sweep the drafts in it and in the folders in it.

    The lock is the operating system's and dies with its process; its file is removed at the end, and with it the
    folders that were made for it, where nothing else came into them. Processes that are started meanwhile do not
    inherit it.

    Args:
        folder: what is written into.
        lock: where the lock's file is; None is in the folder.

    Raises:
        ValueError: another process writes there, or nobody can.
    """
    path = (folder / ".lock" if lock is None else lock).absolute()
    check_writable(folder)
    with ExitStack() as left:
        try:
            for place in reversed([place for place in path.parents if not place.exists()]):
                place.mkdir(exist_ok=True)
                left.callback(_remove_if_empty, place)
            left.enter_context(FileLock(path, timeout=0))
            left.callback(path.unlink, missing_ok=True)  # while it is held: who opened it before asks anew
            for place in (folder, *(entry for entry in folder.glob("*") if entry.is_dir())):
                sweep_drafts(place)
        except Timeout as error:
            raise ValueError(
                f"another process is writing into {folder}: wait until it ends, or choose another place"
            ) from error
        except OSError as error:
            raise ValueError(f"cannot write into {folder}: {error.strerror}; choose another place") from error
        yield


def _remove_if_empty(folder: Path) -> None:
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()

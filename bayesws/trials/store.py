"""Trials as files: trials/<name>.json in a folder, written whole, and read only where they are what is asked for."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from bayesws.io.files import write_whole
from bayesws.io.json_files import SEAL, read_json, sealed


class TrialLike(Protocol):
    """A trial to be run, small enough to send to another process."""

    @property
    def name(self) -> str:
        """Its file, without the ending."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """All that its numbers depend on, as it comes back from JSON."""
        ...

    def run(self) -> dict[str, Any]:
        """Its record: what is stored of it beside its `settings`, as JSON has it."""
        ...


def stored(trial: TrialLike, folder: Path, required: set[str]) -> dict[str, Any] | None:
    """The record of a trial; None where the folder does not hold it.

    Args:
        trial: what is asked for.
        folder: where trials are stored.
        required: keys that a record must have.

    Raises:
        ValueError: a file that cannot be read, is damaged, or was made with other settings or by another meaning.
    """
    path = _file(trial, folder)
    if not path.exists():
        return None
    cure = "remove it, and the trial is run again"
    record = read_json(path, dict[str, Any], cure, nonfinite=True)
    if missing := sorted({"settings", *required} - set(record)):
        raise ValueError(f"{path} is damaged: {', '.join(missing)} missing; {cure}")
    found, asked = record["settings"], trial.settings
    if found == asked:
        return record
    if isinstance(found, dict) and found | {"meaning": asked.get("meaning")} == asked:
        raise ValueError(
            f"{path} has numbers of meaning {found.get('meaning')}, expected {asked['meaning']}: remove it, and the "
            "trial is run again"
        )
    raise ValueError(f"{path} was run with other settings: choose another --out, or remove it")


def store(trial: TrialLike, record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write a trial's record with its settings; returns it as `stored` will."""
    whole = sealed(record | {"settings": trial.settings})
    write_whole(_file(trial, folder), partial(_write, json.dumps(whole) + "\n"))
    return {name: value for name, value in whole.items() if name != SEAL}


def as_file_name(name: str) -> str:
    """A name as a file may have it, different for different names."""
    return quote(name, safe=" ·,()+")


def told_when_stopped(trials: Sequence[TrialLike], folder: Path) -> str:
    """What Ctrl-C left, and how to go on; empty where it left nothing."""
    count = sum(_file(trial, folder).exists() for trial in trials)
    if not count:
        return ""
    return f"{count} of {len(trials)} trials are kept in {folder / 'trials'}: the same command goes on from there"


def _file(trial: TrialLike, folder: Path) -> Path:
    return folder / "trials" / f"{trial.name}.json"


def _write(text: str, path: Path) -> None:
    path.write_text(text)

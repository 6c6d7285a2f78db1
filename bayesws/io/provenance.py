"""Where an output comes from: the command and the versions, kept in every file that is written."""

import platform
import sys
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Of this package, torch, numpy and Python."""
    return {p: version(p) for p in ("bayesws", "torch", "numpy")} | {"python": platform.python_version()}


def command() -> list[str]:
    """As it was typed, a word each."""
    return ["bayesws", *sys.argv[1:]]

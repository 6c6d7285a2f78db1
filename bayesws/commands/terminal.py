"""The console that the verbs print on."""

import sys

from rich.console import Console


def wide_console() -> Console:
    """Wide where nobody sets a width: a pipe should not fold the tables."""
    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)

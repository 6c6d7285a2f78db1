"""The console that the verbs print on."""

import sys

from bayesws.io.tables import PlainConsole


def wide_console() -> PlainConsole:
    """Wide where nobody sets a width: a pipe should not fold the tables."""
    return PlainConsole(width=None if sys.stdout.isatty() else 140)

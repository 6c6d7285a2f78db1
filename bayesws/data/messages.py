"""Which name was meant, in one line."""

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, known: Iterable[str], also: str = "") -> ValueError:
    """The one-line error for an unknown name, to be raised by the caller.

    Args:
        kind: what was named, e.g. ``"task"``.
        name: what came.
        known: what would have been accepted.
        also: anything else that would have been accepted, in words.

    >>> print(unknown_name("task", "turnt", ["turned", "upright"]))
    unknown task 'turnt'; did you mean 'turned'? Known: turned, upright
    """
    names = tuple(known)
    nearest = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return ValueError(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}{also}")

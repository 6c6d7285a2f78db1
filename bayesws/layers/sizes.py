"""Whether sizes that a caller gave can be sizes."""

from typing import Any

from bayesws.io.arguments import whole


def check_sizes(**sizes: Any) -> None:
    """Raise ValueError for a size below one, under the name that the caller gave it."""
    for name, value in sizes.items():
        whole(name, value)

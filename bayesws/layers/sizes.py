"""Whether sizes that a caller gave can be sizes."""


def check_sizes(**sizes: int) -> None:
    """Raise ValueError for a size below one, under the name that the caller gave it."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")

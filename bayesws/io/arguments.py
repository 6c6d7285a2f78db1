"""Whether what a caller gave can be what it is for, a rule a kind: sizes, rates, seeds, names, arrays, paths, devices.

What is given back is plain Python, so that records of it can be written: a numpy integer is welcome as a size.
"""

import math
import os
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGEST = 2**31 - 1  # of a whole number that is not a seed: nobody means more
LONGEST_NAME = 255  # bytes of one name in a path, on every file system that people use
SHOWN, REASON = 60, 200  # letters of what came, and of what another library says of it
LARGEST_RATE = 1e30  # of a number that is multiplied with weights in float32
LARGEST_SEED = 2**63 - 1  # torch's generators take no more


def whole(name: str, value: Any, least: int = 1, most: int = LARGEST, also: str = "") -> int:
    """A whole number of at least `least`, and at most `most`, as an int.

    Args:
        name: what the caller calls it.
        value: what came.
        least, most: the range.
        also: what else would do, in words.

    Raises:
        ValueError: anything else; True is no number.

    >>> whole("epochs", 3)
    3
    """
    number = _integer(value)
    if number is None or number < least:
        raise ValueError(f"{name}={shown(value)}: expected at least {least}, a whole number{also}")
    if number > most:
        raise ValueError(f"{name}={shown(value)}: expected at most {most}")
    return number


def real(
    name: str, value: Any, expected: str = "a number", least: float = -math.inf, above: float = -math.inf
) -> float:
    """A finite number, at least `least` and above `above`.

    Args:
        name, value: as for `whole`.
        expected: the range in words, such as "a positive number".

    Raises:
        ValueError: anything else; True is no number.
    """
    if not _is_real(value) or not math.isfinite(value) or not (value >= least and value > above):
        raise ValueError(f"{name}={shown(value)}: expected {expected}")
    return value if isinstance(value, int | float) and abs(value) < LARGEST else float(value)


def positive(name: str, value: Any, expected: str = "a positive number") -> float:
    """A finite number above 0 that float32 holds with room; `expected` says what it is."""
    given = real(name, value, expected, above=0.0)
    if given > LARGEST_RATE:
        raise ValueError(f"{name}={shown(value)}: expected {expected}, at most {LARGEST_RATE:g}")
    return given


def share(name: str, value: Any, expected: str, zero: bool = False, one: bool = False) -> float:
    """A number between 0 and 1; the ends where they are asked for."""
    if not _is_real(value) or not 0 <= value <= 1 or (value == 0 and not zero) or (value == 1 and not one):
        raise ValueError(f"{name}={shown(value)}: expected {expected}")
    return value if isinstance(value, int | float) else float(value)


def seed_of(value: Any, name: str = "seed") -> int:
    """A seed that all generators take: a whole number from 0 to 2⁶³ - 1."""
    number = _integer(value)
    if number is None or not 0 <= number <= LARGEST_SEED:
        raise ValueError(f"{name}={shown(value)}: expected a whole number from 0 to 2^63 - 1")
    return number


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={shown(value)}: expected True or False")
    return value


def numbers(what: str, given: Any) -> Tensor:
    """A tensor or a numpy array as a dense tensor that gradients can be taken through.

    Args:
        what: "inputs" or "targets", for errors.
        given: what came.

    Raises:
        ValueError: anything else; sparse, complex, quantised tensors, and those without values or without dimensions.
    """
    if isinstance(given, np.ndarray):
        try:
            given = torch.from_numpy(np.array(given, dtype=given.dtype.newbyteorder("=")))
        except TypeError as error:
            raise ValueError(f"{what} as a numpy array of {given.dtype}: expected numbers") from error
    if not isinstance(given, Tensor):
        raise ValueError(f"{what} of type {type(given).__name__}: expected a tensor or a numpy array")
    if given.is_meta or given.is_nested or given.is_quantized or given.layout != torch.strided:
        kind = (
            "without values (meta)"
            if given.is_meta
            else f"of layout {given.layout}"
            if not given.is_nested
            else "nested"
        )
        kind = "quantised" if given.is_quantized else kind
        raise ValueError(f"{what} {kind}: expected a dense tensor; try x.to_dense(), or x.dequantize()")
    if given.is_complex():
        raise ValueError(f"{what} of type {given.dtype}: expected real numbers; try torch.view_as_real")
    if not given.ndim:
        raise ValueError(
            f"{what} of shape (): expected a batch as the first dimension; a DataLoader with batch_size=None gives "
            "single examples"
        )
    return given.clone() if given.is_inference() and not torch.is_inference_mode_enabled() else given


def path_of(value: Any) -> Path:
    """A place in the file system.

    Raises:
        ValueError: what names none.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(named := os.fspath(value), str):
        raise ValueError(f"a {type(value).__name__} in the place of a path: expected a str or a Path")
    if not named or any(ord(letter) < 32 for letter in named):
        raise ValueError(f"path {shown(named)}: expected a name without line ends and the like, that is not empty")
    longest = max(len(os.fsencode(part)) for part in Path(named).parts or (named,))
    if longest > LONGEST_NAME:
        raise ValueError(f"path {shown(named)}: a name of {longest} bytes, expected at most {LONGEST_NAME}")
    return Path(named)


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    """One of some names.

    Raises:
        ValueError: another one, or what is no name.
    """
    among = tuple(known)
    if not isinstance(value, str) or value not in among:
        raise ValueError(f"{name}={shown(value)}: expected one of {', '.join(among)}")
    return value


def one_line(message: str) -> str:
    """A message on one line, with words that a terminal holds: a name of 6000 letters is told by its beginning.

    >>> one_line("cut\\nshort")
    'cut short'
    """
    return " ".join(word if len(word) <= REASON else f"{word[:REASON]}..." for word in message.split())


def first_line(error: BaseException) -> str:
    """The first line of what another library's error says, its type where it says nothing.

    >>> first_line(OSError("no route\\nto host")), first_line(EOFError())
    ('no route', 'EOFError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def whole_text(error: BaseException) -> str:
    """All that another library's error says, on one line; its type where it says nothing.

    >>> whole_text(OSError("no\\n  route")), whole_text(EOFError())
    ('no route', 'EOFError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def shown(value: Any) -> str:
    """What came, in one line that a terminal holds.

    >>> shown("x" * 100)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 2]}..."


def device_of(value: Any) -> torch.device:
    """A device that torch can compute on here.

    Raises:
        ValueError: a device that is not there, "meta", on which nothing has a value; what is no device at all.
    """
    if not isinstance(value, str | torch.device):
        raise ValueError(f"device={shown(value)}: expected 'cpu', 'cuda', 'cuda:0' or a torch.device")
    try:
        device = torch.device(value)
        torch.zeros(1, device=device).add(1)
    except (RuntimeError, AssertionError, ValueError, ImportError) as error:
        reason = first_line(error).split(". ")[0].rstrip(".")[:REASON]
        raise ValueError(f"device {shown(str(value))} cannot be used here: {reason}; try 'cpu'") from error
    if device.type == "meta":
        raise ValueError("device 'meta' cannot be used here: its tensors have no values; try 'cpu'")
    return device


def _integer(value: Any) -> int | None:
    """A whole number as an int, None for what is none."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)

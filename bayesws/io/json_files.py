"""JSON as every file of this package is read: one reader, a schema for each kind of file, a seal on what we wrote.

A schema is a dataclass, or any type hint: the value that comes back is one. They are checked by pydantic, which takes
the dataclasses that there are; msgspec forbids unknown keys only in classes of its own, and jsonschema would have every
type said twice. A seal is the SHA-256 of the rest of a record, in a key of its own: a changed number is told from a
true one.
"""

import hashlib
import json
import math
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Le
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from bayesws.io.tables import visible

SEAL = "sha256"
DIGITS = 20  # of a whole number
VALUE = 64  # bytes that a value takes in memory, roughly
WEIGHT = 2**26  # bytes of values that are always read
SHOWN = 60  # characters of a value in an error

T = TypeVar("T")
Count = Annotated[int, Ge(0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Measured = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]  # null is nan
Fraction = Annotated[Measured, AfterValidator(lambda value: _within(value, 0.0, 1.0))]
Seconds = Annotated[float, Ge(0.0), Le(1e12)]


def read_json(path: str | Path, kind: type[T], cure: str, *, sealed: bool = True, nonfinite: bool = False) -> T:
    """The value in a JSON file.

    Args:
        path: of the file.
        kind: what it must be: a type hint, in which dataclasses stand for objects with just their fields.
        cure: what to do where it is not, the end of every error.
        sealed: the file has a seal, and it must be the one of the rest.
        nonfinite: NaN and Infinity may stand in it, which JSON does not have.

    Raises:
        ValueError: what cannot be read, is not JSON or not of this kind, names a key twice, or is not as it was sealed;
            in one line with the file, the place in it, what came and what was expected.
    """
    try:
        return parsed(Path(path).read_bytes(), str(path), kind, cure, sealed=sealed, nonfinite=nonfinite)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; {cure}") from error


def parsed(content: bytes, name: str, kind: type[T], cure: str, *, sealed: bool = True, nonfinite: bool = False) -> T:
    """The value of a JSON text: see `read_json`; `name` is what an error calls it."""
    values = sum(content.count(mark) for mark in (b",", b"[", b"{"))
    if values * VALUE > max(WEIGHT, 4 * len(content)):
        raise ValueError(f"{name} is damaged: {len(content)} bytes with {values} values, expected fewer; {cure}")
    try:
        record = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_named_once,
            parse_int=_whole,
            parse_float=float if nonfinite else _finite,
            parse_constant=float if nonfinite else _no_number,
        )
        if sealed:
            content = json.dumps(_opened(record)).encode()
        del record  # which is as large as what is made from it
        found: tuple[T] = _schema(kind).validate_json(b"[" + content + b"]")  # type: ignore[arg-type]
        return found[0]
    except ValidationError as error:
        raise ValueError(f"{name} is damaged: {_told(error)}; {cure}") from error
    except RecursionError as error:
        raise ValueError(f"{name} is damaged: nested too deeply, expected at most 200 levels; {cure}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is damaged: byte {error.start} is no UTF-8, expected JSON; {cure}") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{name} is damaged: no JSON at {place}: {visible(error.msg)}; {cure}") from error
    except ValueError as error:
        raise ValueError(f"{name} is damaged: {visible(str(error))}; {cure}") from error


def of_kind(value: Any, kind: type[T], name: str, cure: str) -> T:
    """A part of what was read as JSON, as a value of a kind: see `read_json`."""
    return parsed(json.dumps(value).encode(), name, kind, cure, sealed=False, nonfinite=True)


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record as it comes back from JSON, and its seal: the SHA-256 of all the rest, however it is laid out.

    >>> sealed({"b": 1, "a": (2.5,)})["sha256"] == sealed({"a": [2.5], "b": 1})["sha256"]
    True
    """
    if SEAL in record:
        raise ValueError(f"a record with a key {SEAL!r}: expected another name, that one is the seal's")
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain | {SEAL: _digest(plain)}


def _opened(record: Any) -> dict[str, Any]:
    """A sealed record without its seal."""
    if not isinstance(record, dict):
        raise ValueError(f"{in_json(record)} came, expected an object")
    if SEAL not in record:
        raise ValueError(f"{SEAL!r} is missing, which every file of this version has")
    rest = {name: value for name, value in record.items() if name != SEAL}
    if record[SEAL] != _digest(rest):
        raise ValueError(f"its content was changed since it was written: its {SEAL} is of something else")
    return rest


def _digest(record: dict[str, Any]) -> str:
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


@cache
def _schema(kind: Any) -> TypeAdapter[Any]:
    """Of a tuple around it: what is said of unknown keys and of types then holds in every dataclass inside."""
    return TypeAdapter(tuple[kind], config=ConfigDict(extra="forbid", strict=True))


def _told(error: ValidationError) -> str:
    """The first thing that is amiss: where, what came, what was expected."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"][1:]))
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {visible(where)!r}"
    if first["type"].startswith("missing"):
        return f"{visible(where)!r} is missing"
    expected = first["msg"].replace("Input should be", "expected").replace("Value error, ", "")
    said = visible(" ".join(expected.split()))
    return f"{visible(where) + ' ' if where else ''}{in_json(first['input'])}: {said}"


def in_json(value: Any) -> str:
    """A value from JSON as it stands in the file, cut off where it is long."""
    text = visible(value if isinstance(value, str) and len(value) > 1000 else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _within(value: float, low: float, high: float) -> float:
    """The value, unless it is out of bounds; nan is not."""
    if value < low or value > high:
        raise ValueError(f"expected a number from {low:g} to {high:g}")
    return value


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, whose reader would keep the last of two of a name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is given twice, expected every name once")
    return found


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits, expected at most {DIGITS}")
    return int(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"the number {digits[:20]} is too large, expected at most 1.8e308")
    return value


def _no_number(word: str) -> float:
    raise ValueError(f"{word} came, expected a number or null, which JSON has")

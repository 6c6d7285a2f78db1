"""Exported programs, FILE.pt2: read so that nothing in the file is run but operations on tensors.

torch.export.load unpickles example inputs and whatever the configuration of the weights calls pickled, evaluates sizes
and guards as Python, imports what enumerations name, and resolves an operation by any dotted name in torch. So the
archive is read here, member by member, refused by name where it asks for one of these, and written anew with only what
a program needs; that is what torch.export.load gets.
"""

import ast
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from bayesws.io.archives import weighed
from bayesws.io.arguments import first_line
from bayesws.io.json_files import parsed
from bayesws.io.tables import visible
from bayesws.models.pickles import check_pickles, whole

CURE = "export it again by torch.export.save; with --trust (trust=True) it is opened as it is, and may run code"
KEPT = re.compile(r"archive_format|archive_version|byteorder|version|\.data/\w+")
LEFT_OUT = re.compile(r"extra/.*|data/sample_inputs/\w+\.pt")  # nothing of a program is in them
PAYLOAD = re.compile(r"(weight|tensor)_\d+")
CONFIGS = re.compile(r"data/(weights|constants)/\w+_config\.json")
NAME = re.compile(r"[A-Za-z_]\w*|", re.A)
WORD = re.compile(r"[\w.+\-]*", re.A)
TEXT = re.compile(r"[\w ,.\->+*:()]*", re.A)  # of an argument, such as an equation
OPERATION = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b|save\b)\w+\.\w+|_operator\.\w+|math\.\w+|torch\.sym_\w+"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast)"
)
NOT_ARITHMETIC = {"_operator.attrgetter", "_operator.itemgetter", "_operator.methodcaller", "_operator.call"}
FUNCTIONS = frozenset(  # of a size, as sympy writes them
    "Symbol Integer Rational Float Add Mul Pow Max Min Mod PythonMod FloorDiv CeilDiv CleanDiv ModularIndexing "
    "TruncToInt CeilToInt FloorToInt RoundToInt ToFloat TruncToFloat IntTrueDiv FloatTrueDiv Identity Eq Ne Lt Le Gt "
    "Ge Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan And Or Not".split()
)
CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
LONGEST_SIZE = 4000  # characters of an expression
MOST_POWERS = 4  # in one: powers of powers take time and memory without bound
POWER = re.compile(r"-?\d|Integer\(-?\d\)")
ARITHMETIC: tuple[type[ast.AST], ...] = (
    *(ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.UnaryOp, ast.USub),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod),
    *(ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
)
FREE = 2**28  # bytes of activations that any program may have,
TIMES = 1000  # and how many times its weights and inputs


def read_program(path: Path, trust: bool = False) -> ExportedProgram:
    """The program that torch.export.save wrote into a file.

    Args:
        path: the file.
        trust: open it as torch does, which runs what somebody put into it.

    Raises:
        ValueError: in one line with the member: what would be unpickled, run or imported, a damaged archive, sizes
            beyond what it holds.
    """
    source: Any = str(path)
    if not trust:
        source = io.BytesIO(whole(_members(path)))
    try:
        program = torch.export.load(source)
    except Exception as error:  # a damaged program fails in many ways
        raise ValueError(
            f"{path} is no program saved by torch.export.save: {visible(first_line(error))}; {CURE}"
        ) from error
    if not trust:
        _check_memory(program, path)
    return program


def _members(path: Path) -> dict[str, bytes]:
    """All that a program needs, by the name that torch gives it: checked, and as it may be opened."""
    found: dict[str, bytes] = {}
    with weighed(path, str(path), CURE, stored=True) as archive:
        roots = {name.partition("/")[0] for name in archive.namelist()}
        if len(roots) != 1:
            raise ValueError(f"{path} is no program saved by torch.export.save: {len(roots)} folders in it; {CURE}")
        (root,) = roots
        inside = [name.partition("/")[2] for name in archive.namelist()]
        models = [name for name in inside if name.startswith("models/")]
        if models != ["models/model.json"]:
            raise ValueError(f"{path} is no program saved by torch.export.save: no models/model.json alone; {CURE}")
        for name in inside:
            what = f"{path}: member {name!a}"
            folder, _, last = name.rpartition("/")
            if LEFT_OUT.fullmatch(name):
                if name.endswith(".pt"):  # it is left out, and still worth a word
                    check_pickles(archive.read(f"{root}/{name}"), what, CURE)
                continue
            if name == "models/model.json":
                found[name] = _program(archive.read(f"{root}/{name}"), what)
            elif CONFIGS.fullmatch(name):
                sizes = {n: archive.getinfo(f"{root}/{n}").file_size for n in inside}
                found[name] = _config(archive.read(f"{root}/{name}"), what, folder, sizes)
            elif KEPT.fullmatch(name) or (folder in ("data/weights", "data/constants") and PAYLOAD.fullmatch(last)):
                found[name] = archive.read(f"{root}/{name}")
            else:
                raise ValueError(f"{what} is not of a program of tensors, it may run code when it is opened; {CURE}")
    found["data/sample_inputs/model.pt"] = b""
    return {f"model/{name}": member for name, member in found.items()}


def _config(content: bytes, what: str, folder: str, sizes: Mapping[str, int]) -> bytes:
    """The configuration of weights or constants: plain numbers alone, none larger than the member that holds it."""
    record = parsed(content, what, dict[str, dict[str, dict[str, Any]]], CURE, sealed=False)
    for name, entry in record.get("config", {}).items():
        if entry.get("use_pickle") is not False:
            raise ValueError(f"{what} would unpickle {visible(name)!r}; {CURE}")
        payload = str(entry.get("path_name"))
        if not PAYLOAD.fullmatch(payload) or f"{folder}/{payload}" not in sizes:
            raise ValueError(f"{what} keeps {visible(name)!r} in {visible(payload)!r}, expected a tensor's; {CURE}")
        try:
            count = math.prod(size["as_int"] for size in entry["tensor_meta"]["sizes"])
            held = sizes[f"{folder}/{payload}"]
            if type(count) is not int or not 0 <= count <= held:
                raise ValueError(f"{what} has {visible(name)!r} of {count} numbers in {held} bytes; {CURE}")
        except (KeyError, TypeError) as error:
            raise ValueError(f"{what} has no size for {visible(name)!r}; {CURE}") from error
    _check_words(record, what)
    return json.dumps(record).encode()


def _program(content: bytes, what: str) -> bytes:
    """The program without what it does not need: guards, and where in somebody's code an operation came from."""
    record = parsed(content, what, dict[str, Any], CURE, sealed=False)
    plain = _without_metadata(record) | {"guards_code": []}
    _check_words(plain, what)
    return json.dumps(plain).encode()


def _without_metadata(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: {} if key == "metadata" else _without_metadata(entry) for key, entry in value.items()}
    return [_without_metadata(entry) for entry in value] if isinstance(value, list) else value


def _check_words(value: Any, what: str) -> None:
    """Raise ValueError for a text that is not what its place may have."""
    for key, entry in _entries(value):
        if key == "custom_obj_values" and not entry:
            continue
        if key in ("as_custom_obj", "custom_obj", "custom_obj_values", "token") and entry is not None:
            raise ValueError(f"{what} holds an object of somebody's own ({key}), which would be unpickled; {CURE}")
        if not isinstance(entry, str):
            continue
        if key == "expr_str":
            sound = _is_size(entry)
        elif key in ("target", "as_operator"):
            sound = bool(OPERATION.fullmatch(entry)) and entry not in NOT_ARITHMETIC
        elif key in ("in_spec", "out_spec"):
            sound = _is_tree(entry, what)
        elif key in ("name", "as_name"):
            sound = bool(NAME.fullmatch(entry))
        elif key == "as_string":
            sound = bool(TEXT.fullmatch(entry))
        else:
            sound = bool(WORD.fullmatch(entry))
        if not sound:
            raise ValueError(f"{what} has {key} {visible(entry)[:60]!r}, which may run code; {CURE}")


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a record, and every key, with the key that it is under."""
    yield key, value
    if isinstance(value, dict):
        for name, entry in value.items():
            yield "", name
            yield from _entries(entry, name)
    elif isinstance(value, list):
        for entry in value:
            yield from _entries(entry, key)


def _is_size(text: str) -> bool:
    """Whether an expression is a size: whole numbers, symbols and arithmetic of these; sympy would evaluate any."""
    if len(text) > LONGEST_SIZE:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    powers = [ast.unparse(n.args[-1]) for n in nodes if isinstance(n, ast.Call) and _called(n) == "Pow" and n.args]
    if len(powers) > MOST_POWERS or not all(map(POWER.fullmatch, powers)):
        return False
    symbols = [node.args[0] for node in nodes if isinstance(node, ast.Call) and _called(node) == "Symbol" and node.args]
    for node in nodes:
        if not isinstance(node, ARITHMETIC):
            return False
        if isinstance(node, ast.Call) and _called(node) not in FUNCTIONS:
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if not any(node is symbol for symbol in symbols) or not NAME.fullmatch(node.value):
                return False
        elif isinstance(node, ast.Constant) and not isinstance(node.value, int | float):
            return False
        if isinstance(node, ast.Name) and not re.fullmatch(r"[a-z]{1,3}\d+", node.id) and node.id not in FUNCTIONS:
            return False
    return True


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _is_tree(text: str, what: str) -> bool:
    """Whether a program takes tensors in tuples, lists and dictionaries; others would be made by their name."""
    tree = parsed(text.encode(), what, list[Any], CURE, sealed=False)
    for key, entry in _entries(tree):
        if key == "type" and entry not in CONTAINERS:
            return False
        if key == "context" and isinstance(entry, str):
            named = [] if entry == "null" else parsed(entry.encode(), what, list[str | int], CURE, sealed=False)
            if not all(WORD.fullmatch(str(name)) for name in named):
                return False
    return True


def _check_memory(program: ExportedProgram, path: Path) -> None:
    """Raise ValueError for a program that makes far more than it has: its own sizes, whatever its file's."""
    made = given = 0
    for node in program.graph.nodes:
        held = sum(_bytes(part) for part in _parts(node.meta.get("val")))
        given, made = (given + held, made) if node.op == "placeholder" else (given, made + held)
    if made > max(FREE, TIMES * given):
        raise ValueError(f"{path} would make {made} bytes of {given} that it has and takes; {CURE}")


def _parts(value: Any) -> list[Any]:
    return [part for entry in value for part in _parts(entry)] if isinstance(value, list | tuple) else [value]


def _bytes(value: Any) -> int:
    """Of a tensor; a size that is open counts as one."""
    if not isinstance(value, Tensor):
        return 0
    return math.prod(size if isinstance(size, int) else 1 for size in value.shape) * value.element_size()

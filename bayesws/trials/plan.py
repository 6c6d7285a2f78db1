"""What the file of a study may say, checked as a whole before anything is run."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, Unpack, get_args, get_origin, get_type_hints

from bayesws.data import load
from bayesws.data.tasks import task as task_named
from bayesws.evidence.curvature import Curvature
from bayesws.io.arguments import seed_of
from bayesws.io.json_files import in_json, read_json
from bayesws.models import known_models
from bayesws.training.fit import fit
from bayesws.training.objectives.names import OBJECTIVES, objective_named, setting_names, with_settings
from bayesws.training.schedule import STARTS, Schedule
from bayesws.trials.spec import network_arguments

Kinds = Mapping[str, Any]

FIELDS: Kinds = {
    "data": dict[str, Any],
    "tasks": list[str],
    "train_sizes": list[int],
    "seeds": int,
    "epochs": int | dict[str, int],
    "methods": dict[str, Any],
}
OPTIONAL_FIELDS: Kinds = {"seed": int, "judge": dict[str, Any] | None}
METHOD_FIELDS: Kinds = {
    "model": str,
    "network": dict[str, Any],
    "fit": dict[str, Any],
    "curvature": dict[str, Any] | None,
    "seeds": int,
    "train_sizes": list[int],
}
# what the study sets itself, or JSON cannot say
DATA_ARGUMENTS = {"task", "seed", "train_size"}
NETWORK_ARGUMENTS = {"in_channels", "num_classes", "device", "dtype"}
FIT_ARGUMENTS = {"net", "train", "curvature", "seed", "schedule", "device", "progress", "keep_posterior", "checkpoint"}
FIT_ARGUMENTS |= {"settings", "terms"}
CHOICES = {"objective": OBJECTIVES, "start": STARTS, "likelihood": ("classification",)}
MOST_SEEDS = 10_000
WORDS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    NoneType: "null",
    dict: "an object",
}


def read_plan(path: Path) -> dict[str, Any]:
    """The plan in a study's JSON file, see `Study.read`.

    Raises:
        ValueError: a file that cannot be read, and whatever in it no trial could be run with, by file and method.
    """
    with _said_of("study"):
        plan = read_json(path, dict[str, Any], "mend it; bayesws study --help shows a whole one", sealed=False)
    with _said_of(f"study {path}"):
        _check_fields(plan, {**FIELDS, **OPTIONAL_FIELDS}, required=FIELDS)
        seed_of(plan.get("seed", 0))
        _check_listed(plan, "tasks")
        _check_listed(plan, "train_sizes")
        _check_counts(plan, "train_sizes", "seeds", "epochs")
        for name in plan["tasks"]:
            task_named(name)
        with _said_of("data"):
            _check_fields(plan["data"], _kinds(load) | {"fresh": bool}, DATA_ARGUMENTS, required=["name"])
        _check_curvature("judge", plan.get("judge"))
        if not plan["methods"]:
            raise ValueError("methods is empty: expected one method or more, by name")
        for name, method in plan["methods"].items():
            with _said_of(f"method {name!r}"):
                _check_method(name, method, plan)
    return plan


def _check_method(name: str, method: Any, plan: dict[str, Any]) -> None:
    if not name or not name.isprintable() or "/" in name or "\\" in name:
        raise ValueError("the name becomes part of a file's: expected letters, numbers, spaces, no / and no \\")
    _check_fields(method, METHOD_FIELDS, required=["model"])
    _check_counts(method, "seeds", "train_sizes")
    sizes = method.get("train_sizes", plan["train_sizes"])
    if not set(sizes) & set(plan["train_sizes"]):
        raise ValueError(f"train_sizes {sizes}: expected some of the study's, {plan['train_sizes']}")
    if method["model"] not in known_models():
        raise ValueError(f"model {method['model']!r}: expected one of {', '.join(known_models())}")
    with _said_of("network"):
        _check_network(method["model"], method.get("network", {}))
    given = method.get("fit", {})
    with _said_of("fit"):
        _check_fit(given)
    if "epochs" not in given and isinstance(plan["epochs"], dict):
        for size in plan["train_sizes"]:
            if size in sizes and str(size) not in plan["epochs"]:
                raise ValueError(f"no epochs for {size} training images: add {str(size)!r} to epochs")
    _check_curvature("curvature", method.get("curvature"))


def _check_curvature(name: str, given: dict[str, Any] | None) -> None:
    with _said_of(name):
        _check_fields(given or {}, get_type_hints(Curvature))
        Curvature(**given or {})


def _check_network(model: str, given: dict[str, Any]) -> None:
    """Build it once, without memory, and for as few channels and classes as there may be."""
    network = known_models()[model]
    kinds = _kinds(network.__init__)
    kinds.pop("sharing", None)  # JSON says it by its attributes
    _check_fields(given, kinds, NETWORK_ARGUMENTS)
    network(in_channels=1, num_classes=2, device="meta", **network_arguments(given))


def _check_fit(given: dict[str, Any]) -> None:
    for name, known in CHOICES.items():
        if name in given and given[name] not in known:
            raise ValueError(f"{name} {in_json(given[name])}: expected one of {', '.join(map(in_json, known))}")
    objective = objective_named(given.get("objective", "evidence"))
    its_own = {name: kind for name, kind in get_type_hints(type(objective)).items() if name in setting_names(objective)}
    _check_fields(given, _kinds(fit) | get_type_hints(Schedule) | its_own, FIT_ARGUMENTS)
    with_settings(Schedule(), objective, {k: v for k, v in given.items() if k not in _kinds(fit)})


def _kinds(call: Any) -> dict[str, Any]:
    """What a call takes, and of which types; keywords that a TypedDict lists are taken one by one."""
    kinds: dict[str, Any] = {}
    for name, kind in get_type_hints(call).items():
        if get_origin(kind) is Unpack:
            kinds |= get_type_hints(get_args(kind)[0])
        elif name != "return":
            kinds[name] = kind
    return kinds


def _check_fields(given: Any, kinds: Kinds, reserved: Collection[str] = (), required: Collection[str] = ()) -> None:
    """Names and types of an object from JSON; `reserved` may not be given, though they have a kind."""
    known = ", ".join(sorted(set(kinds) - set(reserved)))
    if not isinstance(given, dict):
        raise ValueError(f"{in_json(given)}: expected an object with {known}")
    if taken := sorted(set(given) & set(reserved)):
        raise ValueError(f"{', '.join(taken)} cannot be given: the study sets it; leave it out")
    if unknown := sorted(set(given) - set(kinds)):
        raise ValueError(f"unknown {', '.join(unknown)}; expected {known}")
    if missing := sorted(set(required) - set(given)):
        raise ValueError(f"{', '.join(missing)} missing: add it")
    for name, value in given.items():
        if not _fits(value, kinds[name]):
            raise ValueError(f"{name} {in_json(value)}: expected {_in_words(kinds[name])}")


def _check_listed(plan: dict[str, Any], name: str) -> None:
    values = plan[name]
    if not values:
        raise ValueError(f"{name} is empty: expected one or more")
    if twice := next((v for i, v in enumerate(values) if v in values[:i]), None):
        raise ValueError(f"{name} has {in_json(twice)} twice: expected every one once")


def _check_counts(given: dict[str, Any], *names: str) -> None:
    for name in names:
        value = given.get(name, 1)
        counts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if low := [count for count in counts if count < 1]:
            raise ValueError(f"{name} {low[0]}: expected at least 1")
        if name == "seeds" and value > MOST_SEEDS:
            raise ValueError(f"seeds {value}: expected at most {MOST_SEEDS}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value from JSON may stand where Python expects `kind`."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, k) for k in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(v, inner[1]) for v in value.values())
    if _is_list(origin):
        return isinstance(value, list) and all(_fits(v, inner[0]) for v in value)
    if origin in (int, float):
        return isinstance(value, int | origin) and not isinstance(value, bool)
    return origin in WORDS and isinstance(value, origin)


def _in_words(kind: Any) -> str:
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(words for k in inner if (words := _in_words(k))))
    if origin is dict and int in inner:
        return "an object of whole numbers"
    if _is_list(origin):
        return f"a list, each {_in_words(inner[0])}"
    return WORDS.get(origin, "")


def _is_list(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str


@contextmanager
def _said_of(what: str) -> Iterator[None]:
    """Name what an error is about."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{what}: {error}") from error

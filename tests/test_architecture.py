"""Who may import whom, and other promises of the design that the source itself can be asked about."""

import ast
import inspect
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bayesws"
SOURCES = sorted(PACKAGE.rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in SOURCES}


def imports_of(path):
    """Every imported module by its full name; `from package import module` names the module."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *base.split(".")]).rstrip(".")
            full = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in full}
    return found


def within(name, *packages):
    return any(name == p or name.startswith(f"{p}.") for p in packages)


def own_imports(path):
    return {name for name in imports_of(path) if within(name, "bayesws")}


# a row a folder: what it may import, itself left out (DESIGN, section 2); from the lowest up, so no arrow points back
ARROWS = {
    "io": [],
    "sharing": ["io.arguments"],
    "data": ["io"],
    "layers": ["sharing", "io.arguments"],
    "models": ["layers", "sharing", "io"],
    "evidence": ["layers.contract", "layers.cache", "io.arguments"],
    "training": ["evidence", "models", "layers", "sharing", "io"],
    "trials": ["training", "evidence", "models", "layers", "sharing", "data", "io"],
    "analysis": ["training.result", "evidence", "layers", "sharing", "data.geometry", "io"],
    "report": ["analysis", "trials", "training.result", "layers", "sharing", "io"],
    "commands": ["report", "analysis", "trials", "training", "evidence", "models", "layers", "sharing", "data", "io"],
}
AT_THE_TOP = {"bayesws", "bayesws.cli", "bayesws.__main__"}


def room_of(module):
    return module.split(".")[1]


def test_every_folder_has_a_row_and_at_most_three_modules_lie_outside_of_one():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert folders == set(ARROWS)
    assert {module_of(path) for path in PACKAGE.glob("*.py")} <= AT_THE_TOP


def test_rows_are_in_an_order_in_which_no_arrow_points_back():
    rows = list(ARROWS)
    for name, may in ARROWS.items():
        assert all(rows.index(other.split(".")[0]) < rows.index(name) for other in may)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_follow_the_arrows(path):
    module = module_of(path)
    if module in AT_THE_TOP:
        pytest.skip("the top of the package may import everything")
    room = room_of(module)
    may = [f"bayesws.{name}" for name in (room, *ARROWS[room])]
    wrong = sorted(name for name in own_imports(path) if not within(name, *may))
    assert not wrong, f"{module} imports {wrong}: may import {may}"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_only_its_folder_imports_laplace(path):
    if not within(module_of(path), "bayesws.evidence.laplace"):
        assert not [name for name in imports_of(path) if within(name, "laplace")]


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_file_is_named_for_what_it_knows(path):
    assert not {"utils", "util", "helpers", "misc", "common"} & set(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_only_the_command_line_prints(path):
    if within(module_of(path), "bayesws.cli", "bayesws.commands"):
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    lines = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert not lines, f"print() in lines {lines}: return a value, or print in a command"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_no_exception_is_passed_over(path):
    handlers = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ExceptHandler)]
    assert not [h.lineno for h in handlers if len(h.body) == 1 and isinstance(h.body[0], ast.Pass)]


def public_names():
    """`__all__` of the package; what it re-exports as modules may be imported from, by their own `__all__`."""
    return {name: _all_of(PACKAGE / name / "__init__.py") for name in _all_of(PACKAGE / "__init__.py")}


def _all_of(path):
    if not path.exists():
        return []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", None) for t in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    return []


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_experiments_use_public_names_only(path):
    public = public_names()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and within(node.module or "", "bayesws"):
            _, *below = node.module.split(".")
            names = [alias.name for alias in node.names]
            known = list(public) if not below else public.get(below[0], []) if len(below) == 1 else []
            assert set(names) <= set(known), f"line {node.lineno}: {node.module} does not offer {names}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if within(alias.name, "bayesws"):
                    assert alias.name == "bayesws" or alias.name.split(".")[1:] in [[n] for n in public]


def test_public_names_exist():
    import bayesws

    assert len(set(bayesws.__all__)) == len(bayesws.__all__)
    assert not [name for name in bayesws.__all__ if not hasattr(bayesws, name)]


def test_imports_make_no_circle():
    """Those within functions count, too: a circle that is imported late is a circle."""
    graph = {module_of(path): own_imports(path) & MODULES for path in SOURCES}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(
        MODULES
    )  # raises CycleError, which names the modules


def test_at_most_25_names_beside_the_modules():
    import bayesws

    modules = [name for name in bayesws.__all__ if isinstance(getattr(bayesws, name), ModuleType)]
    assert len(modules) >= 9 and len(bayesws.__all__) - len(modules) <= 25


def test_no_function_hides_a_module_of_its_name():
    """An attribute of a package that is named like one of its modules must be that module."""
    import importlib

    for module in sorted(MODULES):
        package, _, name = module.rpartition(".")
        if package and name != "__main__":
            found = getattr(importlib.import_module(package), name, None)
            assert found is None or isinstance(found, ModuleType), f"{package}.{name} is a {type(found).__name__}"


def test_fit_takes_at_most_twelve_arguments():
    from bayesws.training.fit import fit

    assert len(inspect.signature(fit).parameters) <= 12


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_files_and_functions_are_of_a_size_to_be_read(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 420, "is there a second idea in it?"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            arguments = len(node.args.args) + len(node.args.kwonlyargs)
            assert arguments <= 14, f"line {node.lineno}: {node.name} takes {arguments} arguments"
            lines = (node.end_lineno or node.lineno) - node.lineno
            assert lines <= 110, f"line {node.lineno}: {node.name} has {lines} lines"


def test_this_test_sees_imports():
    """The arrows would hold of nothing if the parser found nothing."""
    seen = own_imports(PACKAGE / "models" / "wscnn.py")
    assert {"bayesws.layers.conv", "bayesws.sharing.groups"} <= seen
    assert len(SOURCES) > 15

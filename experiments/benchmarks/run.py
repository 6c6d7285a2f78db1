"""Benchmarks of bayesws beside its peers: times, values, growth; the command is in the README beside this file."""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accuracy
import blocks
import curvature
import fits
import forecast
import gradient
import growth
import hardened
import judge
import layers
import layerwise
import torch
from rich.console import Console
from rich.table import Table
from tables import summary_of

import bayesws as bws

SUITES: dict[str, Callable[[int, bool], dict[str, Any]]] = {
    "plain": curvature.plain,
    "sharing": curvature.sharing,
    "layers": layers.table,
    "accuracy": accuracy.table,
    "blocks": blocks.table,
    "gradient": gradient.table,
    "growth": growth.table,
    "profile": growth.profile,
    "hardened": hardened.table,
    "forecast": forecast.table,
    "diagonal": forecast.diagonal,
    "judge": judge.table,
    "fits": fits.table,
    "layerwise": layerwise.table,
}
PACKAGES = ("bayesws", "torch", "laplace-torch", "curvlinops-for-pytorch", "asdfghjkl", "backpack-for-pytorch")


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, threads, load, versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def show(title: str, rows: list[dict[str, Any]], console: Console) -> None:
    """Print one table; three numbers are a median with its quartiles."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if isinstance(rows[0].get(column), str) else "right")
    for row in rows:
        table.add_row(*(_written(row.get(column)) for column in columns))
    console.print(table)


def main() -> int:
    """Run the suites asked for, print their tables and write all numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(SUITES), default=list(SUITES), help="which suites")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats: a smoke test")
    parser.add_argument("--repeats", type=int, help="turns of every job (default 7, quick 2)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results.json"),
        help="where the numbers go; suites that the file holds already stay, if not run again",
    )
    arguments = parser.parse_args()
    repeats = arguments.repeats or (2 if arguments.quick else 7)
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # the peers' own deprecations
    console = Console(width=None if sys.stdout.isatty() else 160)
    results: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.only:
        result = {"machine": machine(), "quick": arguments.quick, "repeats": repeats}
        result |= SUITES[name](repeats, arguments.quick)
        results[name] = result
        for fact, value in result.items():
            if fact not in ("tables", "machine", "quick", "repeats") and value:
                console.print(f"{fact}: {value}", highlight=False)
        for title, rows in result["tables"].items():
            show(title, rows, console)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    summary = arguments.out.with_name("summary.json")
    bws.trials.save_summary(summary_of(results), summary)
    console.print(f"written: {arguments.out}, {summary}")
    return 0


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _written(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple | list):
        median, lower, upper = value
        return f"{median:.2f} [{lower:.2f}, {upper:.2f}]"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.2f}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())

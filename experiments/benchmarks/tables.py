"""Print the tables of the page beside this file from summary.json, in Markdown; and say what a summary keeps."""

import argparse
from pathlib import Path
from typing import Any

import bayesws as bws

Rows = list[dict[str, Any]]
ASKED = 1.10  # of a sharing layer's time, beside nn.Conv2d
LAYERS = {
    "canonical": "canonical, as published",
    "canonical_regularised": "+ regularisers",
    "canonical_hard": "nearly hard stack",
    "residual": "with residual",
    "residual_regularised": "+ regularisers",
}
BLOCKS = ("full", "layer", "pathway", "diag", "expand", "reduce", "expand, small layers joint")


def summary_of(results: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run: every table to six digits, and the machine once."""
    suites = {name: found for name, found in results.items() if isinstance(found, dict) and "tables" in found}
    tables = []
    for suite, found in suites.items():
        about = {k: v for k, v in found.items() if k not in ("tables", "machine", "quick", "columns") and v}
        for title, rows in found["tables"].items():
            columns = list(dict.fromkeys(name for row in rows for name in row))
            values = [[_rounded(row.get(name)) for name in columns] for row in rows]
            tables.append({"suite": suite, "title": title, **about, "columns": columns, "rows": values})
    machine = next((found["machine"] for found in suites.values() if "machine" in found), None) or results["machine"]
    return {"command": "python experiments/benchmarks/run.py", "machine": machine, "tables": tables}


def _rounded(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def tables_in(summary: dict[str, Any]) -> dict[str, dict[str, Rows]]:
    """Rows by suite and title."""
    found: dict[str, dict[str, Rows]] = {}
    for table in summary["tables"]:
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        found.setdefault(table["suite"], {})[table["title"]] = rows
    return found


def of_layers(tables: dict[str, Rows]) -> list[str]:
    """Ratios to nn.Conv2d; in bold what is above the one that was asked."""
    lines = [f"| channels, kernel, features | {' | '.join(LAYERS.values())} |", "|---" * 6 + "|"]
    for row in next(iter(tables.values())):
        ratios = [row[name][0] for name in LAYERS]
        cells = [f"**{ratio:.2f}**" if ratio > ASKED else f"{ratio:.2f}" for ratio in ratios]
        lines.append(f"| {row['size']} | {' | '.join(cells)} |")
    return lines


def of_accuracy(tables: dict[str, Rows]) -> list[str]:
    """Sampled against exact; gradients relative to the norm of the exact one."""
    heads = ("subset", "samples", "bias, nats", "standard deviation")
    lines = [f"| {' | '.join(heads)} | ∂ log precisions: bias, sd | ∂ logits: bias, sd |", "|---" * 6 + "|"]
    names = {"0.0625": "1/16", "0.25": "1/4"}
    for row in sorted(next(iter(tables.values())), key=lambda row: -float(row["subset"])):
        bias = f"{_shown(row['bias, nats'])} ± {_shown(row['its error'])} | {_shown(row['sd, nats'])}"
        pairs = [f"{_shown(row[f'{of}: bias'])}, {_shown(row[f'{of}: sd'])}" for of in ("log precisions", "logits")]
        lines.append(f"| {names.get(row['subset'], row['subset'])} | {row['samples']} | {bias} | {' | '.join(pairs)} |")
    return lines


def of_blocks(tables: dict[str, Rows]) -> list[str]:
    """Occam factors of whole networks, nats."""
    rows = tables["Occam factor of the whole network, nats"]
    lines = [f"| {row['network']} | {' | '.join(f'{row[name]:.0f}' for name in BLOCKS)} |" for row in rows]
    return [f"| network | {' | '.join(BLOCKS)} |", "|---" * (1 + len(BLOCKS)) + "|", *lines]


def of_hardened(tables: dict[str, Rows]) -> list[str]:
    """Time of a hardened network's forward pass beside the sharing one's: medians, quartiles."""
    lines = ["| network | difference | batch 1 | batch 250 |", "|---|---|---|---|"]
    for row in next(iter(tables.values())):
        times = [row[f"hardened / sharing, batch {size}"] for size in (1, 250)]
        cells = [f"{median:.2f} [{low:.2f}, {high:.2f}]" for median, low, high in times]
        lines.append(
            f"| {row['network']} | {row['largest relative difference after reloading']:g} | {' | '.join(cells)} |"
        )
    return lines


def as_they_are(tables: dict[str, Rows]) -> list[str]:
    """Every table of a suite; three numbers are a median with its quartiles."""
    lines = []
    for title, rows in tables.items():
        columns = list(rows[0])
        lines += [title, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(_shown(row[name]) for name in columns)} |" for row in rows] + [""]
    return lines


PAGE = {
    "layers": of_layers,
    "accuracy": of_accuracy,
    "blocks": of_blocks,
    "hardened": of_hardened,
    "judge": as_they_are,
    "fits": as_they_are,
    "layerwise": as_they_are,
}


def _shown(value: Any) -> str:
    if isinstance(value, list):
        median, low, high = map(_shown, value)
        return f"{median} [{low}, {high}]"
    if not isinstance(value, float):
        return "" if value is None else str(value)
    if value and abs(value) < 0.01:
        return f"{value:.0e}"
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).with_name("summary.json"))
    parser.add_argument("--all", action="store_true", help="every suite, also those that the page tells in words")
    options = parser.parse_args()
    found = tables_in(bws.trials.load_summary(options.file))
    printed = (
        [as_they_are(t) for t in found.values()] if options.all else [PAGE[s](found[s]) for s in PAGE if s in found]
    )
    print("\n\n".join("\n".join(lines) for lines in printed))


if __name__ == "__main__":
    main()

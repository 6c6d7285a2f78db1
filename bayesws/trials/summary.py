"""A run as its summary: every trial's numbers by cell and by seed, rounded, small enough to lie beside a page of text.

What a run writes (comparison.json, study.json, ranking.json) is for machines. A summary holds what tables, checks and
figures need of it, and is read as the run is.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bayesws.io.files import without_nan, write_whole
from bayesws.io.json_files import read_json, sealed
from bayesws.trials.comparable import DIGITS

LARGEST_SUMMARY = 20_000  # bytes
IDLE_OPTIONS = {"--out": 1, "--json": 0, "--jobs": 1, "--device": 1}  # options by how many words follow

GROUP_FIELDS = ("closure_error", "entropy")  # of a learned stack, beside the group's name

Record = dict[str, Any]


def cells_of(
    records: Iterable[Mapping[str, Any]], by: Sequence[str], along: str = "seed", digits: int = 6
) -> list[Record]:
    """Records that agree in the fields `by`, as one cell each: a list by seed in place of every other number.

    A number or word that is the same for all seeds of a cell stands once. Numbers in nested records become lists there.

    >>> runs = [{"net": "a", "seed": 0, "nll": 0.25, "size": 12}, {"net": "a", "seed": 1, "nll": 1 / 3, "size": 12}]
    >>> cells_of(runs, ["net"], digits=3)
    [{'net': 'a', 'seed': [0, 1], 'nll': [0.25, 0.333], 'size': 12}]

    Args:
        records: with the same fields in all that agree in `by`.
        by: names of fields.
        along: the field that tells the records of a cell apart.
        digits: of every number that is not whole.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(json.dumps([record[name] for name in by]), []).append(dict(record))
    cells = []
    for group in groups.values():
        same = {name: group[0][name] for name in by}
        rest = [{k: v for k, v in record.items() if k not in same and k != along} for record in group]
        cells.append({**same, along: [r[along] for r in group], **_column(_rounded(without_nan(rest), digits))})
    return cells


def records_in(cells: Iterable[Mapping[str, Any]], along: str = "seed") -> list[Record]:
    """The records that `cells_of` made cells of, in their order but for cells that were not together.

    >>> records_in([{"net": "a", "seed": [0, 1], "nll": [0.25, 0.333], "size": 12}])[1]
    {'net': 'a', 'seed': 1, 'nll': 0.333, 'size': 12}
    """
    return [_at(cell, place) for cell in cells for place in range(len(cell[along]))]


def summary_of(run: Mapping[str, Any], digits: int = 6) -> Record:
    """The summary of what `bayesws compare`, `study` or `select` wrote: settings, versions, command, and the cells.

    Kept of every trial are its scores, the ρ and γ of its layers, the groups of learned stacks, which of several starts
    was kept, and how many notes it has. A ranking keeps its form: `Ranking.load` and `LayerRanking.load` read its
    summary.

    Args:
        run: the record in comparison.json, study.json or ranking.json.
        digits: of every number that is not whole; fewer where there are many seeds.

    Raises:
        ValueError: a record of something else.
    """
    settings = dict(run.get("settings", {}))
    about = {name: run.get(name, settings.pop(name, None)) for name in ("command", "versions")}
    about["command"] = _command(about["command"])
    if settings:
        about["settings"] = settings
    known = {name: value for name, value in about.items() if value}
    if "networks" in run:
        layers = {"layers": {k: v for k, v in run["layers"].items() if k != "probabilities"}} if "layers" in run else {}
        kept: Record = {"networks": [_network(row) for row in run["networks"]], **layers}
        return known | {"settings": settings} | _rounded(without_nan(kept), digits)
    if "trials" not in run:
        raise ValueError("no run of bayesws: expected the record of comparison.json, study.json or ranking.json")
    study = all("groups" in trial for trial in run["trials"])
    by = ("settings",) if study else ("task", "pathways", "objective")
    kept_of = partial(_of_study, digits=digits) if study else _of_comparison
    return known | {"cells": cells_of(map(kept_of, run["trials"]), by, digits=digits)}


def trials_in(record: Mapping[str, Any]) -> list[Record]:
    """The trials of a comparison or of a study, from what it wrote or from its summary.

    Raises:
        KeyError: a record of something else.
    """
    if "cells" not in record:
        return list(record["trials"])
    return [_trial(found) for found in records_in(record["cells"])]


def save_summary(summary: Mapping[str, Any], path: str | Path) -> None:
    """Write a summary as JSON, a line a cell, whole or not at all.

    Raises:
        ValueError: a summary above 20 kB, a place that cannot be written.
    """
    parts = []
    for name, value in sealed(without_nan(dict(summary))).items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines = ",\n".join(f"  {_text(entry)}" for entry in value)
            parts.append(f" {_text(name)}: [\n{lines}\n ]")
        else:
            parts.append(f" {_text(name)}: {_text(value)}")
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    if (size := len(text.encode())) > LARGEST_SUMMARY:
        raise ValueError(
            f"a summary of {size} bytes: expected at most {LARGEST_SUMMARY}; round to fewer digits, or leave out fields"
        )
    write_whole(Path(path), lambda draft: draft.write_text(text, encoding="utf-8"))


def load_summary(path: str | Path) -> Record:
    """Read what `save_summary` wrote.

    Raises:
        ValueError: a file that is missing or is no summary.
    """
    return read_json(path, dict[str, Any], "write it again by save_summary")


def _column(values: list[Any]) -> Any:
    """One value a seed: a record of columns, a value that is the same for all, or the list."""
    first = values[0]
    if isinstance(first, dict) and all(isinstance(v, dict) and v.keys() == first.keys() for v in values):
        return {name: _column([value[name] for value in values]) for name in first}
    alike = not isinstance(first, list | dict) and all(type(v) is type(first) and v == first for v in values)
    return first if alike else values


def _at(column: Any, place: int) -> Any:
    if isinstance(column, dict):
        return {name: _at(value, place) for name, value in column.items()}
    return column[place] if isinstance(column, list) else column


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(entry, digits) for name, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry, digits) for entry in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _of_comparison(trial: Mapping[str, Any]) -> Record:
    kept = {name: value for name, value in trial.items() if name not in ("sharing", "notes", "settings", "history")}
    kept |= {"data": trial["data"][:DIGITS]} if trial.get("data") else {}
    return kept | {"layers": _layers(trial["sharing"]), "notes": len(trial["notes"])}


def _of_study(trial: Mapping[str, Any], digits: int) -> Record:
    settings = {name: trial["settings"].get(name) for name in ("task", "train_size", "method", "model")}
    left_out = ("task", "pathways", "start", "groups", "training_seconds", "version", "test_data")
    kept = _of_comparison({name: value for name, value in trial.items() if name not in left_out})
    for name, row in kept["layers"].items():
        row.pop("parameters")
        if trial["stack_parameters"] and (
            group := trial["groups"].get(name)
        ):  # a fixed stack is the group it was given
            row |= {"group": group["name"], **{name: group[name] for name in GROUP_FIELDS}}
    if starts := kept.pop("starts", None):
        kept["start"] = next(start["number"] for start in starts if start["kept"])
    return {"settings": settings, **kept, "layers": _rounded(kept["layers"], min(4, digits - 1))}


def _trial(record: Mapping[str, Any]) -> Record:
    """As `Trial.from_record` and the tables of a study know it."""
    sharing = [{"name": name, "log_precisions": {}, **row} for name, row in record["layers"].items()]
    groups = {
        row["name"]: {"name": row.pop("group"), **{name: row.pop(name) for name in GROUP_FIELDS}}
        for row in sharing
        if "group" in row
    }
    count = record["notes"]
    notes = [f"{count} note{'s' * (count > 1)}: see the run's own file"] if count else []
    kept = {name: value for name, value in record.items() if name != "layers"}
    return kept | {"sharing": sharing, "groups": groups, "notes": notes}


def _layers(sharing: Iterable[Mapping[str, Any]]) -> Record:
    """ρ, γ and number of parameters by layer; log precisions follow from these and from the weights."""
    return {row["name"]: {k: v for k, v in row.items() if k not in ("name", "log_precisions")} for row in sharing}


def _network(row: Mapping[str, Any]) -> Record:
    digest = {"data": row["data"][:DIGITS]} if row.get("data") else {}
    return {**row, **digest, "sharing": [{**layer, "log_precisions": {}} for layer in row["sharing"]]}


def _command(words: Any) -> str:
    """The command as it is typed, without what no number depends on."""
    kept, skip = [], 0
    for word in words or ():
        if skip:
            skip -= 1
        elif word in IDLE_OPTIONS:
            skip = IDLE_OPTIONS[word]
        else:
            kept.append(f"'{word}'" if " " in word else word)
    return " ".join(kept)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ": "))

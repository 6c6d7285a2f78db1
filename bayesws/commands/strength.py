"""bayesws strength: measure how symmetric each layer of a network is."""

import argparse
import json
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from bayesws import data as data_sets
from bayesws.analysis.decomposition import (
    ORDERS,
    OrbitDecomposition,
    best_decomposition,
    decomposition_table,
    orbit_decompositions,
)
from bayesws.analysis.equivariance import EXACT, RESAMPLED, equivariance_errors, error_table
from bayesws.analysis.strength import measurable_layers, sharing_strength
from bayesws.commands.arguments import (
    Parser,
    add_data,
    add_place,
    check_device,
    data_arguments,
    known_tasks,
    named,
    seed,
    writing_into,
)
from bayesws.commands.terminal import wide_console
from bayesws.io.files import without_nan, write_whole
from bayesws.io.json_files import sealed
from bayesws.io.provenance import command, versions
from bayesws.models.pretrained import pretrained_network, seen_by
from bayesws.training.result import FitResult

TRANSFORMS = ("quarter-turn", "half-turn", "flip", "shift:0.25", "scale:0.8")
MATCHED = 300  # images that show which channels of a layer's input become which


def add(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add its parser."""
    parser = commands.add_parser(
        "strength",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="how symmetric is each layer of a network, with intervals",
        description="Measure how far every layer of a trained network is from moving its outputs as\n"
        "its inputs are moved (0: equivariant, 1: unrelated), with 95 % intervals; and,\n"
        "for turns and flips, how much of each plain convolution's weights a shared\n"
        "pathway would explain, with its evidence. Of a saved fit also the posterior of\n"
        "every layer's sharing strength. Writes strength.json.",
        epilog="MODEL is a folder written by FitResult.save or `bayesws fit`, a torch.export\n"
        "program FILE.pt2, package.module:function that makes a network, or a torchvision\n"
        "name; the latter two with --weights FILE.safetensors or FILE.pt.\n\n"
        "examples:\n  bayesws strength runs/fit --task turned\n"
        "  bayesws strength resnet18 --weights resnet18.safetensors --data cifar10\n"
        "  bayesws strength my.nets:make --weights net.pt --transforms flip,rotate:30 --json",
    )
    parser.add_argument("model", type=named, metavar="MODEL", help="see below")
    parser.add_argument("--weights", type=named, help="state dict: FILE.safetensors or FILE.pt (tensors alone)")
    parser.add_argument("--trust", action="store_true", help="open a FILE.pt2 that may run code when it is opened")
    add_data(parser)
    parser.add_argument("--task", default="upright", metavar="TASK", help=f"{known_tasks()} (default upright)")
    parser.add_argument(
        "--transforms",
        default=",".join(TRANSFORMS),
        metavar="A,B,...",
        help=f"of {', '.join([*EXACT, *RESAMPLED])} (default {','.join(TRANSFORMS)})",
    )
    parser.add_argument("--seed", type=seed, default=0, help="default 0")
    parser.add_argument("--json", action="store_true", help="print JSON, not tables")
    add_place(parser, "runs/strength")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run it, print, write."""
    check_device(options.device)
    with writing_into(options.out, "strength.json"):
        _run(options)


def _run(options: argparse.Namespace) -> None:
    fit = FitResult.load(options.model) if Path(options.model).is_dir() else None
    if fit is not None and options.weights:
        raise ValueError(f"--weights {options.weights} beside a saved fit: it has its own")
    net = pretrained_network(options.model, options.weights, options.trust) if fit is None else fit.model
    images = data_sets.load(**data_arguments(options), task=options.task, seed=options.seed)
    x = seen_by(net, images.test[0]).to(options.device)
    transforms = [name.strip() for name in options.transforms.split(",")]
    errors = {
        name: equivariance_errors(net.to(options.device), x, name, [""] if options.model.endswith(".pt2") else None)
        for name in transforms
    }
    record: dict[str, Any] = {
        "model": options.model,
        "data": images.name,
        "images": len(x),
        "errors": {transform: {name: asdict(row) for name, row in rows.items()} for transform, rows in errors.items()},
        "versions": versions(),
        "command": command(),
        **({"trusted": True} if options.trust else {}),
    }
    explained = {}
    if any(isinstance(module, nn.Conv2d) for module in net.modules()):
        explained = {m: orbit_decompositions(net, x[:MATCHED], m, seed=options.seed) for m in transforms if m in ORDERS}
        record["explained"] = {m: _rows(rows) for m, rows in explained.items()}
        record["best"] = _best(explained)
    notes = []
    if fit is None and options.weights is None and not options.model.endswith(".pt2"):
        notes.append(f"{options.model} was made without --weights: unless its maker loads some, they are random")
    found = None
    if fit is not None and fit.posterior and measurable_layers(fit.model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its notes are shown
            print("the posterior of every layer's ρ: a second by a grid, minutes where it takes NUTS", file=sys.stderr)
            found = sharing_strength(fit, seed=options.seed)
        record["sharing"] = found.record()
        notes += found.notes
    if any(not row.compared for rows in explained.values() for row in rows.values()):
        notes.append("ρ –: not measured, too few weights or channels that a transform makes correspond")
    if explained and not all(record["best"].values()):
        notes.append("no *: no transform's sharing of weights is convincing beyond chance")
    record["notes"] = notes
    text = json.dumps(sealed(without_nan(record)), indent=1, allow_nan=False)
    write_whole(options.out / "strength.json", lambda path: path.write_text(text + "\n"))
    if options.json:
        print(text)
        return
    console = wide_console()
    console.print(error_table(errors))
    if explained:
        console.print(decomposition_table(explained))
    if found is not None:
        console.print(found.table())
    for note in notes:
        console.print(f"note: {note}")
    console.print(f"written: {options.out / 'strength.json'}")


def _rows(decompositions: Mapping[str, OrbitDecomposition]) -> dict[str, dict[str, Any] | None]:
    """For JSON: orbits by their size in place of the partner of every channel; null for what is not measured."""
    found: dict[str, dict[str, Any] | None] = {}
    for layer, row in decompositions.items():
        cells = {name: value for name, value in asdict(row).items() if name not in ("transform", "partner")}
        found[layer] = cells | {"orbits": row.orbits()} if row.compared else None
    return found


def _best(decompositions: Mapping[str, Mapping[str, OrbitDecomposition]]) -> dict[str, str | None]:
    layers = next(iter(decompositions.values()), {})
    best = {layer: best_decomposition(rows[layer] for rows in decompositions.values()) for layer in layers}
    return {layer: row.transform if row else None for layer, row in best.items()}

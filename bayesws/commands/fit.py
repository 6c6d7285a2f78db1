"""bayesws fit: train and save one network."""

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayesws import data as data_sets
from bayesws.commands.arguments import (
    NETWORK,
    Parser,
    add_data,
    add_network,
    check_device,
    data_arguments,
    known_tasks,
    network_options,
    place,
    rate,
    schedule_options,
    seed,
    width,
)
from bayesws.commands.terminal import wide_console
from bayesws.io.files import check_writable, remove_folder, sweep_drafts, without_nan
from bayesws.io.only_writer import only_writer
from bayesws.io.provenance import command
from bayesws.models.layerwise import LayerwiseNet
from bayesws.training.fit import fit
from bayesws.training.objectives.names import OBJECTIVES
from bayesws.training.result import FitResult, SharingRow
from bayesws.training.saved import check_free_for
from bayesws.trials.by_layer import in_use
from bayesws.trials.compare import network_for
from bayesws.trials.comparison import PATHWAYS
from bayesws.trials.doubt import doubts
from bayesws.trials.scores import Scores


def add(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add its parser."""
    parser = commands.add_parser(
        "fit",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="train and save one network",
        description="Train one network and save it as a folder: weights.safetensors and fit.json.\n"
        "What an interrupted fit has done is kept in OUT.unfinished, and the same command\n"
        "goes on from there.",
        epilog="examples:\n  bayesws fit --task orientation --out runs/orientation\n"
        "  bayesws fit --data mine.npz --objective task --epochs 100\n"
        "  bayesws fit --task turned --starts 3\n"
        "  bayesws fit --task quadrant --blocks fc+conv --width 2 --learning-rate 0.01",
    )
    add_data(parser)
    parser.add_argument("--task", default="upright", metavar="TASK", help=f"{known_tasks()} (default upright)")
    parser.add_argument("--seed", type=seed, default=0, help="of split, weights and order (default 0)")
    parser.add_argument("--objective", choices=OBJECTIVES, default="evidence", help="default evidence")
    parser.add_argument("--pathways", choices=tuple(PATHWAYS), default="both", help="default both, shared and free")
    parser.add_argument(
        "--blocks",
        metavar="A+B",
        help="a network of eight blocks, each the sum of gconv, conv, s-conv, f-fc, s-fc or fc",
    )
    parser.add_argument("--width", type=width, help="of its first block, in channels (default 10)")
    parser.add_argument(
        "--prune",
        type=rate,
        metavar="GAMMA",
        help="take branches out that use fewer effective parameters at three steps in a row (default: none)",
    )
    parser.add_argument("--tensorboard", type=place, metavar="DIR", help="log the training curves for TensorBoard")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    add_network(parser, "runs/fit")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Go on with what a stopped fit left, or start; save the fit and print its numbers."""
    check_device(options.device)
    out = options.out.absolute()
    unfinished = out.with_name(f"{out.name}.unfinished")
    for path in (out, unfinished):
        check_writable(path)
    if os.path.ismount(out):
        raise ValueError(f"{out} is where a disk is mounted, and cannot be replaced by a fit: choose a folder in it")
    if unfinished.is_symlink():
        raise ValueError(f"{unfinished} is a symbolic link, which a fit does not write through: remove it")
    try:
        with only_writer(out, lock=out.with_name(f".{out.name}.lock")):
            for path in (out, unfinished):
                sweep_drafts(path.parent, path.name)
            if out.exists():
                _check_same_command(out)
            result, scores, doubted = _trained(options, unfinished)
            result.save(out)
            if unfinished.exists():
                remove_folder(unfinished)
    except KeyboardInterrupt as stop:
        kept = f"what was done is kept in {unfinished}: the same command goes on from there"
        raise KeyboardInterrupt(kept if unfinished.exists() else "") from stop
    if options.json:
        print(json.dumps(without_nan({"test": asdict(scores)} | _numbers(result, doubted)), indent=1, allow_nan=False))
        return
    console = wide_console()
    for start in result.starts:
        chosen = ", kept" if start.kept else ""
        console.print(f"start {start.number + 1}, {start.what}: {start.score}{chosen}")
    console.print(f"test accuracy {100 * scores.accuracy:.1f} %, test NLL {scores.nll:.3f} nats per datum")
    console.print(f"log evidence {result.log_evidence:.1f} nats, summed over {result.evidence.examples} images")
    for doubt in doubted:
        console.print(f"note: {doubt}")
    for row in result.sharing:
        strength = "" if math.isnan(row.strength) else f"ρ = {row.strength:.2f}; "
        console.print(f"{row.name}: {strength}{_of_branches(row)}effective parameters: {in_use([row], ', ')}")
    console.print(f"written: {options.out}")


def _trained(options: argparse.Namespace, unfinished: Path) -> tuple[FitResult, Scores, list[str]]:
    """The fit, from where it was stopped, how it does on the test images, and what they say against its evidence."""
    images = data_sets.load(**data_arguments(options), task=options.task, seed=options.seed)
    torch.manual_seed(options.seed)
    net = _network(options, images)
    with _tensorboard(options.tensorboard) as watch:
        result = fit(
            net,
            images.train,
            objective=options.objective,
            seed=options.seed,
            device=options.device,
            **schedule_options(options) | ({} if options.prune is None else {"prune": options.prune}),
            checkpoint=unfinished,
            progress=watch,
        )
    scores = Scores.of(result, *images.test)
    told = {"data": options.data, "task": options.task, "command": command(), "test": asdict(scores)}
    return result.with_provenance(**told), scores, doubts(result, result.evidence, *images.test)


def _network(options: argparse.Namespace, images: data_sets.ImageData) -> nn.Module:
    """A `LayerwiseNet` where blocks are given, else a `WSCNN`."""
    if options.prune is not None and (options.blocks is None or options.objective != "evidence"):
        raise ValueError(f"--prune {options.prune:g} takes branches of --blocks out by --objective evidence: give both")
    if options.blocks is None:
        if options.width is not None:
            raise ValueError(f"--width {options.width} is of a network of --blocks: give both, or --hidden-channels")
        return network_for(images, options.pathways, **network_options(options))
    for name, default in {"pathways": "both", **NETWORK}.items():
        if getattr(options, name) != default:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} beside --blocks {options.blocks}: its network has eight blocks and a --width")
    channels, rows, columns = images.image_shape
    if rows != columns or rows & (rows - 1):
        raise ValueError(
            f"--blocks {options.blocks} on images of {rows}×{columns}: expected a side that is a power of two; "
            "try --pad and --side (MNIST: --pad 2 --side 16)"
        )
    settings = {"in_channels": channels, "num_classes": images.num_classes, "size": rows}
    return LayerwiseNet(options.blocks, **settings | ({} if options.width is None else {"width": options.width}))


def _of_branches(row: SharingRow) -> str:
    """How a sum of branches is parted, in words; nothing of other layers."""
    if len(row.branches) < 2:
        return ""
    return f"branches {', '.join(f'{name} {share:.2f}' for name, share in row.shares.items())}; "


def _check_same_command(folder: Path) -> None:
    """Raise ValueError where the folder holds anything but what this very command would write anew."""
    check_free_for(folder)
    if not any(folder.iterdir()):
        return
    made = FitResult.load(folder).provenance.more.get("command", [])
    if made != command():
        by = f"by another command ({' '.join(made)})" if made else "elsewhere"
        raise ValueError(f"{folder} holds a fit that was made {by}: choose another --out, or remove it")


@contextmanager
def _tensorboard(folder: Path | None) -> Iterator[Callable[[dict[str, float]], object]]:
    """Something to hand a fit's records to, which writes them for TensorBoard; nothing where there is no folder."""
    if folder is None:
        yield lambda record: None
        return
    check_writable(folder)
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
    with SummaryWriter(folder) as writer:

        def watch(record: dict[str, float]) -> None:
            start = f"start {int(record['start']) + 1}/" if "start" in record else ""
            for name, value in record.items():
                if name not in ("epoch", "start"):
                    writer.add_scalar(f"{start}{name}", value, int(record["epoch"]))

        yield watch


def _numbers(fit: FitResult, doubted: list[str]) -> dict[str, Any]:
    return {
        "log_evidence": fit.log_evidence,
        "evidence": asdict(fit.evidence),
        "sharing": [asdict(row) for row in fit.sharing],
        "starts": [asdict(start) for start in fit.starts],
        "weight_decay": fit.recipe.weight_decay,
        "seconds": fit.provenance.seconds,
        "notes": [*fit.notes, *doubted],
    }

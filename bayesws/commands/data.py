"""bayesws data: look at an image set as the other verbs see it, and write it to a file."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bayesws import data as data_sets
from bayesws.commands.arguments import Parser, add_data, data_arguments, known_tasks, place, seed
from bayesws.commands.terminal import wide_console
from bayesws.data import ImageData
from bayesws.io.files import write_whole
from bayesws.report.figures.contact_sheet import save_contact_sheet


def add(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add its parser."""
    parser = commands.add_parser(
        "data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="what is in an image set, with a task applied; as a picture or a file",
        description="Describe an image set as the other verbs see it. Without --npz and --picture\nnothing is written.",
        epilog="examples:\n  bayesws data --data mnist --task turned\n"
        "  bayesws data --task orientation --picture orientation.png\n"
        "  bayesws data --data mnist --side 14 --train-size 2000 --task dihedral --npz mine.npz\n"
        "  bayesws fit --data mine.npz",
    )
    add_data(parser)
    parser.add_argument("--task", default="upright", metavar="TASK", help=f"{known_tasks()} (default upright)")
    parser.add_argument("--seed", type=seed, default=0, help="of the split and the task's motions (default 0)")
    parser.add_argument("--picture", type=place, metavar="FILE.png", help="draw some images of every class")
    parser.add_argument("--npz", type=place, metavar="FILE.npz", help="write the images, as --data takes them")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Describe the images, and write what was asked for."""
    for path, ending in ((options.picture, ".png"), (options.npz, ".npz")):
        if path is not None and path.suffix != ending:
            raise ValueError(f"{path}: expected a file name that ends in {ending}")
    images = data_sets.load(**data_arguments(options), task=options.task, seed=options.seed)
    written = []
    if options.npz is not None:
        write_whole(options.npz, partial(_write_npz, images))
        written.append(options.npz)
    if options.picture is not None:
        save_contact_sheet(images.train, images.num_classes, options.picture)
        written.append(options.picture)
    told = description(images)
    if options.json:
        print(json.dumps(told, indent=1))
    else:
        wide_console().print(_table(images.name, told))
    for path in written:
        print(f"written: {path}", file=sys.stderr if options.json else sys.stdout)


def description(images: ImageData) -> dict[str, Any]:
    """Sizes, shape, range and images by class, as JSON takes it."""
    (x, y), (test_x, test_y) = images.train, images.test
    return {
        "name": images.name,
        "train": len(x),
        "test": len(test_x),
        "shape": list(images.image_shape),
        "classes": images.num_classes,
        "range": [float(x.min()), float(x.max())],
        "mean": float(x.mean()),
        "standard_deviation": float(x.std()),
        "train_by_class": y.bincount(minlength=images.num_classes).tolist(),
        "test_by_class": test_y.bincount(minlength=images.num_classes).tolist(),
    }


def _table(name: str, told: dict[str, Any]) -> Table:
    table = Table(title=name, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    low, high = told["range"]
    table.add_row("images", f"{told['train']} for training, {told['test']} for testing")
    table.add_row("channels × height × width", " × ".join(map(str, told["shape"])))
    table.add_row("pixels", f"{low:g} to {high:g}, mean {told['mean']:.3f} ± {told['standard_deviation']:.3f}")
    table.add_row("training images by class", " ".join(map(str, told["train_by_class"])))
    table.add_row("test images by class", " ".join(map(str, told["test_by_class"])))
    return table


def _write_npz(images: ImageData, path: Path) -> None:
    (x, y), (test_x, test_y) = images.train, images.test
    arrays: dict[str, Any] = {"train_x": x, "train_y": y, "test_x": test_x, "test_y": test_y}
    with path.open("wb") as file:
        np.savez_compressed(file, **{name: tensor.numpy() for name, tensor in arrays.items()})

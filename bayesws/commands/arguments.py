"""What several verbs take: data, a network's size, a place to write, a device; checked in one line."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from bayesws import data as data_sets
from bayesws.io.arguments import LARGEST, LARGEST_SEED, device_of, one_line, path_of, shown
from bayesws.io.arguments import positive as positive_number
from bayesws.io.files import check_writable
from bayesws.io.only_writer import only_writer
from bayesws.training.fit import Schedule

WIDEST, DEEPEST = 1024, 100  # channels and layers: networks of images from the command line are small
DIGITS = 25  # of the longest number that is read at all


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As ever, but for "--option=--", of which argparse makes an empty list."""
        given = sys.argv[1:] if args is None else list(args)
        if odd := next((text for text in given if text.startswith("--") and text.endswith("=--")), None):
            self.error(f"{odd}: expected a value")
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}; see {self.prog} --help\n")


NETWORK = {"hidden_channels": 8, "layers": 2, "norm": "none"}  # where nothing else is asked for


def known_tasks() -> str:
    """The tasks' names, for a help text."""
    return f"one of {', '.join(data_sets.task_names())}"


def add_data(parser: argparse.ArgumentParser) -> None:
    """Which data, and how much of it."""
    parser.add_argument(
        "--data", type=named, default="digits", help="digits (default), mnist, fashion-mnist, cifar10 or a file.npz"
    )
    parser.add_argument("--data-root", type=named, help="folder of the torchvision sets (default: $BAYESWS_DATA)")
    parser.add_argument("--download", action="store_true", help="let torchvision download the set")
    parser.add_argument("--train-size", type=positive, help="training images (default: 1000 digits, else all)")
    parser.add_argument("--test-size", type=positive, help="test images (default: all)")
    parser.add_argument("--pad", type=count, default=0, help="pixels of zeros to put around every image (default 0)")
    parser.add_argument("--side", type=positive, help="pixels a side to average images down to (default: as they are)")


def add_network(parser: argparse.ArgumentParser, out: str) -> None:
    """A network's size, how long and from how many starts it is trained, and `add_place`."""
    parser.add_argument("--hidden-channels", type=width, help="for each group element (default 8)")
    parser.add_argument("--layers", type=depth, help="weight-sharing layers (default 2)")
    parser.add_argument("--norm", choices=["none", "layer"], help="normalisation before every ReLU")
    parser.set_defaults(**NETWORK)
    parser.add_argument("--epochs", type=positive, help=f"default {Schedule().epochs}")
    parser.add_argument(
        "--learning-rate", type=rate, help=f"default {Schedule().learning_rate}; try 0.01 with --norm layer"
    )
    parser.add_argument("--starts", type=positive, default=1, metavar="K", help="trained, of which the best is kept")
    add_place(parser, out)


def network_options(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_network` says of the network, as arguments of `WSCNN`; nothing of a normalisation that is not there."""
    network = {"hidden_channels": options.hidden_channels, "layers": options.layers}
    return network if options.norm == "none" else network | {"norm": options.norm}


def schedule_options(options: argparse.Namespace) -> dict[str, Any]:
    """What it says of the training, as arguments of `bayesws.fit`: what was given, and the epochs."""
    given = {"learning_rate": options.learning_rate} if options.learning_rate is not None else {}
    given |= {"starts": options.starts} if options.starts > 1 else {}
    return {"epochs": options.epochs or Schedule().epochs} | given


def add_place(parser: argparse.ArgumentParser, out: str) -> None:
    """Where to write, and on which device to compute."""
    parser.add_argument("--out", type=place, default=Path(out), help=f"folder (default {out})")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1, LARGEST)


def rate(text: str) -> float:
    """A positive number."""
    try:
        return positive_number("rate", float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected a positive number") from error


def width(text: str) -> int:
    """How many channels a layer may have."""
    return _whole(text, 1, WIDEST)


def depth(text: str) -> int:
    """How many layers a network may have."""
    return _whole(text, 1, DEEPEST)


def several(each: Callable[[str], int]) -> Callable[[str], list[int]]:
    """Numbers with commas between them, each as `each` takes one; none twice."""
    return lambda text: list(dict.fromkeys(each(part.strip()) for part in text.split(",")))


def count(text: str) -> int:
    """A whole number, 0 or more."""
    return _whole(text, 0, LARGEST)


def seed(text: str) -> int:
    """A seed: a whole number, 0 or more."""
    return _whole(text, 0, LARGEST_SEED)


def place(text: str) -> Path:
    """A place to write to or to read from."""
    try:
        return path_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def named(text: str) -> str:
    """A name, or a place, that is told apart later."""
    place(text)
    return text


def _whole(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < DIGITS and least <= int(text) <= most):
        also = f", at most {most}" if text.isascii() and text.isdigit() and text.strip("0") else ""
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected a whole number of at least {least}{also}")
    return int(text)


def data_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_data` read, as arguments of `bayesws.data.load`."""
    return {
        "name": options.data,
        "root": options.data_root,
        "download": options.download,
        "train_size": options.train_size,
        "test_size": options.test_size,
        "side": options.side,
        **({"pad": options.pad} if options.pad else {}),  # runs from before it was known are gone on with
    }


RUNS = {
    "fit.json": "a fit",
    "comparison.json": "a comparison",
    "ranking.json": "a selection",
    "strength.json": "measured strengths",
    "study.json": "a study",
}


@contextmanager
def writing_into(folder: Path, mine: str) -> Iterator[None]:
    """One run, and only one, writes into a folder.

    Args:
        folder: of --out.
        mine: the file by which this kind of run is known.

    Raises:
        ValueError: a folder that cannot be written into, holds another kind of run, or is being written into.
    """
    check_writable(folder)
    for name, what in RUNS.items():
        if name != mine and (folder / name).exists():
            raise ValueError(f"{folder} holds {what} ({name}): choose another --out")
    try:
        with only_writer(folder):
            yield
    except KeyboardInterrupt as stop:
        trials = folder / "trials"
        if str(stop) or not list(trials.glob("*.json")):
            raise
        raise KeyboardInterrupt(f"finished trials are kept in {trials}: the same command goes on from there") from stop


def check_device(name: str) -> None:
    """Raise ValueError where torch cannot compute on a device."""
    device_of(name)

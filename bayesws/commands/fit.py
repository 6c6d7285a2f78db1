"""bayesws fit: train and save one network."""

import argparse

import torch

from bayesws import data as data_sets
from bayesws.analysis.comparison import STRUCTURES
from bayesws.commands.arguments import Parser, add_data, add_network, check_device, data_arguments, known_tasks
from bayesws.commands.terminal import wide_console
from bayesws.compare import network_for
from bayesws.files import check_writable
from bayesws.fit import Schedule, fit
from bayesws.rivals import OBJECTIVES


def add(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add its parser."""
    parser = commands.add_parser(
        "fit",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="train and save one network",
        description="Train one network and save it as a folder: weights.safetensors and fit.json.",
        epilog="examples:\n  bayesws fit --task orientation --out runs/orientation\n"
        "  bayesws fit --data mine.npz --objective task --epochs 100",
    )
    add_data(parser)
    parser.add_argument("--task", default="upright", metavar="TASK", help=known_tasks())
    parser.add_argument("--seed", type=int, default=0, help="of split, weights and order (default 0)")
    parser.add_argument("--objective", choices=OBJECTIVES, default="evidence")
    parser.add_argument("--structure", choices=tuple(STRUCTURES), default="chosen", help="pathways")
    add_network(parser, "runs/fit")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run it, print, write."""
    check_device(options.device)
    check_writable(options.out)
    if options.out.exists() and not (options.out / "fit.json").is_file() and any(options.out.iterdir()):
        raise ValueError(f"{options.out} exists and is not a saved fit: choose another --out")
    images = data_sets.load(**data_arguments(options), task=options.task, seed=options.seed)
    torch.manual_seed(options.seed)
    net = network_for(images, options.structure, hidden_channels=options.hidden_channels, layers=options.layers)
    result = fit(
        net,
        images.train,
        objective=options.objective,
        seed=options.seed,
        device=options.device,
        epochs=options.epochs or Schedule().epochs,
    )
    result.save(options.out)
    x, y = images.test
    console = wide_console()
    accuracy = float((result.predict(x, kind="map").argmax(-1).cpu() == y).double().mean())
    console.print(f"test accuracy {100 * accuracy:.1f} %, test NLL {result.nll(x, y, kind='map'):.3f} nats per datum")
    console.print(f"log evidence {result.log_evidence:.1f} nats, summed over {result.evidence.examples} images")
    for row in result.sharing:
        effective = ", ".join(f"{n} {g:.1f} of {row.parameters[n]}" for n, g in row.effective.items())
        console.print(f"{row.name}: ρ = {row.strength:.2f}; effective parameters: {effective}")
    console.print(f"written: {options.out}")

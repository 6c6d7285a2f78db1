"""bayesws report: one HTML file about any runs, and its figures for papers."""

import argparse
from pathlib import Path

from bayesws.commands.arguments import Parser, place
from bayesws.io.files import check_writable
from bayesws.report import write_report


def add(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add its parser."""
    parser = commands.add_parser(
        "report",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="one HTML file about any runs: summary, pictures, tables, where the numbers come from",
        description="Write one HTML file about runs that is read without a network, on a phone and in\n"
        "print, in light and dark: what was found, layer by layer with 95 % intervals, the\n"
        "stacks with their groups, kernels, training curves, tables, versions and commands.",
        epilog="RUN is a folder that bayesws fit, compare, select, strength or study wrote; each\n"
        "makes a section. Sampling the intervals takes up to a minute a fit.\n\n"
        "examples:\n  bayesws report runs/compare\n"
        "  bayesws report runs/fit runs/strength --out report.html --figures figures",
    )
    parser.add_argument("runs", nargs="+", type=place, metavar="RUN", help="see below")
    parser.add_argument("--out", type=place, default=Path("report.html"), help="HTML file (default report.html)")
    parser.add_argument("--figures", type=place, metavar="DIR", help="also every figure as PDF and PNG")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run it, print, write."""
    if options.out.is_dir():
        raise ValueError(f"--out {options.out} is a folder: expected an HTML file, such as {options.out}/report.html")
    for folder in (options.out.parent, options.figures):
        if folder is not None:
            check_writable(folder)
    write_report(options.runs, options.out, options.figures)
    more = "" if options.figures is None else f", and its figures as PDF and PNG in {options.figures}"
    print(f"written: {options.out}{more}")

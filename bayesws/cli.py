"""The command line: parse, call, and say in one line what went wrong."""

import argparse
import sys
from collections.abc import Sequence

from bayesws import __version__
from bayesws.commands import candidates, compare, data, fit, report, select, strength, study
from bayesws.commands.arguments import Parser
from bayesws.io.arguments import one_line
from bayesws.io.tables import visible

VERBS = (compare, fit, candidates, select, strength, study, data, report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    parser = command_line()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, FloatingPointError) as error:
        print(f"bayesws {options.command}: error: {visible(one_line(str(error)))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        left = str(stop) or "nothing was written"
        print(f"bayesws {options.command}: interrupted, {left}", file=sys.stderr)
        return 130
    return 0


def command_line() -> argparse.ArgumentParser:
    """All verbs and what they take."""
    parser = Parser(prog="bayesws", description="How much of its weights may each layer share? The evidence decides.")
    parser.add_argument("--version", action="version", version=f"bayesws {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for verb in VERBS:
        verb.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The command line: parse, call, and say in one line what went wrong."""

import argparse
import sys
from collections.abc import Sequence

from bayesws import __version__
from bayesws.commands import candidates, compare, data, fit, report, select, strength, study
from bayesws.commands.arguments import Parser
from bayesws.commands.stops import stoppable
from bayesws.io.arguments import one_line
from bayesws.io.tables import visible

VERBS = (compare, fit, candidates, select, strength, study, data, report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for what the user can mend, 130 for Ctrl-C, 143 for SIGTERM."""
    told = "bayesws"
    with stoppable() as stops:
        try:
            options = command_line().parse_args(arguments)
            told = f"bayesws {options.command}"
            options.run(options)
        except (ValueError, FloatingPointError) as error:
            print(f"{told}: error: {visible(one_line(str(error)))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as stop:
            print(f"{told}: interrupted, {str(stop) or 'nothing was written'}", file=sys.stderr)
            return stops.exit_code
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

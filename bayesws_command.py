"""The command `bayesws` while its library is being imported: Ctrl-C and SIGTERM are told in one line then, too."""

import os
import signal
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)


def main() -> int:
    """Import the library, then run the command; returns the exit code."""
    listening = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]  # not below nohup
    for number in listening:
        signal.signal(number, _end)
    from bayesws.cli import main as run

    code = run()
    for number in listening:  # all is written and told
        signal.signal(number, signal.SIG_IGN)
    return code


def _end(number: int, frame: FrameType | None) -> None:
    """Not by an exception, which an import may turn into another or drop."""
    os.write(2, b"bayesws: interrupted, nothing was written\n")
    os._exit(128 + number)

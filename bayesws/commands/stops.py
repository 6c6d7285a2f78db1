"""Ctrl-C and SIGTERM: both stop a command alike, and none is lost."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 0.05  # seconds after which a stop that was dropped is raised anew
SAME = 1.0  # seconds within which a second signal is the first: `timeout` sends to a process and then to its group


class Stops:
    """What has come.

    Attributes:
        exit_code: 128 and the signal's number, as shells have it.
    """

    def __init__(self) -> None:
        self.exit_code = 128 + signal.SIGINT
        self._last = -SAME

    def came(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt for a signal, once."""
        if time.monotonic() - self._last < SAME:
            return
        self.exit_code, self._last = 128 + number, time.monotonic()
        raise KeyboardInterrupt

    def again(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt for the signal that was dropped."""
        raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[Stops]:
    """Both signals raise KeyboardInterrupt within; where a signal is ignored, as by `nohup` and `&`, it stays so.

    What is raised while a finaliser runs Python drops, and tells sys.unraisablehook: an alarm raises it anew.
    """
    stops = Stops()
    if threading.current_thread() is not threading.main_thread():  # which alone may set what signals do
        yield stops
        return
    handlers = {number: stops.came for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN}
    if hasattr(signal, "setitimer"):
        handlers[signal.SIGALRM] = stops.again
    tell = sys.unraisablehook

    def unraisable(dropped: Any) -> None:
        if dropped.exc_type is KeyboardInterrupt and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
        else:
            tell(dropped)

    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    sys.unraisablehook = unraisable
    try:
        yield stops
    finally:
        sys.unraisablehook = tell
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)

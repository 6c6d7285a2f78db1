"""A fit that is stopped on its way, as Ctrl-C would stop it."""

from contextlib import contextmanager

import pytest

from bayesws.training.checkpoint import Checkpoint


class Stop(Exception):
    """What ends a fit in these tests."""


@contextmanager
def stopped_after(epochs):
    """Within, a fit with a checkpoint writes its state after every epoch, and is stopped after so many."""
    after, left = Checkpoint.after_epoch, [epochs]

    def stopping(self, run, what, done):
        self.seconds = 0.0
        after(self, run, what, done)
        left[0] -= 1
        if not left[0]:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "after_epoch", stopping)
        yield

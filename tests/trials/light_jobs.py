"""Jobs for test_trials_pool.py, in a file of their own: a process that runs them has little to import."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    what: str
    file: str = ""

    def run(self):
        return getattr(self, self.what)()

    def prints(self):
        print("this is no outcome", flush=True)
        return os.getpid()

    def fails(self):
        raise ValueError("on purpose")

    def is_killed_once(self):
        if not Path(self.file).exists():
            Path(self.file).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    def sleeps(self):
        Path(self.file).write_text(str(os.getpid()))
        time.sleep(600)

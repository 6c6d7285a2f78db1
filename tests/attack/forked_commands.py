"""A process that has imported bayesws and runs its commands in forks of itself, to be killed at any file operation.

Run as a script by test_attack_stops.py. It reads a request a line, as JSON, and answers a line each:

    {"run": arguments, "at": folder, "streams": folder for what is printed, "pool": whether trials have processes,
     "kill": [which operation, "before" | "after" | "within"] or null,
     "signal": [number, seconds, "process" | "group" | "worker"] or null}
    {"status": as os.waitstatus_to_exitcode has it, "operations": what it did, "left": processes of its group}

The operations are those that change the folder: open to write, write_text and write_bytes (which can be cut in their
middle), mkdir, rename, replace, unlink, rmdir, chmod. `Checkpoint` writes after every epoch.
"""

import builtins
import io
import json
import os
import pathlib
import signal
import sys
import time
from contextlib import suppress

import torch

import bayesws_command
from bayesws import cli  # noqa: F401  what the forks have then
from bayesws.training.checkpoint import Checkpoint
from bayesws.trials import engine

STOPS = (signal.SIGINT, signal.SIGTERM)
GRACE = 2.0  # seconds that a process may outlive its parent
LOG = "operations"


class Killer:
    """Counts the operations of this process on files below its working directory, and ends it at one of them."""

    def __init__(self, kill):
        self.at, self.when = kill or (-1, "")
        self.count = 0
        self.log = os.open(os.environ["OPERATIONS"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.here = os.getcwd() + os.sep
        for name in ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "chmod"):
            setattr(os, name, self.counted(getattr(os, name)))
        os.open = self.counted(os.open, lambda path, flags, *_, **__: flags & (os.O_WRONLY | os.O_RDWR))
        builtins.open = io.open = self.counted(open, lambda path, mode="r", *_, **__: set(mode) & set("wax+"))
        for name in ("write_text", "write_bytes"):
            setattr(pathlib.Path, name, self.cut(getattr(pathlib.Path, name)))

    def counted(self, call, counts=lambda *_, **__: True):
        def operation(*arguments, **keywords):
            if not self.is_here(arguments[0], keywords) or not counts(*arguments, **keywords):
                return call(*arguments, **keywords)
            mine = self.next(call.__name__, arguments[0])
            self.end_if(mine, "before")
            try:
                return call(*arguments, **keywords)
            finally:
                self.end_if(mine, "after")

        return operation

    def cut(self, call):
        def write(path, data, *arguments, **keywords):
            mine = self.next(call.__name__, path)
            self.end_if(mine, "before")
            if (mine, "within") == (self.at, self.when):
                call(path, data[: len(data) // 2], *arguments, **keywords)
            self.end_if(mine, "within")
            try:
                return call(path, data, *arguments, **keywords)
            finally:
                self.end_if(mine, "after")

        return write

    def is_here(self, path, keywords):
        if keywords.get("dir_fd") is not None:
            return True
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self.here)

    def next(self, name, path):
        self.count += 1
        os.write(self.log, f"{name} {path}\n".encode())
        return self.count - 1

    def end_if(self, mine, when):
        if (mine, when) == (self.at, self.when):
            os.kill(os.getpid(), signal.SIGKILL)


def in_this_process(jobs, processes):
    for index, job in enumerate(jobs):
        yield index, job.run()


def command(request):
    """In the fork: become the command."""
    os.setsid()
    os.chdir(request["at"])
    for number, stream in ((1, "printed"), (2, "told")):
        os.dup2(os.open(os.path.join(request["streams"], stream), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["bayesws", *request["run"]]
    Killer(request["kill"])
    if not request["pool"]:
        engine.in_processes = in_this_process
    for number in STOPS:
        signal.signal(number, bayesws_command._end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    code = bayesws_command.main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def alive(group):
    """Processes of a group that are not zombies."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    state, _, of_group = file.read().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(of_group) == group and state not in "ZX":
                found.append(int(entry))
    return found


def answer(request):
    os.environ["OPERATIONS"] = os.path.join(request["streams"], LOG)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    pid = os.fork()
    if not pid:
        try:
            command(request)
        finally:
            os._exit(99)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    if request["signal"]:
        number, seconds, to = request["signal"]
        time.sleep(seconds)
        for one in {"process": [pid], "group": alive(pid), "worker": [one for one in alive(pid) if one != pid][:1]}[to]:
            with suppress(ProcessLookupError):
                os.kill(one, number)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    until = time.monotonic() + GRACE
    while (left := alive(pid)) and time.monotonic() < until:
        time.sleep(0.05)
    with open(os.environ["OPERATIONS"]) as file:
        return {"status": status, "operations": file.read().splitlines(), "left": left}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # which imports a part of torch only now
    Checkpoint.__init__.__defaults__ = (0.0,)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)

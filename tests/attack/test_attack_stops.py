"""Kills at every file operation and at random moments: the same command finishes with the bits of an unbroken run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import copytree

import pytest

SERVER = Path(__file__).with_name("forked_commands.py")
SMALL = ["--train-size", "40", "--test-size", "40", "--epochs", "3"]
STUDY = {
    "data": {"name": "digits", "test_size": 40},
    "tasks": ["turned"],
    "train_sizes": [40],
    "seeds": 2,
    "epochs": 2,
    "methods": {"evidence": {"model": "WSCNN", "network": {"hidden_channels": 1}}},
}
TINY = ["--hidden-channels", "1"]
COMMANDS = {
    "fit": ["fit", *SMALL, *TINY, "--out", "out"],
    "fit over a fit": ["fit", *SMALL, *TINY, "--out", "out"],
    "fit, settings chosen": ["fit", *SMALL, *TINY, "--objective", "task", "--out", "deep/out"],
    "select": ["select", *SMALL, "--groups", "none,flips", "--width", "2", "--curvature", "kron", "--out", "out"],
    "compare": ["compare", *SMALL, *TINY, "--task", "turned", "--seeds", "1", "--out", "out"],
    "study": ["study", "../study.json", "--out", "out"],
}
FEW = {"fit": 3, "fit over a fit": 3, "select": 2}  # points of the default tests; of the dearer commands one
SECONDS = ("seconds", "training_seconds", "sha256")  # and seals over them


class Commands:
    """Runs commands in forks of one process, each in a folder of its own."""

    def __init__(self, folder):
        self.folder, self.count, self.unbroken = folder, 0, {}
        (folder / "study.json").write_text(json.dumps(STUDY))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen([sys.executable, "-W", "ignore", str(SERVER)], env=environment, **pipes)
        self.server.stdout.readline()  # it has imported

    def run(self, name, at, kill=None, signal=None, pool=False):
        streams = self.folder / "streams"
        streams.mkdir(exist_ok=True)
        request = {"run": COMMANDS[name], "at": str(at), "streams": str(streams), "kill": kill, "signal": signal}
        self.server.stdin.write(json.dumps(request | {"pool": pool}) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline()) | {"told": (streams / "told").read_text()}

    def place(self, name):
        """A folder as the command finds it."""
        self.count += 1
        at = self.folder / f"{self.count}"
        at.mkdir()
        if name == "fit over a fit":
            made = self.folder / "made"
            if not made.exists():
                made.mkdir()
                assert self.run(name, made)["status"] == 0
            copytree(made, at, dirs_exist_ok=True)
        return at

    def whole(self, name, pool=False):
        """What an unbroken run leaves, its operations, and its seconds."""
        if (name, pool) not in self.unbroken:
            at = self.place(name)
            began = time.monotonic()
            done = self.run(name, at, pool=pool)
            assert done["status"] == 0, done["told"]
            self.unbroken[name, pool] = contents(at), done["operations"], time.monotonic() - began
        return self.unbroken[name, pool]

    def points(self, name):
        """Where it can be killed: before and after every operation, and in the middle of what is written."""
        operations = self.whole(name)[1]
        points = [(k, when) for k in range(len(operations)) for when in ("before", "after")]
        return points + [(k, "within") for k, told in enumerate(operations) if told.startswith("write_")]

    def killed_at(self, name, point):
        at = self.place(name)
        told = f"{name} killed {point[1]} {self.whole(name)[1][point[0]]}"
        assert self.run(name, at, kill=point)["status"] == -signal.SIGKILL, told
        return self.rerun(name, at, told)

    def stopped(self, name, number, share, to, pool):
        """By a signal after a share of its time; its processes end with it, and tell of it in one line if they can."""
        at = self.place(name)
        told = f"{name}, signal {number} to its {to} at {share}"
        done = self.run(name, at, signal=(number, share * self.whole(name, pool)[2], to), pool=pool)
        code = 2 if to == "worker" else -number if number == signal.SIGKILL else 128 + number
        assert done["status"] in (0, code), (told, done)
        assert not done["left"], told
        assert "Traceback" not in done["told"], (told, done["told"])
        if done["status"] == 2:
            assert "was ended from outside" in done["told"].splitlines()[-1], (told, done["told"])
        if done["status"] == 128 + number:
            last = done["told"].splitlines()[-1]
            kept = [*at.glob("*.unfinished/*"), *at.glob("out/trials/*.json")]
            assert "interrupted, " in last and ("nothing was written" not in last or not kept), (told, last, kept)
        return self.rerun(name, at, told, pool)

    def rerun(self, name, at, told, pool=False):
        """In what the same command, once more, comes to something else than an unbroken run: bits, files, an error."""
        again = self.run(name, at, pool=pool)
        if again["status"] != 0:
            return [f"{told}: {again['told']}"]
        found, expected = contents(at), self.whole(name)[0]
        odd = [path for path in sorted(found.keys() | expected.keys()) if found.get(path, "") != expected.get(path, "")]
        return [f"{told}: {path}" for path in odd]


def contents(at):
    """All files below a folder, and empty folders; JSON without how long it took."""
    files = {path.relative_to(at): path for path in sorted(at.rglob("*"))}
    return {name: content(path) for name, path in files.items()}


def content(path):
    if path.is_dir() or path.name == "finished.json":  # a digest of a file that says how long it took
        return None
    return timeless(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()


def timeless(value):
    if isinstance(value, dict):
        return {key: timeless(entry) for key, entry in value.items() if key not in SECONDS}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    commands = Commands(tmp_path_factory.mktemp("stops"))
    yield commands
    commands.server.stdin.close()
    commands.server.wait()


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_a_few_file_operations(name, commands):
    for point in random.Random(0).sample(commands.points(name), FEW.get(name, 1)):
        assert commands.killed_at(name, point) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_file_operation(name, commands):
    points = commands.points(name)[:: 4 if name == "fit, settings chosen" else 1]
    for point in points:
        assert commands.killed_at(name, point) == []
    print(f"{name}: {len(points)} points")


def moments(number, count, seed):
    """Which command is stopped, at which share of its time, whether its process alone or all, and if it has others."""
    draw = random.Random(f"{number} {seed}")
    for _ in range(count):
        name = draw.choice(list(COMMANDS))
        pool = not name.startswith("fit") and draw.random() < 0.12
        yield name, draw.random(), draw.choice(["process", "group"]), pool


SIGNALS = {signal.SIGKILL: 100, signal.SIGTERM: 40, signal.SIGINT: 40}


@pytest.mark.parametrize("number", SIGNALS)
def test_stopped_at_a_few_moments(number, commands):
    for name, share, to, _ in moments(number, 1, "few"):
        assert commands.stopped(name, number, share, to, pool=False) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_stopped_at_many_moments(number, commands):
    pools = 0
    for name, share, to, pool in moments(number, SIGNALS[number], "many"):
        assert commands.stopped(name, number, share, to, pool) == []
        pools += pool
    print(f"signal {number}: {SIGNALS[number]} moments, {pools} of them with processes")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["select", "compare", "study"])
def test_a_worker_is_killed(name, commands):
    for share in (0.3, 0.6, 0.8):
        assert commands.stopped(name, signal.SIGKILL, share, "worker", pool=True) == []

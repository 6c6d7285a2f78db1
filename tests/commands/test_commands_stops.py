"""Ctrl-C and SIGTERM stop a command alike: one line, exit code 128 and the signal's number, and none is lost."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bayesws.cli import main
from bayesws.commands.stops import stoppable

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
FIT = ["fit", "--epochs", "1", "--train-size", "40"]


def sent(number):
    """Something for a command to do: it gets the signal while it works."""

    def work(*_, **__):
        os.kill(os.getpid(), number)
        time.sleep(5)

    return work


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("where", ["bayesws.cli.command_line", "bayesws.commands.fit.fit"])
def test_both_signals_are_told_alike(number, where, tmp_path, capsys, monkeypatch):
    before = [signal.getsignal(n) for n in (*CODES, signal.SIGALRM)]
    monkeypatch.setattr(where, sent(number))
    assert main([*FIT, "--out", str(tmp_path / "out")]) == CODES[number]
    who = "bayesws" if "cli" in where else "bayesws fit"
    assert capsys.readouterr().err == f"{who}: interrupted, nothing was written\n"
    assert not list(tmp_path.iterdir())
    assert [signal.getsignal(n) for n in (*CODES, signal.SIGALRM)] == before


class Finalised:
    """Drops what is raised while it is removed, as Python does for every finaliser."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        for _ in range(10):
            time.sleep(0.01)


@pytest.mark.parametrize("number", CODES)
def test_a_signal_that_meets_a_finaliser_is_not_lost(number, capfd):
    with stoppable() as stops, pytest.raises(KeyboardInterrupt):
        Finalised(number)
        time.sleep(5)
    assert stops.exit_code == CODES[number]
    assert capfd.readouterr().err == ""


def test_two_signals_at_once_are_one():
    with stoppable() as stops, pytest.raises(KeyboardInterrupt):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # as `timeout` does: to the process, and to its group
            tidied = True
    assert tidied and stops.exit_code == 143


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as below nohup, and of `bayesws ... &` in a script
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", CODES)
def test_while_modules_are_imported(number, tmp_path):
    """The import of torch is stood in for by one that lasts."""
    (tmp_path / "torch.py").write_text("print('importing', flush=True)\nwhile True:\n    pass\n")
    paths = [str(tmp_path), *sys.path]
    start = f"import sys; sys.path[:] = {paths}; sys.argv[1:] = {FIT}; import bayesws_command as b; sys.exit(b.main())"
    command = [sys.executable, "-c", start]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as importing:
        try:
            assert importing.stdout.readline() == "importing\n"
            importing.send_signal(number)
            told = importing.communicate(timeout=60)[1]
        finally:
            importing.kill()  # it would last for ever
    assert importing.returncode == CODES[number] and told == "bayesws: interrupted, nothing was written\n"

"""A disk that is full, as a limit on the size of a file has it: one line, exit code 2, nothing half-written."""

import resource
from contextlib import contextmanager

import pytest

from bayesws.cli import main

SMALL = ["--train-size", "60", "--epochs", "2"]


@contextmanager
def files_up_to(size):
    """No file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


CASES = {
    "fit": ["fit", *SMALL, "--hidden-channels", "2"],
    "select": ["select", *SMALL, "--groups", "none", "--width", "2"],
    "compare": ["compare", *SMALL, "--hidden-channels", "2", "--seeds", "1", "--task", "turned", "--jobs", "1"],
}


@pytest.mark.parametrize("verb", CASES)
def test_full_disk_is_told_in_one_line(verb, tmp_path, capsys):
    with files_up_to(2000):
        assert main([*CASES[verb], "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "cannot write" in error and error.count("\n") == 1
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in left if path.stat().st_size >= 2000]  # nothing that was cut off
    assert main([*CASES[verb], "--out", str(tmp_path / "out")]) == 0  # and nothing in the way when there is room again


@pytest.mark.parametrize(("option", "name"), [("--npz", "x.npz"), ("--picture", "x.png")])
def test_full_disk_leaves_no_file(option, name, tmp_path, capsys):
    with files_up_to(2000):
        assert main(["data", option, str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert "cannot write" in error and error.count("\n") == 1 and not list(tmp_path.iterdir())

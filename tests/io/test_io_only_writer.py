"""One process at a time writes into a folder: the others are told so, at the command line and at the Python door."""

import os
import signal
import time

import pytest
import torch
from refusals import assert_refused

import bayesws as bws
from bayesws.cli import main
from bayesws.io.files import draft_of, remove_folder, sweep_drafts, write_folder_whole, write_whole
from bayesws.io.only_writer import only_writer

BUSY = "another process is writing into .*: wait until it ends, or choose another place"
SMALL = ["--train-size", "40", "--epochs", "1"]
STUDY = '{"data": {"name": "digits"}, "tasks": ["turned"], "train_sizes": [9], "seeds": 1, "epochs": 1, "methods": '
STUDY += '{"task": {"model": "CNN"}}}'


@pytest.mark.parametrize("verb", ["fit", "select", "compare", "study", "strength"])
def test_a_second_command_is_told_so_at_once(verb, tmp_path, capsys):
    (tmp_path / "study.json").write_text(STUDY)
    given = {"study": [str(tmp_path / "study.json")], "strength": ["resnet18"]}.get(verb, SMALL)
    out = tmp_path / "out"
    lock = tmp_path / ".out.lock" if verb == "fit" else None
    with only_writer(out, lock):
        before = sorted(tmp_path.rglob("*"))
        began = time.monotonic()
        assert main([verb, *given, "--out", str(out)]) == 2
        assert time.monotonic() - began < 2
        assert sorted(tmp_path.rglob("*")) == before
    told = capsys.readouterr().err
    assert "another process is writing into" in told and told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.json"]  # no lock, no folder made for it


DATA = (torch.rand(6, 1, 8, 8), torch.arange(6) % 3)
FEW = {"epochs": 1, "progress": False}
PYTHON = {
    "fit": lambda folder: bws.fit(network(), DATA, checkpoint=folder, **FEW),
    "select": lambda folder: bws.select({"a": network()}, DATA, checkpoints=folder, **FEW),
    "the engine": lambda folder: bws.trials.run([], folder.parent),
}


def network():
    return bws.models.WSCNN(num_classes=3, hidden_channels=1)


@pytest.mark.parametrize("name", PYTHON)
def test_a_second_call_is_told_so(name, tmp_path):
    folder = tmp_path / "trials"
    with only_writer(folder):
        assert_refused(lambda: PYTHON[name](folder), BUSY)
    assert not list(tmp_path.iterdir())


def test_the_lock_dies_with_its_process(tmp_path):
    """Though a fork of it lives on, as those of a DataLoader do for some seconds."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        with only_writer(tmp_path / "out"):
            if other := os.fork():
                os.write(writing, str(other).encode())
            time.sleep(60)
        os._exit(0)
    other = int(os.read(reading, 20))
    try:
        assert_refused(lambda: only_writer(tmp_path / "out").__enter__(), BUSY)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert (tmp_path / "out" / ".lock").exists()
        with only_writer(tmp_path / "out"):
            pass
        assert not list((tmp_path / "out").iterdir())
    finally:
        os.kill(other, signal.SIGKILL)


def test_drafts_are_swept_and_nothing_else(tmp_path):
    (tmp_path / "fits").mkdir()
    mine = [tmp_path / ".notes.draft", tmp_path / "a.12345678.draft", tmp_path / "fits" / ".a.1234567g.draft"]
    for path in (*mine, draft_of(tmp_path / "a.json"), draft_of(tmp_path / "fits" / "a")):
        path.write_text("half")
    draft_of(tmp_path / "fits" / "b").mkdir()
    with only_writer(tmp_path):
        assert sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock") == sorted(mine)
    left = draft_of(tmp_path / "a[b]"), draft_of(tmp_path / "ab")
    for path in left:
        path.write_text("half")
    sweep_drafts(tmp_path, "a[b]")
    assert [path.exists() for path in left] == [False, True]


def test_the_umask_is_kept(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", lambda draft: draft.write_text("all"))
        write_folder_whole(tmp_path / "folder", lambda draft: (draft / "file").write_text("all"))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"file": 0o640, "folder": 0o750}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder, link = tmp_path / "folder", tmp_path / "link"
    write_folder_whole(folder, lambda draft: (draft / "old").write_text("old"))
    link.symlink_to(folder)

    def failing(draft):
        (draft / "new").write_text("new")
        raise OSError(28, "No space left on device")

    assert_refused(lambda: write_folder_whole(folder, failing), "cannot write .*folder: No space left")
    assert [path.name for path in folder.iterdir()] == ["old"]
    write_folder_whole(link, lambda draft: (draft / "new").write_text("new"))
    assert [path.name for path in folder.iterdir()] == ["new"] and link.is_symlink()
    remove_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]

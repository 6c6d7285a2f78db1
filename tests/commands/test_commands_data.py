"""bayesws data: what it says of an image set, and what it writes."""

import json

import pytest
import torch

import bayesws as bws
from bayesws.cli import main

FEW = ["data", "--task", "orientation", "--train-size", "60", "--test-size", "20"]


def test_description_is_of_the_images(capsys):
    assert main([*FEW, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    images = bws.data.load("digits", task="orientation", train_size=60, test_size=20)
    assert (told["train"], told["test"], told["classes"], told["shape"]) == (60, 20, 4, [1, 8, 8])
    assert sum(told["train_by_class"]) == 60 and told["mean"] == float(images.train[0].mean())
    assert main(FEW) == 0
    assert "60 for training, 20 for testing" in capsys.readouterr().out


def test_written_images_come_back(tmp_path, capsys):
    path, picture = tmp_path / "mine.npz", tmp_path / "mine.png"
    assert main([*FEW, "--npz", str(path), "--picture", str(picture)]) == 0
    assert capsys.readouterr().out.count("written: ") == 2
    again, images = bws.data.load(path), bws.data.load("digits", task="orientation", train_size=60, test_size=20)
    for split in ("train", "test"):
        for ours, theirs in zip(getattr(again, split), getattr(images, split), strict=True):
            assert torch.equal(ours, theirs)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.npz", "mine.png"]


def test_other_endings_are_refused_before_anything_is_written(tmp_path, capsys):
    assert main([*FEW, "--npz", str(tmp_path / "mine.npz"), "--picture", str(tmp_path / "mine.jpg")]) == 2
    error = capsys.readouterr().err
    assert "expected a file name that ends in .png" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_candidates_as_json(capsys):
    assert main(["candidates", "--task", "turned", "--train-size", "1500", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["group"]["name"] == "quarter-turns" and len(told["group"]["permutations"]) == 4
    misfits = [row["misfit"] for row in told["permutations"]]
    assert misfits == pytest.approx(sorted(misfits)) and told["support"] == [3, 3]

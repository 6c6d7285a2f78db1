"""MNIST-like files written by hand, packed, unpacked and broken; CIFAR-10 and its subset."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets

from bayesws.data.torchvision_sets import cifar10, data_root, fashion_mnist, mnist

PIXELS = {
    "train": np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2) * 20,
    "t10k": np.full((2, 2, 2), 255, np.uint8),
}
LABELS = {"train": np.array([7, 0, 9], np.uint8), "t10k": np.array([1, 2], np.uint8)}


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def write(root, packed=True, folder="MNIST"):
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for part, array in (("images-idx3", PIXELS[split]), ("labels-idx1", LABELS[split])):
            content, name = idx(array), f"{split}-{part}-ubyte"
            (raw / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return raw


def refusal(load, *arguments, **named):
    with pytest.raises(ValueError) as caught:
        load(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("load", "name", "folder"), [(mnist, "mnist", "MNIST"), (fashion_mnist, "fashion-mnist", "FashionMNIST")]
)
def test_the_files_are_read_and_nothing_is_written(tmp_path, packed, load, name, folder):
    write(tmp_path, packed, folder)
    before = sorted(tmp_path.rglob("*"))
    data = load(tmp_path)
    assert repr(data) == f"ImageData('{name}', train=3, test=2, images=1x2x2, num_classes=10)"
    assert torch.equal(data.train[0], torch.from_numpy(PIXELS["train"])[:, None] / 255)
    assert data.train[1].tolist() == [7, 0, 9] and data.test[1].tolist() == [1, 2] and data.test[0].min() == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_files_that_are_there_are_not_downloaded_again(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(torchvision.datasets, "MNIST", None)
    assert mnist(tmp_path, download=True).train[1].tolist() == [7, 0, 9]


def test_what_is_downloaded_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda root, download: write(Path(root), packed=False))
    assert mnist(tmp_path, download=True).train[1].tolist() == [7, 0, 9]


def test_the_root_is_the_argument_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BAYESWS_DATA", str(tmp_path / "variable"))
    assert data_root(tmp_path) == tmp_path and data_root() == tmp_path / "variable"
    for unset in (lambda: monkeypatch.setenv("BAYESWS_DATA", ""), lambda: monkeypatch.delenv("BAYESWS_DATA")):
        unset()
        assert data_root() == Path.home() / ".cache" / "bayesws"
    assert data_root("~/sets") == Path.home() / "sets"


@pytest.mark.parametrize("load", [mnist, fashion_mnist, cifar10])
def test_not_found_names_the_root_and_the_ways_out(tmp_path, load):
    said = refusal(load, tmp_path)
    assert f"is not under {tmp_path}, expected" in said
    assert all(way in said for way in ("--data-root", "BAYESWS_DATA", "download=True"))


def test_not_found_names_the_first_file_that_is_missing(tmp_path):
    (write(tmp_path) / "t10k-labels-idx1-ubyte.gz").unlink()
    assert "expected MNIST/raw/t10k-labels-idx1-ubyte[.gz] there" in refusal(mnist, tmp_path)


@pytest.mark.parametrize(("load", "name"), [(mnist, "MNIST"), (fashion_mnist, "FashionMNIST"), (cifar10, "CIFAR10")])
@pytest.mark.parametrize("error", [RuntimeError("Tried a,\ngot b"), OSError("no route"), PermissionError(13, "denied")])
def test_a_download_that_fails_is_told_in_one_line(tmp_path, monkeypatch, load, name, error):
    def fail(*arguments, **named):
        raise error

    monkeypatch.setattr(torchvision.datasets, name, fail)
    said = refusal(load, tmp_path, download=True)
    assert f"could not be downloaded to {tmp_path} ({' '.join(str(error).split())})" in said


IMAGES, COUNTED = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
BROKEN = [
    ("truncated gzip", IMAGES, gzip.compress(idx(PIXELS["train"]))[:-9], "truncated or corrupt"),
    ("gzip cut short", IMAGES, gzip.compress(idx(PIXELS["train"]))[:5], "truncated or corrupt"),
    ("empty", IMAGES, b"", "starts with nothing"),
    ("no gzip", IMAGES, b"<html>not found</html>", "truncated or corrupt"),
    ("wrong checksum", IMAGES, gzip.compress(idx(PIXELS["train"]))[:-8] + bytes(8), "truncated or corrupt"),
    ("no idx", IMAGES, gzip.compress(b"<html>"), "starts with 3c68746d, expected 00000803"),
    (
        "labels for images",
        IMAGES,
        gzip.compress(idx(LABELS["train"])),
        "starts with 00000801, expected 00000803",
    ),
    (
        "too few pixels",
        IMAGES,
        gzip.compress(idx(PIXELS["train"])[:-1]),
        r"holds 11 values, expected 12 for shape \(3, 2, 2\)",
    ),
    ("header only", IMAGES, gzip.compress(bytes((0, 0, 8, 3, 0, 0))), "holds 0 values"),
    ("too many labels", COUNTED, gzip.compress(idx(LABELS["train"]) + b"\0"), r"holds 4 values, expected 3"),
    ("two labels", COUNTED, gzip.compress(idx(LABELS["t10k"])), "train has 3 images but 2 labels"),
    (
        "label 10",
        COUNTED,
        gzip.compress(idx(LABELS["train"] + 1)),
        "labels run from 1 to 10, expected 0 to 9",
    ),
]


@pytest.mark.parametrize(("file", "content", "says"), [c[1:] for c in BROKEN], ids=[c[0] for c in BROKEN])
def test_a_broken_file_is_named(tmp_path, file, content, says):
    raw = write(tmp_path)
    (raw / file).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        mnist(tmp_path)
    assert (str(raw / file) if "labels" not in says else "train") in refusal(mnist, tmp_path)


def write_subset(root, n=20):
    x = np.arange(n * 3 * 32 * 32, dtype=np.uint32).astype(np.uint8).reshape(n, 3, 32, 32)
    np.savez(root / "cifar10-12k.npz", train_x=x, train_y=np.arange(n) % 5, test_x=x, test_y=np.arange(n) % 5)


def test_the_cifar_subset_is_named_a_subset(tmp_path):
    write_subset(tmp_path)
    data = cifar10(tmp_path)
    assert (data.name, data.num_classes, data.image_shape) == ("cifar10-12k", 10, (3, 32, 32))


class Whole:
    """Stands for torchvision's CIFAR10: pixel value = row, channels last."""

    def __init__(self, root, train, download):
        n = 4 if train else 2
        self.data = np.arange(32, dtype=np.uint8)[None, :, None, None].repeat(n, 0).repeat(32, 2).repeat(3, 3)
        self.targets = list(range(n))


@pytest.mark.parametrize("download", [True, False])
def test_the_whole_of_cifar_goes_before_its_subset(tmp_path, monkeypatch, download):
    write_subset(tmp_path)
    if not download:
        (tmp_path / "cifar-10-batches-py").mkdir()
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Whole)
    data = cifar10(tmp_path, download=download)
    assert repr(data) == "ImageData('cifar10', train=4, test=2, images=3x32x32, num_classes=10)"
    assert torch.equal(data.train[0][0, 0, :, 5] * 255, torch.arange(32.0))


def test_a_broken_cifar_folder_is_not_replaced_by_the_subset(tmp_path):
    write_subset(tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert f"{tmp_path / 'cifar-10-batches-py'} is incomplete or corrupt" in refusal(cifar10, tmp_path)


REAL = os.environ.get("BAYESWS_DATA")


@pytest.mark.skipif(not REAL, reason="BAYESWS_DATA is not set: no real MNIST to read")
def test_the_real_mnist():
    data = mnist()
    assert repr(data) == "ImageData('mnist', train=60000, test=10000, images=1x28x28, num_classes=10)"
    assert data.train[1][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.test[1].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.train[0].mean().item() == pytest.approx(0.1307, abs=5e-5)

"""MNIST, Fashion-MNIST and CIFAR-10 where torchvision keeps them, or would."""

import http.client
import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bayesws.data.idx import read_idx
from bayesws.data.images import ImageData
from bayesws.data.npz import npz
from bayesws.io.arguments import whole_text

Root = str | os.PathLike[str] | None

_PARTS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_CIFAR_FOLDER = "cifar-10-batches-py"
_CIFAR_SUBSET = "cifar10-12k"


def data_root(root: Root = None) -> Path:
    """The folder with the image sets: the argument, else $BAYESWS_DATA, else ``~/.cache/bayesws``."""
    return Path(root or os.environ.get("BAYESWS_DATA") or "~/.cache/bayesws").expanduser()


def mnist(root: Root = None, download: bool = False) -> ImageData:
    """MNIST: 60 000 + 10 000 handwritten digits, 1x28x28, 10 classes.

    Args:
        root: folder with ``MNIST/raw/*-ubyte``, or ``MNIST/raw/*-ubyte.gz``, which are unpacked in memory;
            see `data_root`.
        download: let torchvision fetch the files to ``root`` if they are not there.

    Raises:
        ValueError: if a file is missing, truncated or corrupt, or the download fails.
    """
    return _mnist_like("mnist", "MNIST", data_root(root), download)


def fashion_mnist(root: Root = None, download: bool = False) -> ImageData:
    """Fashion-MNIST: 60 000 + 10 000 pieces of clothing, 1x28x28, 10 classes.

    Arguments and errors as for `mnist`; the folder is ``FashionMNIST/raw``.
    """
    return _mnist_like("fashion-mnist", "FashionMNIST", data_root(root), download)


def cifar10(root: Root = None, download: bool = False) -> ImageData:
    """CIFAR-10: 50 000 + 10 000 photographs, 3x32x32, 10 classes.

    Args:
        root: folder with ``cifar-10-batches-py``; where that is not there and no download is asked for,
            ``cifar10-12k.npz`` is read, and the set is then *named* ``cifar10-12k``; see `data_root`.
        download: let torchvision fetch the whole set to ``root`` if it is not there.

    Raises:
        ValueError: if neither is there, a file is truncated or corrupt, or the download fails.
    """
    folder = data_root(root)
    whole, subset = folder / _CIFAR_FOLDER, folder / f"{_CIFAR_SUBSET}.npz"
    if not whole.is_dir() and not download:
        if subset.is_file():
            return replace(npz(subset), name=_CIFAR_SUBSET, num_classes=10)
        raise _not_found("cifar10", folder, f"{_CIFAR_FOLDER}/ or {subset.name}")
    from torchvision.datasets import CIFAR10  # type: ignore[import-untyped, unused-ignore]

    try:
        splits = [CIFAR10(folder, train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        if download:
            raise _no_download("cifar10", folder, error) from error
        raise ValueError(
            f"{whole} is incomplete or corrupt ({whole_text(error)}); delete it and download it again (--download, "
            "download=True)"
        ) from error
    train_x, test_x = (torch.from_numpy(split.data).permute(0, 3, 1, 2) for split in splits)
    train_y, test_y = (torch.tensor(split.targets) for split in splits)
    return ImageData("cifar10", (_unit(train_x), train_y), (_unit(test_x), test_y), num_classes=10)


def _mnist_like(name: str, folder: str, root: Path, download: bool) -> ImageData:
    raw = root / folder / "raw"
    if download and None in _parts(raw):
        import torchvision.datasets  # type: ignore[import-untyped, unused-ignore]

        try:
            getattr(torchvision.datasets, folder)(root, download=True)
        except (RuntimeError, OSError, http.client.HTTPException) as error:
            raise _no_download(name, root, error) from error
    files = []
    for part, file in zip(_PARTS, _parts(raw), strict=True):
        if file is None:
            raise _not_found(name, root, f"{folder}/raw/{part}[.gz]")
        files.append(file)
    train_x, train_y, test_x, test_y = (read_idx(file, rank) for file, rank in zip(files, (3, 1, 3, 1), strict=True))
    train, test = (_unit(train_x[:, None]), train_y.long()), (_unit(test_x[:, None]), test_y.long())
    return ImageData(name, train, test, num_classes=10)


def _parts(raw: Path) -> list[Path | None]:
    """For each of the four parts the file that holds it, unpacked or compressed, or None."""
    both = ((raw / part, raw / f"{part}.gz") for part in _PARTS)
    return [next((file for file in files if file.is_file()), None) for files in both]


def _unit(x: Tensor) -> Tensor:
    """Bytes to [0, 1]."""
    return x.to(torch.float32).contiguous().div_(255)


def _not_found(name: str, root: Path, searched: str) -> ValueError:
    return ValueError(
        f"{name} is not under {root}, expected {searched} there;"
        " set --data-root or BAYESWS_DATA to a folder that has it, or let it be downloaded (--download, download=True)"
    )


def _no_download(name: str, root: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{name} could not be downloaded to {root} ({whole_text(error)});"
        " check the network and the folder, or set --data-root or BAYESWS_DATA to a folder that has it"
    )

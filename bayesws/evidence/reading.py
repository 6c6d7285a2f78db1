"""Data sets and loaders, read: all at once, or batch by batch as a loader gives them; never without end."""

from collections.abc import Iterator, Mapping, Sized
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from bayesws.evidence.examples import check_lengths, could_be_targets, inputs_of, parts_of, targets_of
from bayesws.io.arguments import numbers

UNKNOWN = 100_000  # data that something without a length may give: it could go on for ever
TIMES = 10  # how often a loader may give its data set in one walk
Read = tuple[Tensor, Tensor, tuple[Any, ...]]  # x, y and what stands beside them


def as_tensors(data: Any) -> tuple[Tensor, Tensor]:
    """Data as one pair of tensors (x, y); a DataLoader's data set in its own order, or what the loader makes of it.

    Raises:
        ValueError: as `Batches`; examples of more than two parts that are numbers, with nothing to tell which is y.
    """
    x, y, beside = read_whole(data)
    if could_be_targets(beside):
        raise ValueError(
            f"examples of {2 + len(beside)} parts: expected pairs (x, y), as nothing here tells which part is y; give "
            "the loader a collate_fn, or the Dataset items, of x and y alone"
        )
    return inputs_of(x), y


def read_whole(data: Any) -> Read:
    """All of some data, and what stands beside them."""
    if isinstance(data, DataLoader):
        if not gives_its_data_set(data):
            return _together(list(walked(data)))
        data = data.dataset
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, Dataset):
        if isinstance(data, IterableDataset) or not isinstance(data, Sized):
            items = list(islice(iter(data), 1 + _most(length_of(data))))
            _check_ends(len(items), length_of(data))
        else:
            items = [data[i] for i in range(len(data))]
        return _stacked(items)
    if not isinstance(data, tuple | list | Mapping):
        raise ValueError(
            f"data of type {type(data).__name__}: expected a pair of tensors (x, y), a Dataset or a DataLoader"
        )
    return _read(data)


def length_of(data: Any) -> int:
    """How many data there are, -1 where they do not know."""
    return len(data) if isinstance(data, Sized) else -1


def _read(given: Any) -> Read:
    """A batch, or all data."""
    x, y, beside = parts_of(given)
    x, y = numbers("inputs", x), targets_of(y)
    check_lengths(x, y)
    return x, y, tuple(part for part in could_be_targets(beside) if len(part) == len(x))


def _stacked(items: list[Any]) -> Read:
    """Examples, each of them read, as a batch."""
    if not items:
        raise ValueError("the data is empty: expected at least one example")
    x, y, *beside = _columns([parts_of(item) for item in items])
    return _read((_stack("inputs", x), _stack("targets", y), *(_stack_if_numbers(part) for part in beside)))


def _stack(what: str, parts: tuple[Any, ...]) -> Tensor:
    try:
        return torch.stack([torch.as_tensor(part) for part in parts])
    except (TypeError, RuntimeError, ValueError) as error:
        kinds = {
            f"{type(p).__name__} {tuple(p.shape)}" if hasattr(p, "shape") else type(p).__name__ for p in parts[:99]
        }
        raise ValueError(
            f"{what} of a Dataset, {', '.join(sorted(kinds)[:3])}: expected tensors or numbers of one shape; give it a "
            "transform such as torchvision's ToTensor"
        ) from error


def _stack_if_numbers(parts: tuple[Any, ...]) -> Any:
    return (
        _stack("parts", parts) if all(isinstance(p, Tensor | int | float) or hasattr(p, "dtype") for p in parts) else ()
    )


def _columns(rows: list[Read]) -> list[tuple[Any, ...]]:
    """All x, all y, and so on."""
    sizes = {2 + len(beside) for _, _, beside in rows}
    if len(sizes) > 1:
        raise ValueError(
            f"examples of {' and of '.join(map(str, sorted(sizes)))} parts: expected pairs (x, y) throughout"
        )
    return list(zip(*((x, y, *beside) for x, y, beside in rows), strict=True))


def _together(batches: list[Read]) -> Read:
    if not batches:
        raise ValueError("the data is empty: expected at least one example")
    x, y, *beside = _columns(batches)
    return torch.cat(x), torch.cat(y), tuple(torch.cat([torch.as_tensor(p) for p in part]) for part in beside)


def walked(loader: DataLoader, known: bool = False) -> Iterator[Read]:
    """A loader's batches, read; `known` to be some from a walk before."""
    length = length_of(loader.dataset)
    seen = 0
    for batch in loader:
        x, y, beside = _read(batch)
        if loader.batch_size is None and loader.batch_sampler is None and x.ndim == 1 and x.is_floating_point():
            raise ValueError(
                f"inputs of shape {tuple(x.shape)} from a DataLoader with batch_size=None: expected (batch, ...); "
                "give it a batch_size"
            )
        seen += len(x)
        _check_ends(seen, length)
        yield x, y, beside
    if known and not seen:
        raise ValueError("the loader gave its data once only: expected data that can be walked through again and again")


def _most(length: int) -> int:
    return max(UNKNOWN, TIMES * length)


def _check_ends(seen: int, length: int) -> None:
    """Raise ValueError for data that may have no end."""
    if seen > _most(length):
        of = "without a length" if length < 0 else f"of length {length}"
        raise ValueError(
            f"data {of} that go on after {_most(length)} examples: expected data that end; give the data set __len__, "
            "or end it (itertools.islice)"
        )


def gives_its_data_set(loader: DataLoader) -> bool:
    """Whether what a loader gives is its data set, each example once, put together as torch does."""
    sampler, whole_set = loader.sampler, length_of(loader.dataset)
    in_full = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and len(sampler) == whole_set
    )
    size = loader.batch_size
    cut = loader.drop_last and size is not None and whole_set % size
    return in_full and size is not None and not cut and loader.collate_fn is default_collate

"""Data as the evidence and the fit see it: batches of (x, y) from a pair of tensors, a Dataset or a DataLoader."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from bayesws.evidence.examples import TAKE_TWO, TakenBy, inputs_of, would_do
from bayesws.evidence.likelihood import Likelihood
from bayesws.evidence.reading import Read, gives_its_data_set, length_of, read_whole, walked
from bayesws.io.arguments import whole


class Batches:
    """Data that can be walked through batch by batch, as often as wanted, in order or shuffled.

    Args:
        data: (x, y) tensors or numpy arrays of equal length, a torch Dataset of examples (one that is iterated is read
            once, whole), or a DataLoader (its own batches are taken as they come); see `examples` for what an example
            may be, and for the type that x has when it comes to a network.
        batch_size: for tensors and datasets.
        device: where batches are moved to; None leaves them.
        net: the network that is to take x; None leaves x in its type.
        places, total: for tensors and datasets that are a part of a whole of `total` data, such as one process's share:
            where in it each datum stands, ascending, (length,). None: they are the whole.

    Attributes:
        length: how many data these are; of a DataLoader those of its data set, -1 where it does not know, until it was
            walked through and `saw` says how many it gives.
        total: how many data the whole has of which these are a part.
        beside: what stood beside (x, y) in the batch that a walk gave last.

    Raises:
        ValueError: empty data, lengths that differ, inputs with NaN or infinite values, another type of data; data
            without a length that do not end, a loader that gives its data once only.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int = 250,
        device: torch.device | None = None,
        places: Tensor | None = None,
        total: int | None = None,
        net: nn.Module | None = None,
    ) -> None:
        self._loader: DataLoader | None = None
        self._device, self.batch_size = device, whole("batch_size", batch_size)
        self._taken, self._known = TakenBy(net), False
        self.beside: tuple[Any, ...] = ()
        self._looked = 0  # how many of that batch `look_beside` has seen
        self._doubts: set[int] | None = None  # parts beside (x, y) that would do as targets in every batch so far
        if isinstance(data, DataLoader):
            self._loader = data
            self.length = length_of(data.dataset)
        else:
            x, self._y, self._beside = read_whole(data)
            self._x = self._taken(x if total is not None else inputs_of(x))  # a part may be empty
            if device is not None:
                self._x, self._y = self._x.to(device), self._y.to(device)
            self.length = len(self._x)
            self._places = torch.arange(self.length) if places is None else places
        self.total = self.length if total is None else total
        if self.total == 0:
            raise ValueError("the data is empty: expected at least one example")

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._loader is not None:
            for x, y, beside in walked(self._loader, self._known):
                x, self._looked, self.beside = self._taken(x), 0, beside
                yield (x, y) if self._device is None else (x.to(self._device), y.to(self._device))
            return
        if self.length:
            start = 0
            for x, y in zip(self._x.split(self.batch_size), self._y.split(self.batch_size), strict=True):
                self._looked, self.beside = 0, tuple(part[start : start + len(x)] for part in self._beside)
                start += len(x)
                yield x.clone(), y  # a network may write into its inputs, and these are the user's own

    def look_beside(self, likelihood: Likelihood, outputs: Tensor) -> None:
        """Look whether what stands beside (x, y) would do as targets, too; of the next data of the last batch."""
        rows = slice(self._looked, self._looked + len(outputs))
        self._looked = rows.stop
        found = would_do(likelihood, outputs, tuple(part[rows] for part in self.beside))
        self._doubts = found if self._doubts is None else self._doubts & found

    def check_beside(self) -> None:
        """Raise ValueError where something beside (x, y) would have done as targets throughout: which is y?"""
        if self._doubts:
            raise ValueError(
                f"examples of several parts, of which number 2 and number {min(self._doubts) + 1} would both do as "
                f"targets: expected pairs (x, y); {TAKE_TWO}"
            )

    def saw(self, count: int) -> None:
        """Take what a walk has counted for the length: a DataLoader may sample, or drop its last batch."""
        if self._loader is not None:
            self.length = self.total = count
            self._known = True

    def placed(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches (x, y), and the place of each of their data in the whole; those of a DataLoader as they come."""
        start = 0
        for x, y in self:
            stop = start + len(x)
            yield x, y, torch.arange(start, stop) if self._loader is not None else self._places[start:stop]
            start = stop

    def first(self, count: int = 1) -> Tensor | None:
        """The first inputs, (count, ...) or fewer, a copy; None for a part that is empty, and for a DataLoader, which
        is not to be disturbed.
        """
        return None if self._loader is not None or not self.length else self._x[:count].clone()

    def few(self, count: int) -> Tensor | None:
        """Inputs spread over all of these data, (count, ...) or fewer, a copy; None where `first` gives none."""
        return None if self._loader is not None or not self.length else spread(self._x, count)

    def example(self) -> Tensor | None:
        """Some inputs, (2, ...) or more where there are: of a DataLoader those that it gives first; None for a stream,
        which may give them only once.
        """
        if self._loader is None:
            return self.first(2)
        return None if isinstance(self._loader.dataset, IterableDataset) else next(iter(self))[0]

    def inputs(self) -> Tensor:
        """All inputs, (length, ...); those of a DataLoader as it gives them in one pass, moved as it moves them."""
        return self._x if self._loader is None else torch.cat([self._taken(x) for x, *_ in walked(self._loader)])

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All data, (x, y).

        Raises:
            ValueError: a DataLoader, which draws its order where nobody else can.
        """
        if self._loader is not None:
            raise ValueError("data from a DataLoader: expected tensors or a Dataset, whose order can be taken up again")
        return self._x, self._y

    def digest(self) -> str | None:
        """SHA-256 of all data, (x, y); None for a DataLoader, which draws its order where nobody else can."""
        return None if self._loader is not None else digest_of("data", (self._x, self._y))

    def shuffled(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in an order drawn from `generator`; a DataLoader shuffles, or not, as it was told."""
        if self._loader is not None:
            yield from self
            return
        order = torch.randperm(self.length, generator=generator).to(self._x.device)
        for index in order.split(self.batch_size):
            yield self._x[index], self._y[index]

    def part(self, index: int, of: int) -> "Batches":
        """One of `of` parts in order, of equal size up to one, each datum with its place in the whole.

        Raises:
            ValueError: no such part, or a DataLoader.
        """
        if not 0 <= index < of:
            raise ValueError(f"part {index} of {of}: expected one of 0 to {of - 1}")
        x, y = self.tensors()
        which = slice(index * len(x) // of, (index + 1) * len(x) // of)
        return Batches((x[which], y[which]), self.batch_size, self._device, self._places[which], self.total)

    def sample(self, fraction: float, generator: torch.Generator) -> "Batches":
        """A random part with `fraction` of the examples, at least one, without replacement, in the order drawn.

        It is drawn from the whole: a part keeps those that are its own, perhaps none, each with its place in the draw.

        Raises:
            ValueError: a DataLoader that need not give the same data in the next walk.
        """
        if self._loader is not None and not gives_its_data_set(self._loader):
            raise ValueError(
                "a DataLoader with a sampler, a batch_sampler, drop_last or a collate_fn of its own: expected one that "
                "gives each datum once where a subset is drawn; hand over the data themselves, such as a "
                "torch.utils.data.Subset"
            )
        x, y, beside = self._all()
        if beside and self._doubts != set():
            raise ValueError(f"a subset of examples of {2 + len(beside)} parts: expected pairs (x, y); {TAKE_TWO}")
        self.saw(len(x))
        places, total = (torch.arange(len(x)), len(x)) if self._loader is not None else (self._places, self.total)
        chosen = torch.randperm(total, generator=generator)[: max(1, round(fraction * total))]
        drawn = torch.full((total,), -1)
        drawn[chosen] = torch.arange(len(chosen))
        drawn = drawn[places]  # its place in the draw for every datum here, -1 where it was not drawn
        kept = drawn.argsort()[int((drawn < 0).sum()) :]
        index = kept.to(x.device)
        return Batches((x[index], y[index]), self.batch_size, self._device, drawn[kept], len(chosen))

    def _all(self) -> Read:
        """All data, and what stands beside them; those of a DataLoader as `as_tensors` has them."""
        if self._loader is None:
            return self._x, self._y, self._beside
        x, y, beside = read_whole(self._loader)
        return self._taken(x), y, beside

    def split(self, fraction: float, generator: torch.Generator) -> tuple["Batches", "Batches"]:
        """Two random parts, the second with `fraction` of the examples (at least one)."""
        x, y, _ = self._all()
        held = max(1, round(fraction * len(x)))
        if held >= len(x):
            raise ValueError(f"{len(x)} examples: too few to hold {fraction:.0%} of them out")
        order = torch.randperm(len(x), generator=generator).to(x.device)
        parts = (order[held:], order[:held])
        keep, out = (Batches((x[p], y[p]), self.batch_size, self._device) for p in parts)
        return keep, out


def spread(x: Tensor, count: int) -> Tensor:
    """Rows of a tensor, evenly from its first to its last, (count, ...) or all: a copy."""
    return x[torch.linspace(0, len(x) - 1, min(count, len(x))).round().long().to(x.device)]


def digest_of(settings: Any, tensors: Iterable[Tensor]) -> str:
    """SHA-256 of settings, by their text, and of tensors, by their shapes, types and numbers."""
    found = hashlib.sha256(repr(settings).encode())
    for tensor in tensors:
        found.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()

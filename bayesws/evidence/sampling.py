"""Cheaper curvature without bias: some of the data, and random combinations of the Hessian root's columns.

What is drawn for a datum depends on the curvature's seed and on the datum's place in the whole alone: a walk through a
part of the data draws what the walk through the whole draws there, in any batches and on any device.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesws.evidence.batches import Batches
from bayesws.evidence.curvature import Curvature

DROPPED = 2**20  # how many signs are dropped at once


class Signs:
    """Random signs: one stream of them, `samples` times the number of columns for every place."""

    def __init__(self, seed: int, samples: int) -> None:
        self._seed, self._samples = seed, samples
        self._generator = torch.Generator().manual_seed(seed)
        self._place = 0  # whose signs come next

    def at(self, places: Tensor, root: Tensor) -> Tensor:
        """(places, K, samples), each ±1/√samples, for ascending places and a root (places, C, K)."""
        first, stop = int(places[0]), int(places[-1]) + 1
        columns = root.shape[-1]
        if first < self._place:
            self._generator.manual_seed(self._seed)
            self._place = 0
        left = (first - self._place) * columns * self._samples
        while left > 0:
            left -= len(self._draw(min(left, DROPPED)))
        drawn = self._draw(stop - first, columns, self._samples)
        self._place = stop
        if len(drawn) > len(places):
            drawn = drawn[places - first]
        return (2 * drawn - 1).to(root) / self._samples**0.5

    def _draw(self, *size: int) -> Tensor:
        """Zeros and ones, on the CPU, whose stream does not depend on how many are drawn at once."""
        return torch.randint(0, 2, size, generator=self._generator, device="cpu")


@dataclass(frozen=True)
class Thinned:
    """Which data have rows, where they are too many for all.

    Attributes:
        weights: π_n^-½ of every datum's root by place, (N,); zero where it is not drawn.
        second: whether a datum that is drawn is in the second of two halves, each datum by itself, (N,).
    """

    weights: Tensor
    second: Tensor

    def __len__(self) -> int:
        return len(self.weights)

    def at(self, places: Tensor) -> "Thinned":
        """Of some data."""
        return Thinned(self.weights[places], self.second[places])


class Draw:
    """What is random about a batch, or a chunk of one.

    Attributes:
        places: of its data in a walk through the whole, ascending.
        total: how many data such a walk goes through; -1 where that is not known.
        kept: which of the batch's data count, where only some do.
        second: whether these are of the second of two halves.
    """

    def __init__(self, places: Tensor, total: int, signs: Signs | None, thinned: Thinned | None = None) -> None:
        self.places, self.total = places, total
        self.kept = None if thinned is None else thinned.weights.nonzero().flatten()
        self.second = None if thinned is None else thinned.second[self.kept]
        self._signs, self._weights = signs, None if thinned is None else thinned.weights

    def combine(self, root: Tensor) -> Tensor:
        """The root S (batch, C, K) to send back: S itself, or S ε / √samples with random signs ε, times the weights.

        With independent signs (batch, K, samples), the expectation of (S ε)(S ε)ᵀ / samples is S Sᵀ.
        """
        root = root if self._signs is None else root @ self._signs.at(self.places, root)
        return root if self._weights is None else root * self._weights.to(root)[:, None, None]

    def every(self, step: int, offset: int) -> slice | Tensor:
        """Which of the batch's data stand at places of offset, offset + step, ... in the whole."""
        first, last = int(self.places[0]), int(self.places[-1])
        if last - first + 1 == len(self.places):
            return slice((offset - first) % step, None, step)
        return ((self.places - offset) % step == 0).nonzero().flatten()


def sampled_batches(
    data: Batches, curvature: Curvature, chunks: int = 1, thinned: Thinned | None = None
) -> Iterator[tuple[Tensor, Tensor, Draw]]:
    """Batches (x, y) of the data that a curvature looks at, and what is random about each.

    Args:
        data: all of it, or a part that knows its place; `curvature.subset` says how much to look at.
        curvature: its seed makes every walk through the same data draw the same.
        chunks: in how many to hand out a batch; the draws do not depend on it.
        thinned: which data count, and their weights. None: all are one.

    Raises:
        ValueError: more data than those that were drawn from.
    """
    if curvature.subset < 1:
        data = data.sample(curvature.subset, torch.Generator().manual_seed(curvature.seed))
    signs = None if curvature.samples is None else Signs(curvature.seed, curvature.samples)
    for x, y, places in data.placed():
        if thinned is not None and int(places[-1]) >= len(thinned):
            raise ValueError(
                f"the loader gives more than the {len(thinned)} data that it gave before: expected as many in every "
                "walk; use a sampler of one length, or samples=None"
            )
        for a, b, at in zip(x.chunk(chunks), y.chunk(chunks), places.chunk(chunks), strict=True):
            yield a, b, Draw(at, data.total, signs, None if thinned is None else thinned.at(at))

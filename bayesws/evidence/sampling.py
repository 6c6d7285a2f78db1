"""Cheaper curvature without bias: some of the data, and random combinations of the Hessian root's columns."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bayesws.evidence.batches import Batches
from bayesws.evidence.curvature import Curvature


class Draw:
    """What is random about one part of a walk through the data.

    Attributes:
        first: how many data the walk has been through before.
        total: how many it will have been through; -1 where that is not known.
    """

    def __init__(self, first: int, total: int, signs: "_Signs | None", start: int, stop: int) -> None:
        self.first, self.total = first, total
        self._signs, self._rows = signs, slice(start, stop)

    def combine(self, root: Tensor) -> Tensor:
        """The root S (batch, C, K) to send back: S itself, or S ε / √samples with random signs ε.

        With independent signs (batch, K, samples), the expectation of (S ε)(S ε)ᵀ / samples is S Sᵀ.
        """
        return root if self._signs is None else root @ self._signs.of(root)[self._rows]


def sampled_batches(data: Batches, curvature: Curvature, parts: int = 1) -> Iterator[tuple[Tensor, Tensor, Draw]]:
    """Batches (x, y) of the data that a curvature looks at, and what is random about each.

    Args:
        data: all of it; `curvature.subset` says how much to look at.
        curvature: its seed makes every walk through the same data draw the same.
        parts: in how many parts to hand out a batch; the draws do not depend on it.
    """
    if curvature.subset < 1:
        data = data.sample(curvature.subset, torch.Generator().manual_seed(curvature.seed))
    generator: torch.Generator | None = None
    first = 0
    for x, y in data:
        signs = None
        if curvature.samples is not None:
            generator = generator or torch.Generator(x.device).manual_seed(curvature.seed)
            signs = _Signs(len(x), curvature.samples, generator)
        start = 0
        for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
            yield a, b, Draw(first + start, len(data), signs, start, start + len(a))
            start += len(a)
        first += len(x)


class _Signs:
    """Random signs for one batch, drawn for all of it when its first part asks: only then K is known."""

    def __init__(self, batch: int, samples: int, generator: torch.Generator) -> None:
        self._batch, self._samples, self._generator = batch, samples, generator
        self._drawn: Tensor | None = None

    def of(self, root: Tensor) -> Tensor:
        """(batch, K, samples), each ±1/√samples."""
        if self._drawn is None:
            size = (self._batch, root.shape[-1], self._samples)
            ones = torch.randint(0, 2, size, generator=self._generator, device=root.device)
            self._drawn = (2 * ones - 1).to(root) / self._samples**0.5
        return self._drawn

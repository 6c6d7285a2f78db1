"""What a walk through the data adds up: tensors and counts, a plain value, so that the sums of parts can be added."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from bayesws.evidence.capture import LayerIO, Layers
from bayesws.evidence.products import Products, Rows
from bayesws.layers.contract import Pathway

Key = tuple[str, ...]  # what is summed, and of which layer or pathways
SEEN: Key = ("seen",)  # the count of all data that a walk has looked at
Named = dict[str, tuple[str, Pathway]]  # by full pathway name: the layer's name and the pathway


@dataclass(frozen=True)
class Sums:
    """Sums over data by key. Those of two parts of the data add up to those of both; what only one part has stays.

    A mean is kept as its sum and its count, as means do not add up. Counts are numbers: nothing is differentiated in
    them. Rows of parts are not added: they come to stand below each other.

    Attributes:
        tensors: sums over the data, by key.
        counts: how many terms a sum has where their mean is wanted, and other numbers of data, by key.
        rows: of matrices whose rows belong to data, by key, in parts below each other.

    >>> import torch
    >>> few, more = Sums({("a",): torch.tensor(3.0)}, {("a",): 1}), Sums({("a",): torch.tensor(9.0)}, {("a",): 5})
    >>> both = few + more
    >>> float(both.tensors["a",] / both.counts["a",])
    2.0
    """

    tensors: Mapping[Key, Tensor] = field(default_factory=dict)
    counts: Mapping[Key, int] = field(default_factory=dict)
    rows: Mapping[Key, tuple[Rows, ...]] = field(default_factory=dict)

    def __add__(self, other: "Sums") -> "Sums":
        tensors, counts, rows = dict(self.tensors), dict(self.counts), dict(self.rows)
        for key, term in other.tensors.items():
            tensors[key] = tensors[key] + term if key in tensors else term
        for key, count in other.counts.items():
            counts[key] = counts.get(key, 0) + count
        for key, more in other.rows.items():
            rows[key] = rows.get(key, ()) + more
        return Sums(tensors, counts, rows)

    def __iter__(self) -> Iterator[Tensor]:
        """Every tensor of sums and rows."""
        yield from self.tensors.values()
        for parts in self.rows.values():
            for some in parts:
                yield from some if isinstance(some, Products) else [some]

    def leaves(self) -> "Sums":
        """The same values, to be differentiated in: sums alone."""
        assert not self.rows, "a second pass adds up: it has no adjoints of rows"
        return Sums({key: value.detach().requires_grad_() for key, value in self.tensors.items()}, self.counts)


class Summing:
    """Sums for some pathways that grow batch by batch; out of place where a graph is to be kept, in place where not."""

    def __init__(self, layers: Layers, pathways: Named) -> None:
        self.layers, self.pathways = layers, pathways
        self._tensors: dict[Key, Tensor] = {}
        self._counts: dict[Key, int] = {}

    @property
    def sums(self) -> Sums:
        """What was summed so far."""
        return Sums(dict(self._tensors), dict(self._counts))

    def add(self, key: Key, term: Tensor, count: int | None = None) -> None:
        """Add a term, and how many it is the sum of where they are counted."""
        total = self._tensors.get(key)
        if total is None:
            self._tensors[key] = term
        elif term.requires_grad or total.requires_grad:
            self._tensors[key] = total + term
        else:
            total.add_(term)
        if count is not None:
            self.count(key, count)

    def count(self, key: Key, number: int) -> None:
        """Add to a number of data."""
        self._counts[key] = self._counts.get(key, 0) + number

    def add_gram(self, key: Key, rows: Tensor) -> None:
        """Add rowsᵀ rows, with no matrix beside the sum where no graph is kept."""
        total = self._tensors.get(key)
        if total is None or total.requires_grad or rows.requires_grad:
            self.add(key, rows.mT @ rows)
        else:
            total.addmm_(rows.mT, rows)

    def called(self, calls: dict[str, LayerIO]) -> Named:
        """The pathways of layers that a batch has been through."""
        return {name: (layer, pathway) for name, (layer, pathway) in self.pathways.items() if layer in calls}

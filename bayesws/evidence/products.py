"""Rows of a Jacobian that are products: of a kernel at one position a row is g aᵀ, and need not be formed.

For g (R, fan_out) and a (R, fan_in) the Gram matrix of the rows vec(g_r a_rᵀ) is (G Gᵀ) ∘ (A Aᵀ).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesws.evidence.capture import CACHED, Signals, kernel_gradients
from bayesws.layers.contract import Pathway


@dataclass(frozen=True)
class Products:
    """Some rows g aᵀ of one pathway.

    Attributes:
        responses: g (rows, fan_out).
        patches: a (rows, fan_in).
        pathway: whose parameters they are the derivatives in.
    """

    responses: Tensor
    patches: Tensor
    pathway: Pathway

    def __len__(self) -> int:
        return len(self.responses)

    def __iter__(self) -> Iterator[Tensor]:
        """What is held."""
        yield from (self.responses, self.patches)

    def dense(self) -> Tensor:
        """The rows themselves, (rows, parameters)."""
        g, a = self.responses.unsqueeze(-1), self.patches.unsqueeze(-2)
        return self.pathway.pull_back(kernel_gradients(self.pathway, g, a))


Rows = Tensor | Products


def numbers_of_product(pathway: Pathway, fan_in: int, fan_out: int, positions: int) -> int | None:
    """How many numbers a row of a pathway is as a product, fan_in + fan_out; None where it is none, or no shorter."""
    entries = pathway.acts == "kernel" and pathway.picks_entries and pathway.blocks == 1 and positions == 1
    numbers = fan_in + fan_out
    return numbers if entries and pathway.numel == fan_in * fan_out > numbers else None


def rows_of(signals: Signals) -> Rows:
    """Sᵀ J of one pathway, (columns · batch, parameters), as products where these are less to hold."""
    responses, patches = signals.responses, signals.patches
    columns, _, fan_out, positions = responses.shape
    if numbers_of_product(signals.pathway, patches.shape[1], fan_out, positions) is None:
        return signals.rows().flatten(0, 1)
    a = patches.squeeze(-1)
    return Products(responses.flatten(0, 1).squeeze(-1), a if columns == 1 else a.repeat(columns, 1), signals.pathway)


def dense(rows: Rows) -> Tensor:
    """As a matrix, (rows, parameters)."""
    return rows.dense() if isinstance(rows, Products) else rows


def gram(rows: Sequence[Rows]) -> Tensor:
    """Ĵ Ĵᵀ (R, R) in float64, of rows below each other."""
    products = [some for some in rows if isinstance(some, Products)]
    if len(products) < len(rows):
        return gram_of_matrix([dense(some) for some in rows])
    responses = gram_of_matrix([some.responses for some in products])
    return responses * gram_of_matrix([some.patches for some in products])


def gram_of_matrix(rows: Sequence[Tensor]) -> Tensor:
    """The same of matrices, about as many columns at a time as rows: nothing beside it is larger than itself."""
    count, size = sum(map(len, rows)), rows[0].shape[1]
    at_once, found = max(count, CACHED // count), rows[0].new_zeros(count, count, dtype=torch.float64)
    for first in range(0, size, at_once):
        columns = torch.cat([part[:, first : first + at_once] for part in rows]).double()
        found = torch.addmm(found, columns, columns.mT)
    return found

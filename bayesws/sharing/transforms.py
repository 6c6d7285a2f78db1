"""What people call a permutation of positions, where it is a motion of a square or a shift of a line."""

import torch
from jaxtyping import Int64
from torch import Tensor

from bayesws.sharing.groups import known_group

OF_THE_SQUARE = (
    "nothing",
    "quarter turn",
    "half turn",
    "three quarter turns",
    "left-right flip",
    "flip at a diagonal",
    "up-down flip",
    "flip at the other diagonal",
)


def transform_name(permutation: Int64[Tensor, " d"], support: tuple[int, ...]) -> str | None:
    """The name of a permutation of a support; None where it is no motion that has one.

    >>> transform_name(torch.tensor([2, 1, 0, 5, 4, 3, 8, 7, 6]), (3, 3))
    'left-right flip'
    """
    if torch.equal(permutation, torch.arange(len(permutation))):
        return "nothing"
    if len(support) == 2 and support[0] == support[1] and support[0] > 1:
        found = (known_group("dihedral", *support).permutations == permutation).all(1).nonzero()
        return OF_THE_SQUARE[int(found[0])] if len(found) else None
    if len(support) == 1:
        shifts = known_group("cyclic-shifts", *support).permutations
        found = (shifts == permutation).all(1).nonzero()
        return f"shift by {int(found[0])}" if len(found) else None
    return None

"""Between layers over different groups: the same features, seen as channels on another group's elements."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.sharing.groups import Group, generated


class ChangeGroup(nn.Module):
    """Features on one group's elements as features on another's; nothing is computed, they are only put in order.

    Both groups lie in the smallest that holds them, of G elements. Features c on the elements of H are read as
    c·|H|/G channels on all G, coset by coset, and those as features on the elements of K. A motion in both H and K
    moves the features afterwards as it did before: from D4 to C4 a network stays equivariant to quarter turns.

    Args:
        before: H, of the features that come.
        after: K, on the same positions.

    Shapes: x (batch, channels, |H|, ...) to (batch, channels·|H|/|K|, |K|, ...).

    Raises:
        ValueError: groups on different positions; features on another number of elements, or that are no multiple of G.
    """

    order: Tensor

    def __init__(self, before: Group, after: Group, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.before, self.after, self.whole = before, after, generated(before, after)
        place = torch.argsort(self.whole.cosets(before).flatten())  # of every element of G among the features of H
        order = place[self.whole.cosets(after).flatten()]
        self.register_buffer("order", order.to(device), persistent=False)

    def forward(self, x: Float[Tensor, "batch channels before *space"]) -> Float[Tensor, "batch others after *space"]:
        """Put the features in order."""
        channels, elements = x.shape[1:3]
        if elements != self.before.size or (channels * elements) % self.whole.size:
            raise ValueError(
                f"features of shape {tuple(x.shape)}: expected (batch, channels, {self.before.size}, ...), channels × "
                f"{self.before.size} a multiple of {self.whole.size}"
            )
        whole = x.flatten(1, 2).unflatten(1, (-1, self.whole.size))
        return whole[:, :, self.order].flatten(1, 2).unflatten(1, (-1, self.after.size))

    def extra_repr(self) -> str:
        """The two groups."""
        return f"{self.before.name!r} to {self.after.name!r}"

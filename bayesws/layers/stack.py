"""The representation stack of a layer as a module: logits of a soft stack, or the matrices of a known group."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.sharing.doubly_stochastic import DoublyStochastic, dense_stack, power_stack, product_stack
from bayesws.sharing.groups import Group, known_group

STACKS = ("fixed", "dense", "product", "power")
_GROUP_OF_SIZE = {1: "trivial", 4: "quarter-turns", 8: "dihedral"}


class RepresentationStack(nn.Module):
    """R = (R_1 = I, R_2, ..., R_G), doubly stochastic, acting on `axis` × `support` positions of a kernel.

    Attributes:
        support, axis: the shape of the kernel's support, and the size of the group axis in front of it (1 without).

    Args:
        kind: "fixed" (a known group), "dense", "product" or "power" (see `sharing.doubly_stochastic`).
        group_size: G.
        support: the kernel's shape, such as (3, 3), or (d,) for a linear layer.
        on_features: whether the kernel also spans the G positions of an input group axis.
        group: name of a known group, or a `Group` on the support; needed where `kind` is "fixed" and G alone does not
            tell (1 is trivial, 4 quarter turns, 8 dihedral).

    Raises:
        ValueError: an unknown kind or group, or a group that does not fit G or the support.
    """

    matrices: Tensor

    def __init__(
        self,
        kind: str,
        group_size: int,
        support: tuple[int, ...],
        on_features: bool,
        group: str | Group | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kind not in STACKS:
            raise ValueError(f"stack {kind!r}: expected one of {', '.join(STACKS)}")
        if group_size < 1:
            raise ValueError(f"group_size={group_size}: expected at least 1")
        self.kind, self.group_size = kind, group_size
        positions = int(torch.tensor(support).prod())
        axis = group_size if on_features else 1
        self.support, self.axis = tuple(support), axis
        new: dict[str, Any] = {"device": device, "dtype": dtype or torch.get_default_dtype()}
        self.logits = nn.ParameterList()
        if kind == "fixed":
            known = _resolve(group, group_size, support, positions)
            matrices = (known.on_features() if on_features else known).matrices(**new)
            self.register_buffer("matrices", matrices)
            return
        if group is not None:
            raise ValueError(f"group={group!r} with stack={kind!r}: a known group needs stack='fixed'")
        rest, d = group_size - 1, axis * positions
        shapes_of: dict[str, list[tuple[int, ...]]] = {
            "dense": [(rest, d, d)],
            "product": [(rest, axis, axis), (rest, positions, positions)],
            "power": [(d, d)],
        }
        # A uniform start is a saddle where all copies are equal: unit-variance logits break the tie.
        self.logits.extend(nn.Parameter(torch.randn(*shape, **new)) for shape in shapes_of[kind])

    @property
    def is_soft(self) -> bool:
        """Whether the stack is learned, and so may be anything doubly stochastic."""
        return self.kind != "fixed"

    def converge(self) -> DoublyStochastic:
        """The stack with the residual and the number of iterations of its Sinkhorn projection."""
        if self.kind == "fixed":
            return DoublyStochastic(self.matrices, self.matrices.new_zeros(()), 0)
        if self.kind == "dense":
            return dense_stack(self.logits[0])
        if self.kind == "product":
            return product_stack(self.logits[0], self.logits[1])
        return power_stack(self.logits[0], self.group_size)

    def forward(self) -> Float[Tensor, "group d d"]:
        """The matrices R, (G, d, d)."""
        return self.converge().matrix

    def extra_repr(self) -> str:
        """Kind and size."""
        return f"{self.kind}, group_size={self.group_size}"


def _resolve(group: str | Group | None, group_size: int, support: tuple[int, ...], positions: int) -> Group:
    if group is None:
        if group_size not in _GROUP_OF_SIZE:
            raise ValueError(
                f"stack='fixed' with group_size={group_size}: several groups have that size; name one with group="
            )
        group = _GROUP_OF_SIZE[group_size]
    known = group if isinstance(group, Group) else known_group(group, *support)
    if known.size != group_size or known.degree != positions:
        raise ValueError(
            f"group {known.name!r} has {known.size} elements on {known.degree} positions: "
            f"expected group_size={group_size} elements on {positions}"
        )
    return known

"""The representation stack of a layer as a module: logits of a soft stack, or the matrices of a known group."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bayesws.layers.sharing_settings import GROUP_OF_SIZE, Sharing
from bayesws.sharing.candidates import split_product
from bayesws.sharing.doubly_stochastic import DoublyStochastic, dense_stack, power_stack, product_stack, sinkhorn
from bayesws.sharing.groups import Group, known_group

SOFTNESS = 0.02  # of a start at permutations: what is spread over the other entries of a row
RANDOM_SCALE = 0.1  # of the logits of a random start


class RepresentationStack(nn.Module):
    """R = (R_1 = I, R_2, ..., R_G), doubly stochastic, acting on `axis` × `support` positions of a kernel.

    Attributes:
        kind, group_size, constraint: stack, G and constraint of the `Sharing` that it was made from.
        support, axis: the shape of the kernel's support, and the size of the group axis in front of it (1 without).

    Args:
        sharing: which stack; its pathways do not matter here. With constraint "none" the `logits` are the entries
            themselves, and start at the doubly stochastic matrices that the others' logits, N(0, 1), project to.
        support: the kernel's shape, such as (3, 3), or (d,) for a linear layer.
        on_features: whether the kernel also spans the G positions of an input group axis.
        device, dtype: of the logits or matrices.

    Raises:
        ValueError: an unknown group, or one that does not fit G or the support.
    """

    matrices: Tensor

    def __init__(
        self,
        sharing: Sharing,
        support: tuple[int, ...],
        on_features: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.group_size, self.constraint = sharing.stack, sharing.group_size, sharing.constraint
        self.support, self.axis = tuple(support), sharing.group_size if on_features else 1
        new: dict[str, Any] = {"device": device, "dtype": dtype or torch.get_default_dtype()}
        self.logits = nn.ParameterList()
        if not self.is_soft:
            known = group_of(sharing, self.support)
            matrices = (known.on_features() if on_features else known).matrices(**new)
            self.register_buffer("matrices", matrices)
            return
        rest, axis, d = self.group_size - 1, self.axis, self.size
        positions = d // axis
        shapes_of: dict[str, list[tuple[int, ...]]] = {
            "dense": [(rest, d, d)],
            "product": [(rest, axis, axis), (rest, positions, positions)],
            "power": [(d, d)],
        }
        # A uniform start is a saddle where all copies are equal: unit-variance logits break the tie.
        for shape in shapes_of[self.kind]:
            self.logits.append(nn.Parameter(self._entries(torch.randn(*shape, **new))))

    @property
    def size(self) -> int:
        """d, the number of positions that the stack acts on."""
        return self.axis * math.prod(self.support)

    @property
    def is_soft(self) -> bool:
        """Whether the stack is learned, and so may be anything that its constraint allows."""
        return self.kind != "fixed"

    def converge(self) -> DoublyStochastic:
        """The stack with the residual and the number of iterations of its Sinkhorn projection."""
        if self.kind == "fixed":
            return DoublyStochastic(self.matrices, self.matrices.new_zeros(()), 0)
        if self.kind == "dense":
            return dense_stack(self.logits[0], self.constraint)
        if self.kind == "product":
            return product_stack(self.logits[0], self.logits[1], self.constraint)
        return power_stack(self.logits[0], self.group_size, self.constraint)

    @torch.no_grad()
    def start_at(self, permutations: Int64[Tensor, "group d"], softness: float = SOFTNESS) -> None:
        """Set the logits so that R_g is (1 - ε) P_g plus ε spread evenly over the other entries of its rows.

        The power stack takes its generator from P_2, the product stack both factors from every P_g.

        Args:
            permutations: one for every element, the identity first.
            softness: ε in (0, 1); at 0 a logit would be infinite, and nothing could be learned.

        Raises:
            ValueError: a fixed stack; permutations that do not fit, or are no powers or products where those are asked.
        """
        if not self.is_soft:
            raise ValueError("a fixed stack has no start: use stack='dense', 'product' or 'power'")
        d = self.size
        if tuple(permutations.shape) != (self.group_size, d) or (permutations[0] != torch.arange(d)).any():
            raise ValueError(
                f"permutations of shape {tuple(permutations.shape)}: expected ({self.group_size}, {d}), the identity "
                "first"
            )
        if self.kind == "dense":
            wanted = [permutations[1:]]
        elif self.kind == "power":
            wanted = [permutations[1]] if self.group_size > 1 else [permutations[0]]
            power = permutations[0]
            for permutation in permutations:
                if not torch.equal(power, permutation):
                    raise ValueError("permutations that are not the powers of the second: use stack='dense'")
                power = power[wanted[0]]
        else:
            parts = [split_product(p, self.axis) for p in permutations[1:]]
            wanted = [torch.stack([part[i] for part in parts]) for i in range(2)] if parts else []
            whole = [s[:, None] * len(p) + p for s, p in parts]
            if any(not torch.equal(w.flatten(), p) for w, p in zip(whole, permutations[1:], strict=True)):
                raise ValueError("permutations that are no products of group axis and support: use stack='dense'")
        for logits, chosen in zip(self.logits, wanted, strict=False):
            size = logits.shape[-1]
            height = math.log(max(size - 1, 1) * (1 - softness) / softness)
            logits.copy_(self._entries(height * nn.functional.one_hot(chosen, size).to(logits)))

    @torch.no_grad()
    def start_at_random(self, generator: torch.Generator | None = None, scale: float = RANDOM_SCALE) -> None:
        """Draw the logits from N(0, scale²): nearly uniform matrices, and no two of them equal (that is a saddle)."""
        for logits in self.logits:
            drawn = scale * torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
            logits.copy_(self._entries(drawn.to(logits)))

    def _entries(self, logits: Tensor) -> Tensor:
        """The parameters of matrices with these logits: they themselves, or, unconstrained, the matrices."""
        return sinkhorn(logits).matrix if self.constraint == "none" else logits

    def forward(self) -> Float[Tensor, "group d d"]:
        """The matrices R, (G, d, d)."""
        return self.converge().matrix

    def extra_repr(self) -> str:
        """Kind, size and constraint, if it is another than the usual one."""
        constraint = "" if self.constraint == "doubly" else f", constraint={self.constraint!r}"
        return f"{self.kind}, group_size={self.group_size}{constraint}"


def group_of(sharing: Sharing, support: tuple[int, ...]) -> Group:
    """The known group of a fixed stack on a kernel's support.

    Raises:
        ValueError: an unknown group, several, or one that does not fit G or the support.
    """
    group, group_size = sharing.group, sharing.group_size
    group = GROUP_OF_SIZE[group_size] if group is None else group
    if not isinstance(group, str | Group):
        raise ValueError(f"group={group!r}: expected one for a single layer; WSCNN takes one for every layer")
    known, positions = group if isinstance(group, Group) else known_group(group, *support), math.prod(support)
    if known.size != group_size or known.degree != positions:
        raise ValueError(
            f"group {known.name!r} has {known.size} elements on {known.degree} positions: "
            f"expected group_size={group_size} elements on {positions}"
        )
    return known

"""Known groups as exact permutations: the truths that a learned stack can be compared with, or fixed to.

A group element acts on the d positions of a kernel (or of a signal): (R_g w)[n] = w[permutation_g[n]].
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations as orderings
from itertools import product

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """A finite group of permutations of d positions.

    Attributes:
        name: what people call it.
        permutations: (G, d) int64; element g sends w to w[permutations[g]]. The first element is the identity.

    Raises:
        ValueError: rows that are not permutations, a first row that is not the identity, repeated elements or a set
            that is not closed under composition.
    """

    name: str
    permutations: Int64[Tensor, "group d"] = field(repr=False)

    def __post_init__(self) -> None:
        p = self.permutations
        identity = torch.arange(p.shape[-1])
        if p.ndim != 2 or not (p.sort(-1).values == identity).all():
            raise ValueError(f"group {self.name!r}: expected rows that are permutations of 0..d-1, shape (G, d)")
        if not (p[0] == identity).all():
            raise ValueError(f"group {self.name!r}: expected the identity as the first element")
        if len({tuple(row) for row in p.tolist()}) != len(p):
            raise ValueError(f"group {self.name!r}: two elements are equal; use a larger support or fewer elements")
        _ = self.table  # not closed: fails here, not later

    @property
    def size(self) -> int:
        """G, the number of elements."""
        return len(self.permutations)

    @property
    def degree(self) -> int:
        """d, the number of positions that the elements permute."""
        return self.permutations.shape[1]

    def matrices(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Float[Tensor, "group d d"]:
        """R_g as permutation matrices, (G, d, d): R_g[n, permutation_g[n]] = 1."""
        return torch.nn.functional.one_hot(self.permutations, self.degree).to(device=device, dtype=dtype)

    @cached_property
    def table(self) -> Int64[Tensor, "group group"]:
        """Composition: R_a R_b = R_table[a, b], shape (G, G)."""
        index = {tuple(row): g for g, row in enumerate(self.permutations.tolist())}
        # (R_a R_b w)[n] = (R_b w)[p_a[n]] = w[p_b[p_a[n]]]
        products = [[tuple(b[a].tolist()) for b in self.permutations] for a in self.permutations]
        if missing := next((p for row in products for p in row if p not in index), None):
            raise ValueError(f"group {self.name!r} is not closed: a product {missing} is not among its elements")
        return torch.tensor([[index[p] for p in row] for row in products])

    def on_group_axis(self) -> "Group":
        """The regular representation S_g: how element g permutes the group's own G positions.

        (S_g f)(h) = f(g⁻¹ h), so that S_a S_b = S_ab.
        """
        inverse = (self.table == 0).int().argmax(1)
        return Group(f"{self.name} on itself", self.table[inverse])

    def on_features(self) -> "Group":
        """S_g ⊗ P_g: how element g permutes the G·d positions (group axis first) of a kernel on group features."""
        axis = self.on_group_axis().permutations
        both = axis.unsqueeze(2) * self.degree + self.permutations.unsqueeze(1)
        return Group(f"{self.name} on its features", both.flatten(1))


def trivial(*shape: int) -> Group:
    """The identity alone, on d = product of `shape` positions."""
    return _spatial("trivial", shape, [lambda w: w])


def quarter_turns(size: int) -> Group:
    """C4 on a size × size grid: `torch.rot90` by 0, 1, 2, 3 quarter turns."""
    return _spatial("quarter-turns", (size, size), [_turn(k) for k in range(4)])


def half_turns(size: int) -> Group:
    """C2 on a size × size grid: nothing, and the half turn."""
    return _spatial("half-turns", (size, size), [_turn(0), _turn(2)])


def dihedral(size: int) -> Group:
    """D4 on a size × size grid: the four quarter turns, then each of them after a left-right flip."""
    turns = [_turn(k) for k in range(4)]
    return _spatial("dihedral", (size, size), turns + [_after_flip(t) for t in turns])


def flips(size: int) -> Group:
    """C2 on a size × size grid: nothing, and the left-right flip."""
    return _spatial("flips", (size, size), [_turn(0), _after_flip(_turn(0))])


def cyclic_shifts(length: int) -> Group:
    """The `length` cyclic shifts of a line: (R_g w)[n] = w[n - g]."""
    return _spatial("cyclic-shifts", (length,), [_roll((g,), (0,)) for g in range(length)])


def translations(height: int, width: int) -> Group:
    """The height · width translations of a torus."""
    moves = [_roll(shift, (0, 1)) for shift in product(range(height), range(width))]
    return _spatial("translations", (height, width), moves)


def cube_turns(size: int) -> Group:
    """The 24 rotations of a cube on size³ voxels: signed permutations of the axes with determinant one."""
    turns = []
    for order in orderings(range(3)):
        for flipped in product((False, True), repeat=3):
            matrix = torch.zeros(3, 3)
            for row, (column, flip) in enumerate(zip(order, flipped, strict=True)):
                matrix[row, column] = -1.0 if flip else 1.0
            if torch.linalg.det(matrix) > 0:
                turns.append(_signed_axes(order, flipped))
    return _spatial("cube-turns", (size,) * 3, turns)


_ON_GRIDS: dict[str, Callable[[int], Group]] = {
    "trivial": lambda size: trivial(size, size),
    "quarter-turns": quarter_turns,
    "half-turns": half_turns,
    "dihedral": dihedral,
    "flips": flips,
    "translations": lambda size: translations(size, size),
}
_ON_LINES: dict[str, Callable[[int], Group]] = {"trivial": lambda d: trivial(d), "cyclic-shifts": cyclic_shifts}
_ON_VOXELS: dict[str, Callable[[int], Group]] = {
    "trivial": lambda size: trivial(size, size, size),
    "cube-turns": cube_turns,
}


def known_group(name: str, *shape: int) -> Group:
    """The known group of that name on a support of the given shape.

    Args:
        name: trivial and cyclic-shifts on a line (one number); trivial, quarter-turns, half-turns, dihedral, flips and
            translations on a square grid (two numbers); trivial and cube-turns on a cube of voxels (three).
        shape: the support.

    Raises:
        ValueError: a name that is not known for that support, or a support that is not square.
    """
    families = {1: _ON_LINES, 2: _ON_GRIDS, 3: _ON_VOXELS}
    support = "×".join(map(str, shape))
    family = families.get(len(shape))
    if family is None or min(shape, default=0) < 1:
        raise ValueError(f"group {name!r} on a support of shape {shape}: expected one to three positive numbers")
    if name not in family:
        near = difflib.get_close_matches(name, family, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"group {name!r} on a {support} support: expected one of {', '.join(family)}{hint}")
    if len(set(shape)) != 1:
        raise ValueError(f"group {name!r} does not fit a {support} kernel: it needs a square one, such as 3×3")
    return family[name](shape[0])


def known_groups(*shape: int) -> list[Group]:
    """Every known group on a support of that shape, as far as its elements differ there."""
    families = {1: _ON_LINES, 2: _ON_GRIDS, 3: _ON_VOXELS}
    if len(shape) not in families or len(set(shape)) != 1 or shape[0] == 1:
        return []
    return [make(shape[0]) for make in families[len(shape)].values()]


Move = Callable[[Tensor], Tensor]


def _spatial(name: str, shape: tuple[int, ...], moves: list[Move]) -> Group:
    positions = torch.arange(int(torch.tensor(shape).prod())).reshape(shape)
    return Group(name, torch.stack([move(positions).flatten() for move in moves]))


def _turn(k: int) -> Move:
    return lambda w: torch.rot90(w, k, (-2, -1))


def _after_flip(move: Move) -> Move:
    return lambda w: move(w.flip(-1))


def _roll(shifts: tuple[int, ...], dims: tuple[int, ...]) -> Move:
    return lambda w: torch.roll(w, shifts, dims)


def _signed_axes(order: tuple[int, ...], flipped: tuple[bool, ...]) -> Move:
    dims = [axis for axis, flip in enumerate(flipped) if flip]
    return lambda w: w.permute(order).flip(dims)

"""Abstract groups by their tables, against groups built by hand."""

from itertools import permutations, product

import pytest
import torch

from bayesws.sharing import known_group, known_groups
from bayesws.sharing.isomorphism import abstract_name, element_orders, is_group


def table_of(elements, times):
    index = {e: i for i, e in enumerate(elements)}
    return torch.tensor([[index[times(a, b)] for b in elements] for a in elements])


def cyclic(*orders):
    """The product of cyclic groups."""
    elements = list(product(*map(range, orders)))
    return table_of(elements, lambda a, b: tuple((x + y) % n for x, y, n in zip(a, b, orders, strict=True)))


def dihedral(n):
    """(turns, flipped): f r = r⁻¹ f."""
    elements = list(product(range(n), range(2)))
    return table_of(elements, lambda a, b: ((a[0] + (-1) ** a[1] * b[0]) % n, a[1] ^ b[1]))


def symmetric(letters, even_only=False):
    def even(p):
        return sum(p[i] > p[j] for i in range(len(p)) for j in range(i, len(p))) % 2 == 0

    elements = [p for p in permutations(range(letters)) if even(p) or not even_only]
    return table_of(elements, lambda a, b: tuple(a[i] for i in b))


def quaternions():
    """±1, ±i, ±j, ±k as Pauli-like matrices, exact in complex numbers."""
    one, i = ((1, 0), (0, 1)), ((1j, 0), (0, -1j))
    j = ((0, 1), (-1, 0))

    def times(a, b):
        return tuple(tuple(sum(a[r][k] * b[k][c] for k in range(2)) for c in range(2)) for r in range(2))

    half = [one, i, j, times(i, j)]
    elements = [tuple(tuple(complex(s * v) for v in row) for row in m) for s in (1, -1) for m in half]
    return table_of(elements, times)


NAMED = [
    *[(f"cyclic of order {n}", cyclic(n)) for n in range(2, 13)],
    ("trivial", cyclic(1)),
    ("Klein four", cyclic(2, 2)),
    ("cyclic of order 6", cyclic(2, 3)),
    ("product of cyclic groups of orders 2, 4", cyclic(4, 2)),
    ("product of cyclic groups of orders 2, 2, 2", cyclic(2, 2, 2)),
    ("product of cyclic groups of orders 3, 3", cyclic(3, 3)),
    ("product of cyclic groups of orders 4, 4", cyclic(4, 4)),
    ("product of cyclic groups of orders 2, 2, 3", cyclic(6, 2)),
    *[(f"dihedral of order {2 * n}", dihedral(n)) for n in range(3, 8)],
    ("dihedral of order 6", symmetric(3)),
    ("quaternion of order 8", quaternions()),
    ("symmetric on 4 letters", symmetric(4)),
    ("a group of order 12 that is not commutative", symmetric(4, even_only=True)),
]


@pytest.mark.parametrize("name, table", NAMED, ids=[f"{name} {len(table)}" for name, table in NAMED])
def test_name_whatever_the_order_of_the_elements(name, table):
    order = torch.randperm(len(table))
    place = order.argsort()
    relabelled = place[table[order][:, order]]
    assert abstract_name(table) == abstract_name(relabelled) == name


EXPECTED = {
    "quarter-turns": "cyclic of order 4",
    "dihedral": "dihedral of order 8",
    "klein-four-axes": "Klein four",
    "klein-four-diagonals": "Klein four",
    "eighth-turns": "cyclic of order 8",
    "translations": "product of cyclic groups of orders 3, 3",
    "horizontal-translations": "cyclic of order 3",
    "antidiagonal-flips": "cyclic of order 2",
    "trivial": "trivial",
}


def test_known_groups_of_a_kernel():
    found = {group.name: abstract_name(group.table) for group in known_groups(3, 3)}
    assert EXPECTED.items() <= found.items()
    assert abstract_name(known_group("cube-turns", 2, 2, 2).table) == "symmetric on 4 letters"


def test_orders_are_those_of_matrix_powers():
    group = known_group("dihedral", 3, 3)
    eye = torch.eye(9, dtype=torch.float64)
    for matrix, order in zip(group.matrices(), element_orders(group.table), strict=True):
        powers = [torch.equal(torch.linalg.matrix_power(matrix, n), eye) for n in range(1, order + 1)]
        assert powers == [False] * (order - 1) + [True]


NO_GROUP = {
    "a product is missing": [[0, 1], [1, -1]],
    "no inverses": [[0, 1], [1, 1]],
    "no identity": [[0, 2, 1], [2, 1, 0], [1, 0, 2]],
    "a loop of five, not associative": [
        [0, 1, 2, 3, 4],
        [1, 0, 3, 4, 2],
        [2, 4, 0, 1, 3],
        [3, 2, 4, 0, 1],
        [4, 3, 1, 2, 0],
    ],
}


@pytest.mark.parametrize("rows", NO_GROUP.values(), ids=NO_GROUP)
def test_tables_that_are_no_group(rows):
    table = torch.tensor(rows)
    assert not is_group(table)
    with pytest.raises(ValueError, match=f"a table of {len(table)} elements that is not a group's"):
        abstract_name(table)

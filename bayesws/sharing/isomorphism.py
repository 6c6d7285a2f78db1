"""Which group a composition table is, as an abstract one: by the orders of its elements."""

from collections import Counter
from itertools import pairwise
from math import log, prod

import torch
from jaxtyping import Int64
from torch import Tensor


def abstract_name(table: Int64[Tensor, "group group"]) -> str:
    """The name of a finite group, such as "cyclic of order 4", from its composition table.

    Exact for orders up to 8, for commutative groups (whose element orders determine them), for dihedral groups (a
    cyclic subgroup of index two whose complement consists of elements of order two) and for the rotations of a cube;
    other groups are called by their size.

    Args:
        table: (G, G), table[a, b] the index of the product a b; the identity may stand anywhere.

    Raises:
        ValueError: a table that is not a group's.

    >>> abstract_name(torch.tensor([[0, 1], [1, 0]]))
    'cyclic of order 2'
    """
    size = len(table)
    if not is_group(table):
        raise ValueError(f"a table of {size} elements that is not a group's: expected closure and unique solutions")
    orders = element_orders(table)
    counts = Counter(orders)
    if size == 1:
        return "trivial"
    if max(orders) == size:
        return f"cyclic of order {size}"
    if torch.equal(table, table.T):
        factors = _cyclic_factors(counts)
        if factors == [2, 2]:
            return "Klein four"
        return "product of cyclic groups of orders " + ", ".join(map(str, factors))
    if _is_dihedral(table, orders):
        return f"dihedral of order {size}"
    if size == 8:
        return "quaternion of order 8"  # the one group of order 8 that is left
    if counts == {1: 1, 2: 9, 3: 8, 4: 6}:
        return "symmetric on 4 letters"  # the one group of order 24 with these orders
    return f"a group of order {size} that is not commutative"


def is_group(table: Int64[Tensor, "group group"]) -> bool:
    """Whether a table of products is a group's: an identity, every row and column a permutation, associative."""
    everyone = torch.arange(len(table))
    if not len(table) or not ((table.sort(0).values == everyone[:, None]) & (table.sort(1).values == everyone)).all():
        return False
    has_identity = ((table == everyone).all(1) & (table.T == everyone).all(1)).any()
    return bool(has_identity) and torch.equal(table[table], table[:, table])


def element_orders(table: Int64[Tensor, "group group"]) -> list[int]:
    """The smallest n > 0 with g^n = e, for every element g of a group."""
    identity = int((table == torch.arange(len(table))).all(1).int().argmax())
    orders = []
    for g in range(len(table)):
        power, order = g, 1
        while power != identity:
            power, order = int(table[power, g]), order + 1
        orders.append(order)
    return orders


def _cyclic_factors(counts: Counter[int]) -> list[int]:
    """The prime powers whose cyclic groups have as product the commutative group with these element orders.

    With f(k) the exponent of p in |{g : g^(p^k) = e}|, there are f(k) - f(k - 1) factors of order p^k or more.
    """
    size = sum(counts.values())
    factors = []
    for p in (p for p in range(2, size + 1) if size % p == 0 and all(p % q for q in range(2, p))):
        roots = [1]  # |{g : g^(p^k) = e}| for k = 0, 1, ...
        while len(roots) == 1 or roots[-1] > roots[-2]:
            power = p ** len(roots)
            roots.append(sum(count for order, count in counts.items() if power % order == 0))
        at_least = [round(log(b / a, p)) for a, b in pairwise(roots)]
        for k, (here, beyond) in enumerate(pairwise(at_least), 1):
            factors += [p**k] * (here - beyond)
    assert prod(factors) == size
    return sorted(factors)


def _is_dihedral(table: Tensor, orders: list[int]) -> bool:
    half = len(table) // 2
    for generator in (g for g, order in enumerate(orders) if order == half):
        rotations, power = {generator}, int(table[generator, generator])
        while power != generator:
            rotations.add(power)
            power = int(table[power, generator])
        if all(orders[g] == 2 for g in range(len(table)) if g not in rotations):
            return True
    return False

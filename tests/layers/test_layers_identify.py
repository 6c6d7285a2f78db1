"""Identified groups: every known one in any order and gauge, soft ones, and sets that are none."""

from itertools import permutations
from math import sqrt

import pytest
import torch
from refusals import assert_refused

import bayesws as bws
from bayesws.layers.identify import identify_group, identify_groups
from bayesws.sharing import Group, dense_stack, known_group, known_groups, mean_entropy, sinkhorn

KNOWN = [(g, shape) for shape in [(6,), (2, 2), (3, 3), (4, 4), (2, 3)] for g in known_groups(*shape)]
KNOWN += [(g, (2, 2, 2)) for g in known_groups(2, 2, 2)]
IDS = [f"{g.name} {shape}" for g, shape in KNOWN]


def reordered(stack):
    """In another order; the identity need not stay first."""
    return stack[torch.randperm(len(stack))]


def in_gauge(stack, positions):
    """The group axis relabelled at random: (Π ⊗ I) R (Π ⊗ I)ᵀ."""
    axis = stack.shape[1] // positions
    move = torch.kron(torch.eye(axis, dtype=torch.float64)[torch.randperm(axis)], torch.eye(positions).double())
    return move @ stack @ move.T


def softened(stack, share):
    """Mixed with random soft permutations; every row and column still sums to one."""
    return (1 - share) * stack + share * sinkhorn(torch.randn_like(stack)).matrix


@pytest.mark.parametrize("group, shape", KNOWN, ids=IDS)
def test_known_group_in_any_order(group, shape):
    order = torch.randperm(group.size)
    found = identify_group(group.matrices()[order], shape)
    assert (found.name, found.reason, found.support, found.axis) == (group.name, "", shape, 1)
    assert found.distance == found.closure_error == found.inverse_error == found.entropy == 0
    assert torch.equal(found.permutations, group.permutations[order])
    assert torch.equal(found.matches[0].elements, order)
    assert found.matches[0].name == group.name and all(m.distance > 0 for m in found.matches[1:])
    assert torch.equal(group.table[order][:, order], order[found.table])  # both in the group's own numbering


@pytest.mark.parametrize("group, shape", [k for k in KNOWN if 1 < k[0].size <= 9], ids=lambda v: str(v))
def test_known_group_on_features_in_any_order_and_gauge(group, shape):
    stack = in_gauge(reordered(group.on_features().matrices()), group.degree)
    found = identify_group(stack, shape, axis=group.size)
    assert (found.name, found.axis, found.distance) == (group.name, group.size, 0)
    assert torch.equal(group.table[found.matches[0].elements][:, found.matches[0].elements], table_in(found))


def table_in(found):
    """The table of the nearest permutations, in the numbering of the known group."""
    return found.matches[0].elements[found.table]


@pytest.mark.parametrize("group, shape", [k for k in KNOWN if k[1] == (3, 3) and k[0].size > 1], ids=lambda v: str(v))
@pytest.mark.parametrize("on_features", [False, True], ids=["lifting", "features"])
def test_soft_group_is_known_while_it_is_nearly_hard(group, shape, on_features):
    axis = group.size if on_features else 1
    exact = group.on_features() if on_features else group
    stack = in_gauge(reordered(exact.matrices()), group.degree)
    slightly = identify_group(softened(stack, 0.02), shape, axis)
    assert slightly.name == group.name and 0 < slightly.closure_error < 0.05 and slightly.entropy > 0
    much = identify_group(softened(stack, 0.3), shape, axis)
    assert much.name is None and f"too soft: distance {much.distance:.2f}" in much.reason
    assert f"its nearest permutations are {group.name}" in much.reason and much.matches[0].name == group.name
    lenient = identify_group(softened(stack, 0.3), shape, axis, closure=1.0, softness=1.0)
    assert lenient.name == group.name


def test_numbers_are_those_of_their_equations():
    stack = dense_stack(4 * torch.randn(3, 4, 4, dtype=torch.float64)).matrix
    found, scale = identify_group(stack, (2, 2)), sqrt(2 * 4)
    closure = max(min(float(torch.linalg.norm(a @ b - c)) for c in stack) for a in stack for b in stack) / scale
    inverse = max(min(float(torch.linalg.norm(a.T - c)) for c in stack) for a in stack) / scale
    eye = torch.eye(4, dtype=torch.float64)
    hard = [eye[list(p)] for p in permutations(range(4))]
    nearest = [min(hard, key=lambda p: float(torch.linalg.norm(r - p))) for r in stack]
    squares = sum(float((r - p).square().sum()) for r, p in zip(stack, nearest, strict=True))
    assert found.closure_error == pytest.approx(closure, rel=1e-10)
    assert found.inverse_error == pytest.approx(inverse, rel=1e-10)
    assert found.entropy == pytest.approx(float(mean_entropy(stack)), rel=1e-10)
    assert torch.equal(eye[found.permutations], torch.stack(nearest))
    assert found.distance == pytest.approx(sqrt(squares / (2 * 4 * 4)), rel=1e-10)


def test_closure_error_of_disjoint_permutations_is_one():
    shift = torch.roll(torch.eye(5, dtype=torch.float64), 1, 0)
    found = identify_group(torch.stack([shift, shift @ shift @ shift]), (5,))  # products: shifts by 2, 4, 4 and 6
    assert found.closure_error == pytest.approx(1) and found.inverse_error == pytest.approx(1)
    assert found.table.tolist() == [[-1, -1], [-1, 0]]


def nearest_by_brute_force(stack, group, axis):
    """Every order of the elements and every labelling of the axis."""
    best = float("inf")
    eye = torch.eye(axis, dtype=torch.float64)
    matrices = (group.on_features() if axis > 1 else group).matrices()
    for labels in permutations(range(axis)):
        move = torch.kron(eye[list(labels)], torch.eye(group.degree, dtype=torch.float64))
        gauged = move @ matrices @ move.T
        best = min(best, *(float((stack - gauged[list(o)]).square().sum()) for o in permutations(range(len(stack)))))
    return sqrt(best / (2 * stack.shape[0] * stack.shape[1]))


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_distances_to_known_groups_against_all_orders(size, seed):
    torch.manual_seed(seed)
    stack = dense_stack(3 * torch.randn(size - 1, 9, 9, dtype=torch.float64)).matrix
    found = identify_group(stack, (3, 3))
    assert len(found.matches) == {2: 5, 3: 2, 4: 3}[size]
    for match in found.matches:
        assert match.distance == pytest.approx(nearest_by_brute_force(stack, match.group, 1), rel=1e-10)
    assert [m.distance for m in found.matches] == sorted(m.distance for m in found.matches)


@pytest.mark.parametrize("group", [g for g in known_groups(3, 3) if 2 <= g.size <= 4], ids=lambda g: g.name)
def test_distances_on_features_against_all_orders_and_labels(group):
    stack = softened(in_gauge(reordered(group.on_features().matrices()), 9), 0.3)
    for match in identify_group(stack, (3, 3), group.size).matches:
        exact = nearest_by_brute_force(stack, match.group, group.size)
        if match.name == group.name:
            assert match.distance == pytest.approx(exact, rel=1e-10)
        else:  # alternate assignments end at a local minimum
            assert exact - 1e-10 <= match.distance <= 1.1 * exact


def conjugated(group):
    """The same abstract group on other positions."""
    order = torch.randperm(group.degree)
    return group.matrices()[:, order][:, :, order]


TURNS = known_group("quarter-turns", 3, 3)
KLEIN = known_group("klein-four-axes", 3, 3)
EYE = torch.eye(9, dtype=torch.float64)


def kron(axis, support):
    return torch.stack([torch.kron(s, p) for s, p in zip(axis, support, strict=True)])


NO_GROUP = {
    "random permutations": (lambda: EYE[torch.stack([torch.randperm(9) for _ in range(4)])], 1, "not closed", None),
    "not anchored: a coset": (lambda: TURNS.matrices() @ EYE[torch.randperm(9)], 1, "not closed", None),
    "one element wrong": (lambda: TURNS.matrices()[[0, 1, 2, 2]], 1, "elements repeated: 3 of 4", None),
    "each twice": (lambda: TURNS.matrices()[[0, 2, 0, 2]], 1, "elements repeated: 2 of 4", "cyclic of order 2"),
    "uniform": (lambda: torch.full((4, 9, 9), 1 / 9, dtype=torch.float64), 1, "too soft", "trivial"),
    "random soft": (lambda: dense_stack(torch.randn(3, 9, 9).double()).matrix, 1, "too soft", None),
    "turns of other positions": (
        lambda: conjugated(TURNS),
        1,
        "closed but not a known group",
        "cyclic of order 4",
    ),
    "axis that stays": (
        lambda: kron(torch.eye(4).double().expand(4, 4, 4), TURNS.matrices()),
        4,
        "closed but not a known",
        "cyclic of order 4",
    ),
    "support that stays": (
        lambda: kron(TURNS.on_group_axis().matrices(), EYE.expand(4, 9, 9)),
        4,
        "closed but not a known group",
        "cyclic of order 4",
    ),
    "axis of another group": (
        lambda: kron(KLEIN.on_group_axis().matrices(), TURNS.matrices()),
        4,
        "not closed",
        None,
    ),
    "right elements, axis not transitive": (
        lambda: kron(torch.block_diag(*[torch.eye(2).roll(1, 0)] * 2).double().expand(4, 4, 4), KLEIN.matrices()),
        4,
        "not closed",
        None,
    ),
    "axis of another size": (
        lambda: kron(torch.eye(2).double().expand(4, 2, 2), TURNS.matrices()),
        2,
        "closed but not a known group",
        "cyclic of order 4",
    ),
}


@pytest.mark.parametrize("name", NO_GROUP)
def test_what_is_no_group_says_why(name):
    make, axis, reason, abstract = NO_GROUP[name]
    found = identify_group(make(), (3, 3), axis)
    assert found.name is None and reason in found.reason and "\n" not in found.reason
    assert found.abstract == abstract


@pytest.mark.parametrize("scale", [0.3, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("axis", [1, 4])
def test_random_stacks_are_no_group(scale, axis):
    for _ in range(5):
        stack = dense_stack(scale * torch.randn(3, 9 * axis, 9 * axis, dtype=torch.float64)).matrix
        assert identify_group(stack, (3, 3), axis).name is None


def test_an_automorphism_on_the_axis_is_a_relabelling():
    """g -> g⁻¹ keeps a commutative group's products: every regular action is the same one, up to labels."""
    found = identify_group(kron(TURNS.on_group_axis().matrices()[[0, 3, 2, 1]], TURNS.matrices()), (3, 3), 4)
    assert found.name == "quarter-turns" and found.matches[0].labels.tolist() == [0, 3, 2, 1]


def test_support_is_guessed_where_it_is_not_told():
    assert identify_group(TURNS.matrices()).name == "quarter-turns"
    assert identify_group(known_group("cyclic-shifts", 9).matrices()).name == "cyclic-shifts"
    assert identify_group(known_group("cube-turns", 2, 2, 2).matrices()).name == "cube-turns"
    assert identify_group(TURNS.matrices(), (9,)).name is None


SOFT = [("product", 2), ("dense", 3), ("power", 2)]


@pytest.mark.parametrize("stack, size", SOFT)
def test_layer_knows_its_support_and_axis(stack, size):
    torch.manual_seed(1)
    layer = bws.layers.WSConv2d(1, 1, (2, 3), stack=stack, group_size=size)
    found = identify_group(layer)
    alone = identify_group(layer.representations().detach(), (2, 3), size)
    assert (found.support, found.axis, found.name) == ((2, 3), size, None)
    assert (found.distance, found.closure_error) == (alone.distance, alone.closure_error)
    line = bws.layers.WSLinear(6, 2, stack="fixed", group="cyclic-shifts", group_size=6)
    assert identify_group(line).name == "cyclic-shifts" and identify_group(line).axis == 1


@pytest.mark.parametrize("name, size", [("quarter-turns", 4), ("dihedral", 8), ("flips", 2), ("klein-four-axes", 4)])
def test_known_network_is_consistent_throughout(name, size):
    net = bws.models.WSCNN(hidden_channels=1, group_size=size, group=name, layers=3)
    found = identify_groups(net)
    assert list(found) == ["lift", "group_convs.0", "group_convs.1"]
    assert [f.name for f in found.values()] == [name] * 3
    assert [f.consistent for f in found.values()] == [None, True, True]
    fit = bws.fit(net, (torch.rand(4, 1, 12, 12), torch.arange(4)), epochs=1, progress=False)
    assert {n: str(f) for n, f in identify_groups(fit).items()} == {n: str(f) for n, f in found.items()}


def test_consistent_exactly_where_the_network_is_invariant():
    """All orders of a lifting layer's elements, before a group convolution that takes them in the usual one."""
    x = torch.randn(2, 1, 7, 7, dtype=torch.float64)
    seen = set()
    for order in permutations(range(1, 4)):
        shuffled = Group("turns in some order", TURNS.permutations[[0, *order]])
        net = bws.models.WSCNN(hidden_channels=3, pathways=("shared",), dtype=torch.float64, group=shuffled)
        net.group_convs[0].stack.matrices.copy_(TURNS.on_features().matrices())
        found = identify_groups(net)
        assert all(f.name == "quarter-turns" for f in found.values())
        invariant = torch.allclose(net(x), net(torch.rot90(x, 1, (-2, -1))), rtol=1e-10, atol=1e-12)
        assert found["group_convs.0"].consistent == invariant
        assert ("NOT as the layer before" in str(found["group_convs.0"])) != invariant
        seen.add(invariant)
    assert seen == {True, False}


def test_next_layer_may_follow_any_order_of_the_layer_before():
    x = torch.randn(2, 1, 7, 7, dtype=torch.float64)
    for order in permutations(range(1, 4)):
        shuffled = Group("turns in some order", TURNS.permutations[[0, *order]])
        net = bws.models.WSCNN(hidden_channels=3, pathways=("shared",), dtype=torch.float64, group=shuffled)
        assert torch.allclose(net(x), net(torch.rot90(x, 1, (-2, -1))), rtol=1e-10, atol=1e-12)
        assert identify_groups(net)["group_convs.0"].consistent


MIXED = [("dihedral", "quarter-turns"), ("quarter-turns", "dihedral"), ("dihedral", "flips", "flips")]


@pytest.mark.parametrize("groups", MIXED)
def test_between_groups_of_their_own_nothing_is_said(groups):
    net = bws.models.WSCNN(hidden_channels=8, group_size=1, layers=len(groups), group=groups)
    said = [f.consistent for f in identify_groups(net).values()]
    assert said == [None, None, True][: len(groups)]


def test_another_group_than_the_layer_before_is_not_consistent():
    net = bws.models.WSCNN(hidden_channels=1, group_size=2, group="flips")
    net.group_convs[0].stack.matrices.copy_(known_group("half-turns", 3, 3).on_features().matrices())
    assert [(f.name, f.consistent) for f in identify_groups(net).values()] == [("flips", None), ("half-turns", False)]


def test_nothing_is_said_after_a_layer_that_is_no_group():
    torch.manual_seed(0)
    net = bws.models.WSCNN(hidden_channels=1)
    net.lift = bws.layers.WSLiftConv2d(1, 1, 3, stack="dense")
    assert [(f.name, f.consistent) for f in identify_groups(net).values()] == [(None, None), ("quarter-turns", None)]
    net.lift = bws.layers.WSLiftConv2d(1, 1, 3, stack="fixed", pathways=("free",))
    assert [(n, f.consistent) for n, f in identify_groups(net).items()] == [("group_convs.0", None)]


def test_printed_for_a_person():
    assert str(identify_group(TURNS.on_features().matrices(), (3, 3), 4)).splitlines() == [
        "quarter-turns: 4 elements on 4 group × 3×3 positions",
        "  closure error 0.000, inverse error 0.000, row entropy 0.000 nats, distance to permutations 0.000",
        "  nearest permutations: cyclic of order 4",
        "    0 1 2 3",
        "    1 2 3 0",
        "    2 3 0 1",
        "    3 0 1 2",
        "  known groups by distance: quarter-turns 0.000, klein-four-diagonals 0.645, klein-four-axes 0.645",
    ]
    broken = str(identify_group(TURNS.matrices()[[0, 1, 2, 2]], (3, 3)))
    assert broken.startswith("no group (elements repeated: 3 of 4 are distinct): 4 elements on 3×3 positions")
    assert "nearest permutations: not a group (3 distinct)" in broken and "    1 2 · ·" in broken
    assert len(repr(identify_group(TURNS.matrices(), (3, 3)))) < 300


BAD = {
    "one matrix": (lambda: identify_group(torch.eye(3)), r"shape \(3, 3\): expected \(G, d, d\)"),
    "not square": (lambda: identify_group(torch.ones(2, 3, 4)), r"\(2, 3, 4\)"),
    "no elements": (lambda: identify_group(torch.ones(0, 3, 3)), r"\(0, 3, 3\)"),
    "NaN": (lambda: identify_group(torch.full((1, 2, 2), float("nan"))), "4 NaN or infinite"),
    "logits": (lambda: identify_group(torch.zeros(2, 3, 3)), "miss 1 by 1.*sinkhorn"),
    "negative": (lambda: identify_group(torch.tensor([[[2.0, -1.0], [-1.0, 2.0]]])), "from -1 .*doubly"),
    "axis": (lambda: identify_group(TURNS.matrices(), axis=2), "axis=2.*9×9.*divisor"),
    "support": (lambda: identify_group(TURNS.matrices(), (2, 2)), r"support=\(2, 2\) and axis=1.*9 positions"),
    "layer and support": (
        lambda: identify_group(bws.layers.WSLinear(4, 1), (4,)),
        "expected the layer alone",
    ),
    "nothing shared": (
        lambda: identify_group(bws.layers.WSLinear(4, 1, stack="fixed", group="cyclic-shifts", pathways=("free",))),
        "shares nothing",
    ),
    "threshold": (lambda: identify_group(TURNS.matrices(), closure=2.0), "closure=2.0"),
    "a network": (lambda: identify_group(bws.models.WSCNN()), "WSCNN.*identify_groups"),
    "no network": (lambda: identify_groups("WSCNN"), "a str: expected a network"),
    "no sharing layer": (lambda: identify_groups(torch.nn.Linear(2, 2)), "Linear has no weight-sharing layer"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, without_type_checks):
    assert_refused(*BAD[name])

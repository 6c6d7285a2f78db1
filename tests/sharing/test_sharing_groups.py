"""Known groups against the matrices, turns and flips that they stand for."""

import pytest
import torch

from bayesws.sharing import Group, generated, known_group, known_groups

# name, support, size
KNOWN = [
    ("trivial", (5,), 1),
    ("trivial", (3, 3), 1),
    ("trivial", (2, 2, 2), 1),
    ("cyclic-shifts", (1,), 1),
    ("cyclic-shifts", (6,), 6),
    ("quarter-turns", (2, 2), 4),
    ("quarter-turns", (3, 3), 4),
    ("quarter-turns", (5, 5), 4),
    ("half-turns", (3, 3), 2),
    ("dihedral", (2, 2), 8),
    ("dihedral", (3, 3), 8),
    ("flips", (3, 3), 2),
    ("translations", (3, 3), 9),
    ("cube-turns", (2, 2, 2), 24),
    ("cube-turns", (3, 3, 3), 24),
    ("flips", (5,), 2),
    ("cyclic-shifts-by-2", (6,), 3),
    ("flips", (3, 4), 2),
    ("half-turns", (3, 4), 2),
    ("translations", (2, 3), 6),
    ("up-down-flips", (3, 3), 2),
    ("diagonal-flips", (3, 3), 2),
    ("antidiagonal-flips", (3, 3), 2),
    ("klein-four-axes", (3, 3), 4),
    ("klein-four-diagonals", (3, 3), 4),
    ("eighth-turns", (3, 3), 8),
    ("vertical-translations", (3, 3), 3),
    ("horizontal-translations", (3, 3), 3),
    ("translations-by-2", (4, 4), 4),
    ("quarter-turns-about-axis-0", (3, 3, 3), 4),
    ("quarter-turns-about-axis-2", (2, 2, 2), 4),
    ("half-turns-about-axis-1", (3, 3, 3), 2),
    ("half-turns-about-all-axes", (3, 3, 3), 4),
]
IDS = [f"{name} {shape}" for name, shape, _ in KNOWN]
every_group = pytest.mark.parametrize("name, shape, size", KNOWN, ids=IDS)


@every_group
def test_size_degree_and_identity(name, shape, size):
    group = known_group(name, *shape)
    assert (group.size, group.name) == (size, name)
    assert group.degree == torch.tensor(shape).prod()
    assert torch.equal(group.permutations[0], torch.arange(group.degree))
    assert len(set(map(tuple, group.permutations.tolist()))) == size


@every_group
def test_matrices_act_as_the_permutations(name, shape, size):
    group = known_group(name, *shape)
    w = torch.randn(group.degree, dtype=torch.float64)
    for matrix, permutation in zip(group.matrices(), group.permutations, strict=True):
        assert torch.equal(matrix @ w, w[permutation])
        assert torch.equal(matrix @ matrix.T, torch.eye(group.degree, dtype=torch.float64))


@every_group
def test_table_is_that_of_matrix_products(name, shape, size):
    group = known_group(name, *shape)
    r = group.matrices(torch.float32)  # zeros and ones: products are exact
    products = torch.einsum("anm,bmk->abnk", r, r)
    assert torch.equal(products, r[group.table])


@every_group
def test_table_is_a_group(name, shape, size):
    table = known_group(name, *shape).table
    everyone = torch.arange(size)
    assert torch.equal(table[0], everyone) and torch.equal(table[:, 0], everyone)
    # every row and column a permutation: closure, left and right inverses
    assert (table.sort(0).values == everyone[:, None]).all() and (table.sort(1).values == everyone).all()
    # (a b) c = a (b c)
    assert torch.equal(table[table], table[:, table])


@every_group
def test_regular_representation(name, shape, size):
    group = known_group(name, *shape)
    axis, table = group.on_group_axis(), group.table
    s = axis.matrices()
    assert axis.degree == axis.size == size and torch.equal(axis.table, table)
    f = torch.randn(size, dtype=torch.float64)
    for g in range(size):
        moved = s[g] @ f
        assert all(moved[table[g, h]] == f[h] for h in range(size))  # (S_g f)(g h) = f(h)


@pytest.mark.parametrize("name, shape, size", [k for k in KNOWN if k[2] <= 9])
def test_features_are_the_kronecker_product(name, shape, size):
    group = known_group(name, *shape)
    features, s, p = group.on_features().matrices(), group.on_group_axis().matrices(), group.matrices()
    for g in range(size):
        assert torch.equal(features[g], torch.kron(s[g], p[g]))
    assert torch.equal(group.on_features().table, group.table)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_turns_and_flips_are_torch_s(size):
    w = torch.randn(size, size, dtype=torch.float64)
    expected = {
        "quarter-turns": [torch.rot90(w, k) for k in range(4)],
        "half-turns": [w, torch.rot90(w, 2)],
        "flips": [w, w.fliplr()],
        "dihedral": [torch.rot90(v, k) for v in (w, w.fliplr()) for k in range(4)],
        "translations": [torch.roll(w, (a, b), (0, 1)) for a in range(size) for b in range(size)],
        "up-down-flips": [w, w.flipud()],
        "diagonal-flips": [w, w.T],
        "antidiagonal-flips": [w, torch.rot90(w, 2).T],
        "klein-four-axes": [w, torch.rot90(w, 2), w.fliplr(), w.flipud()],
        "klein-four-diagonals": [w, torch.rot90(w, 2), w.T, torch.rot90(w, 2).T],
        "vertical-translations": [torch.roll(w, a, 0) for a in range(size)],
        "horizontal-translations": [torch.roll(w, a, 1) for a in range(size)],
    }
    for name, images in expected.items():
        r = known_group(name, size, size).matrices()
        for matrix, image in zip(r, images, strict=True):
            assert torch.equal((matrix @ w.flatten()).reshape(size, size), image), name


def test_eighth_turns_are_roots_of_the_quarter_turns():
    eighths, quarters = known_group("eighth-turns", 3, 3), known_group("quarter-turns", 3, 3)
    assert torch.equal(eighths.permutations[::2], quarters.permutations)
    assert torch.equal(eighths.table[1], torch.arange(8).roll(-1))  # e_1 e_k = e_(k + 1)


def test_shifts_by_more_than_one_are_every_second_or_third():
    shifts = known_group("cyclic-shifts", 6)
    for step in (2, 3):
        assert torch.equal(known_group(f"cyclic-shifts-by-{step}", 6).permutations, shifts.permutations[::step])


@pytest.mark.parametrize("axis, plane", [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
def test_turns_about_an_axis_are_torch_s_and_turns_of_the_cube(axis, plane):
    w = torch.randn(3, 3, 3, dtype=torch.float64)
    cube = {tuple(p) for p in known_group("cube-turns", 3, 3, 3).permutations.tolist()}
    for name, steps in (("quarter", range(4)), ("half", (0, 2))):
        group = known_group(f"{name}-turns-about-axis-{axis}", 3, 3, 3)
        assert {tuple(p) for p in group.permutations.tolist()} <= cube
        for matrix, k in zip(group.matrices(), steps, strict=True):
            assert torch.equal((matrix @ w.flatten()).reshape(3, 3, 3), torch.rot90(w, k, plane))


@pytest.mark.parametrize(
    "shape", [(1,), (2,), (6,), (1, 1), (2, 2), (3, 3), (1, 3), (4, 2), (6, 6), (2, 2, 2), (2, 3, 2)]
)
def test_known_groups_are_distinct_sets_that_their_names_give(shape):
    groups = known_groups(*shape)
    assert len({frozenset(map(tuple, g.permutations.tolist())) for g in groups}) == len(groups)
    for group in groups:
        assert torch.equal(group.permutations, known_group(group.name, *shape).permutations)
    assert groups[0].name == "trivial"


def test_known_groups_of_one_set_go_by_the_first_name():
    names = [g.name for g in known_groups(2, 2)]
    assert "flips" in names and "horizontal-translations" not in names  # which is the same on two columns
    with pytest.raises(ValueError, match="expected one to three positive numbers"):
        known_groups(3, 0)


def test_cyclic_shifts_are_roll():
    w = torch.arange(5.0, dtype=torch.float64)
    for g, matrix in enumerate(known_group("cyclic-shifts", 5).matrices()):
        assert torch.equal(matrix @ w, torch.roll(w, g))


def test_cube_turns_hold_quarter_turns_about_every_axis_and_no_reflection():
    w = torch.randn(3, 3, 3, dtype=torch.float64)
    images = [(m @ w.flatten()).reshape(3, 3, 3) for m in known_group("cube-turns", 3, 3, 3).matrices()]
    for planes in [(0, 1), (0, 2), (1, 2)]:
        for k in range(4):
            assert any(torch.equal(image, torch.rot90(w, k, planes)) for image in images)
    for axis in range(3):
        assert not any(torch.equal(image, w.flip(axis)) for image in images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matrices_keep_type_and_device(dtype, device):
    r = known_group("flips", 3, 3).matrices(dtype, device)
    assert r.dtype == dtype and r.device.type == device


BAD_NAMES = [
    (("quarter-turn", 3, 3), "did you mean 'quarter-turns'"),
    (("dihedrall", 3, 3), "did you mean 'dihedral'"),
    (("zebra", 3, 3), "expected one of trivial, quarter-turns"),
    (("quarter-turns", 9), "expected one of trivial, cyclic-shifts"),
    (("cyclic-shifts", 3, 3), "3×3 support: expected one of"),
    (("quarter-turns", 3, 4), "does not fit a 3×4 kernel.*square"),
    (("cube-turns", 3, 3, 2), "does not fit a 3×3×2 kernel"),
    (("trivial", 3, 0), "expected one to three positive numbers"),
    (("trivial",), "expected one to three positive numbers"),
    (("trivial", 2, 2, 2, 2), "expected one to three positive numbers"),
    (("quarter-turns", 1, 1), "two elements are equal; use a larger support"),
]


@pytest.mark.parametrize("arguments, message", BAD_NAMES, ids=[str(a) for a, _ in BAD_NAMES])
def test_bad_names_and_supports(arguments, message):
    with pytest.raises(ValueError, match=message):
        known_group(*arguments)


BAD_SETS = [
    ([[0, 1, 2], [0, 0, 2]], "rows that are permutations"),
    ([[1, 0, 2], [0, 1, 2]], "identity as the first element"),
    ([[0, 1], [0, 1]], "two elements are equal"),
    ([[0, 1, 2], [1, 2, 0]], r"not closed: a product \(2, 0, 1\)"),
    ([[0, 1, 2], [1, 0, 2], [0, 2, 1]], "not closed"),
    ([[[0, 1]]], "rows that are permutations"),
    ([0, 1, 2], "rows that are permutations"),
]


@pytest.mark.parametrize("rows, message", BAD_SETS)
def test_sets_that_are_no_group(rows, message, without_type_checks):
    with pytest.raises(ValueError, match=f"group 'mine'.*{message}"):
        Group("mine", torch.tensor(rows))


def test_groups_are_equal_by_name_and_permutations():
    flips = known_group("flips", 3, 3)
    assert flips == known_group("flips", 3, 3) and len({flips, known_group("flips", 3, 3)}) == 1
    assert flips != known_group("half-turns", 3, 3) != Group("flips", known_group("half-turns", 3, 3).permutations)
    assert flips != known_group("flips", 5, 5) and flips != "flips"


SUBGROUPS = [
    ("trivial", "dihedral"),
    ("flips", "dihedral"),
    ("diagonal-flips", "dihedral"),
    ("quarter-turns", "dihedral"),
    ("dihedral", "dihedral"),
    ("half-turns", "quarter-turns"),
    ("quarter-turns", "eighth-turns"),
]


@pytest.mark.parametrize("small, large", SUBGROUPS)
def test_elements_move_every_coset_as_their_own_group(small, large):
    """S_h of the large group, seen on a coset in its order, is S_h of the small one."""
    subgroup, group = known_group(small, 3, 3), known_group(large, 3, 3)
    cosets = group.cosets(subgroup)
    assert cosets.flatten().sort().values.equal(torch.arange(group.size))
    f = torch.randn(group.size, dtype=torch.float64)
    rows = group.permutations.tolist()
    for h, row in enumerate(subgroup.permutations.tolist()):
        moved = group.on_group_axis().matrices()[rows.index(row)] @ f
        for coset in cosets:
            assert torch.equal(moved[coset], subgroup.on_group_axis().matrices()[h] @ f[coset])


GENERATED = [
    (("flips", "quarter-turns"), "dihedral"),
    (("quarter-turns", "dihedral"), "dihedral"),
    (("flips", "up-down-flips"), "klein-four-axes"),
    (("diagonal-flips", "half-turns"), "klein-four-diagonals"),
    (("vertical-translations", "horizontal-translations"), "translations"),
    (("trivial", "flips", "diagonal-flips"), "dihedral"),
]


@pytest.mark.parametrize("parts, whole", GENERATED)
def test_generated_group_is_the_smallest_that_holds_all(parts, whole):
    found, expected = generated(*(known_group(name, 3, 3) for name in parts)), known_group(whole, 3, 3)
    assert set(map(tuple, found.permutations.tolist())) == set(map(tuple, expected.permutations.tolist()))
    assert (found.name == whole) == (whole in parts)


def test_what_does_not_fit_is_said_in_one_line():
    with pytest.raises(ValueError, match="'flips' is no subgroup of 'quarter-turns'"):
        known_group("quarter-turns", 3, 3).cosets(known_group("flips", 3, 3))
    with pytest.raises(ValueError, match="9 and 25 positions"):
        generated(known_group("flips", 3, 3), known_group("flips", 5, 5))

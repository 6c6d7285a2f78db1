from itertools import combinations, permutations
from math import factorial

import pytest
import torch
from scipy.optimize import quadratic_assignment

from bayesws.sharing.automorphisms import closed_sets, misfit, near_automorphisms, p_value, symmetrised
from bayesws.sharing.candidates import candidates_of, split_product
from bayesws.sharing.groups import known_group
from bayesws.sharing.transforms import transform_name


def all_permutations(d):
    return torch.tensor(list(permutations(range(d))))


def symmetric_moments(d, seed, order=2, group=None, asymmetry=0.0):
    generator = torch.Generator().manual_seed(seed)
    roots = torch.randn(order, d, d, generator=generator, dtype=torch.float64)
    moments = roots @ roots.mT
    if group is None:
        return moments
    return symmetrised(moments, group) + asymmetry * moments


def brute_force_misfits(moments):
    """‖P M Pᵀ - M‖ / ‖M‖ by dense permutation matrices, root mean square over the moments, of every permutation."""
    found = []
    for p in all_permutations(moments.shape[-1]):
        dense = torch.eye(len(p), dtype=moments.dtype)[p]
        apart = dense @ moments @ dense.T - moments
        found.append((apart.flatten(1).norm(dim=1) / moments.flatten(1).norm(dim=1)).square().mean().sqrt())
    return torch.stack(found)


@pytest.mark.parametrize("seed", range(3))
def test_search_is_exhaustive_where_the_width_allows(seed):
    moments = symmetric_moments(6, seed, group=known_group("cyclic-shifts", 6).permutations, asymmetry=0.05)
    found = near_automorphisms(moments, keep=40, width=factorial(6))
    truth = brute_force_misfits(moments).sort().values
    torch.testing.assert_close(found.misfits, truth[:40], rtol=1e-10, atol=1e-12)
    # what is below the bound is there; the 41st misfit is the first that was left out
    assert found.complete_below == pytest.approx(float(truth[40]), rel=1e-10)


@pytest.mark.parametrize("width", [7, 50, 400])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_below_the_bound_is_missing(seed, width):
    moments = symmetric_moments(7, seed, asymmetry=0.1, group=known_group("cyclic-shifts", 7).permutations)
    found = near_automorphisms(moments, keep=30, width=width)
    truth = brute_force_misfits(moments)
    below = all_permutations(7)[truth < found.complete_below * (1 - 1e-9)]
    listed = set(map(tuple, found.permutations.tolist()))
    assert len(below) >= 1
    assert all(tuple(p) in listed for p in below.tolist())


def test_misfit_is_that_of_dense_permutation_matrices():
    moments = symmetric_moments(4, 0)
    by_order = misfit(moments, all_permutations(4))
    torch.testing.assert_close(by_order.square().mean(1).sqrt(), brute_force_misfits(moments), rtol=1e-12, atol=1e-12)


def test_graph_matching_finds_nothing_nearer():
    """scipy's 2-opt from 30 random starts: no permutation but those listed has a misfit below the bound."""
    group = known_group("quarter-turns", 4, 4).permutations
    moments = symmetric_moments(16, 0, order=1, group=group, asymmetry=0.01)
    found = near_automorphisms(moments, keep=20, width=2000)
    assert set(map(tuple, group.tolist())) <= set(map(tuple, found.permutations.tolist()))
    listed = set(map(tuple, found.permutations.tolist()))
    m = moments[0].numpy()
    for seed in range(30):
        match = quadratic_assignment(m, m, method="2opt", options={"maximize": True, "rng": seed})
        p = torch.as_tensor(match.col_ind)
        assert tuple(p.tolist()) in listed or float(misfit(moments, p[None])) >= found.complete_below


SUBGROUPS = [
    ("dihedral", (3, 3), 10),
    ("quarter-turns", (3, 3), 3),
    ("cyclic-shifts", (6,), 4),
    ("cube-turns", (2,) * 3, 30),
]


@pytest.mark.parametrize(("name", "shape", "count"), SUBGROUPS)
def test_every_subgroup_is_found(name, shape, count):
    group = known_group(name, *shape)
    found = closed_sets(group.permutations)
    assert len(found) == count  # D4 has ten subgroups, C4 three, C6 four, S4 (the turns of a cube) thirty
    for indices in found:
        assert set(group.table[list(indices)][:, list(indices)].flatten().tolist()) == set(indices)


def test_subsets_that_are_not_closed_are_not_groups():
    rows = known_group("dihedral", 3, 3).permutations
    for chosen in combinations(range(8), 3):
        found = closed_sets(rows[list(chosen)])
        assert all(len(f) <= 2 for f in found)  # no subgroup of D4 has three elements
        assert bool(found) == (0 in chosen)


def planted(seed, count, group, skew=0.0, d=9):
    """Per-datum moments of x moved by a random element of a group; `skew` of them are not moved."""
    generator = torch.Generator().manual_seed(seed)
    loadings = torch.linspace(0.1, 2.5, d, dtype=torch.float64)
    mixing = loadings[torch.randperm(d, generator=torch.Generator().manual_seed(5))][None]
    x = torch.randn(count, 1, generator=generator, dtype=torch.float64).relu() @ mixing
    x = x + 0.3 * torch.randn(count, d, generator=generator, dtype=torch.float64)
    moved = torch.rand(count, generator=generator) >= skew
    element = torch.randint(len(group), (count,), generator=generator) * moved
    return x.gather(1, group[element])


def blocks_of(x, blocks=100):
    parts = [torch.stack([p.T @ p, (p * p.mean(1, keepdim=True)).T @ p]) / len(p) for p in x.tensor_split(blocks)]
    return torch.stack(parts)


def test_p_values_of_symmetric_data_are_uniform():
    """400 data sets: the share below q is q within four standard errors, and 0.04 for Satterthwaite's chi-squared."""
    group = known_group("quarter-turns", 3, 3).permutations
    p = torch.tensor([p_value(blocks_of(planted(seed, 1000, group)), group) for seed in range(400)])
    for q in (0.05, 0.2, 0.5, 0.8):
        assert abs(float((p < q).double().mean()) - q) < 4 * (q * (1 - q) / 400) ** 0.5 + 0.04


@pytest.mark.parametrize(("skew", "rejected"), [(0.0, False), (0.3, True), (1.0, True)])
def test_p_value_tells_symmetric_data(skew, rejected):
    group = known_group("quarter-turns", 3, 3).permutations
    p = p_value(blocks_of(planted(0, 20_000, group, skew)), group)
    assert (p < 1e-4) == rejected


def test_a_known_subgroup_takes_its_noise_out_of_the_test():
    turns, all_motions = (known_group(n, 3, 3).permutations for n in ("quarter-turns", "dihedral"))
    blocks = blocks_of(planted(3, 3000, turns))
    assert p_value(blocks, all_motions, turns) < p_value(blocks, all_motions)


PLANTED = ["trivial", "quarter-turns", "half-turns", "flips", "dihedral"]


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("seed", range(5))
def test_planted_group_is_named(name, seed):
    group = known_group(name, 3, 3)
    found = candidates_of(blocks_of(planted(seed, 10_000, group.permutations)), (3, 3))
    assert found.group.name == name
    assert found.group.fits
    start = found.of_size(group.size)
    assert set(map(tuple, start.permutations.tolist())) == set(map(tuple, group.permutations.tolist()))
    assert start.permutations[0].tolist() == list(range(9))


@pytest.mark.parametrize("name", ["quarter-turns", "dihedral"])
def test_planted_group_on_features_is_named(name):
    """Group axis in any order: the products S ⊗ P that were planted, and no others, fit."""
    truth = known_group(name, 3, 3).on_features().permutations
    order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(1))
    relabelled = (order[:, None] * 9 + torch.arange(9)).flatten()
    truth = relabelled.argsort()[truth[:, relabelled]]
    x = planted(0, 20_000, truth, d=truth.shape[1])
    found = candidates_of(blocks_of(x), (3, 3), axis=len(truth))
    assert set(map(tuple, found.group.permutations.tolist())) == set(map(tuple, truth.tolist()))
    assert found.group.name == name
    assert float(found.misfits[len(truth)]) > 3 * found.group.misfit


def test_the_turns_of_a_cube_are_found_among_all_permutations_of_its_voxels():
    """27! permutations; voxels of eight common patterns with noise of one variance."""
    turns = known_group("cube-turns", 3, 3, 3)
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(8, 27, generator=generator).double() * torch.linspace(0.2, 1.5, 27).double()
    x = torch.randn(60_000, 8, generator=generator).double().relu() @ patterns
    x = x + 0.3 * torch.randn(60_000, 27, generator=generator).double()
    moved = x.gather(1, turns.permutations[torch.randint(24, (60_000,), generator=generator)])
    found = candidates_of(blocks_of(moved), (3, 3, 3))
    assert found.group.name == "cube-turns"
    assert {tuple(p) for p in found.group.permutations.tolist()} == {tuple(p) for p in turns.permutations.tolist()}


def test_products_below_the_bound_are_all_there():
    """Against all 3! · 4! products of an axis of 3 and a support of 4."""
    moments = symmetric_moments(12, 0)
    blocks = moments + 0.01 * symmetric_moments(12, 1, order=100)[:, None]
    found = candidates_of(blocks, (2, 2), axis=3, keep=20)
    axis, support = all_permutations(3), all_permutations(4)
    products = (axis[:, None, :, None] * 4 + support[None, :, None, :]).flatten(2).flatten(0, 1)
    misfits = misfit(blocks.mean(0), products).square().mean(1).sqrt()
    listed = set(map(tuple, found.permutations.tolist()))
    for p, m in zip(products.tolist(), misfits.tolist(), strict=True):
        assert tuple(p) in listed or m >= found.complete_below * (1 - 1e-9)
        s, q = split_product(torch.tensor(p), 3)
        assert (s[:, None] * 4 + q).flatten().tolist() == p


def test_text_shows_the_gap_and_the_group():
    turns = known_group("quarter-turns", 3, 3)
    text = str(candidates_of(blocks_of(planted(0, 10_000, turns.permutations)), (3, 3), examples=10_000))
    assert "quarter turn" in text and "* quarter-turns, 4 elements" in text and "10000 data" in text
    assert sum(line.endswith(" *") for line in text.splitlines()) == 4


MOTIONS = [
    ((3, 3), lambda w: w, "nothing"),
    ((3, 3), lambda w: w.rot90(1, (0, 1)), "quarter turn"),
    ((2, 2), lambda w: w.rot90(2, (0, 1)), "half turn"),
    ((3, 3), lambda w: w.rot90(3, (0, 1)), "three quarter turns"),
    ((5, 5), lambda w: w.flip(1), "left-right flip"),
    ((3, 3), lambda w: w.flip(0), "up-down flip"),
    ((6,), lambda w: w.roll(2), "shift by 2"),
]


@pytest.mark.parametrize(("shape", "move", "name"), MOTIONS)
def test_motions_have_names(shape, move, name):
    positions = torch.arange(int(torch.tensor(shape).prod())).reshape(shape)
    assert transform_name(move(positions).flatten(), shape) == name


def test_other_permutations_have_none():
    assert transform_name(torch.tensor([1, 0, 2, 3, 4, 5, 6, 7, 8]), (3, 3)) is None
    assert transform_name(torch.tensor([1, 0, 2]), (3,)) is None

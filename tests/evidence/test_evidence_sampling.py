"""Sampled columns and subsets of the data: unbiased sums, bounds, draws that can be repeated."""

import networks
import pytest
import torch

from bayesws import Categorical, Curvature, log_evidence
from bayesws.evidence.batches import Batches
from bayesws.evidence.gathering import DATA_FIT, gather
from bayesws.evidence.objective import assemble, laplace_pass
from bayesws.evidence.sampling import sampled_batches
from bayesws.layers.contract import starting_log_precisions

N, SEEDS = 8, 120


def problem():
    net = networks.Small("fixed", networks.BOTH, 2, 3)
    return net, networks.images(N), networks.targets("classification", N, 3)


def sums(net, x, y, curvature):
    with torch.no_grad():
        gathered = gather(net, Batches((x, y), 5), Categorical(), curvature, check=False)
    return torch.cat([value.flatten() for key, value in gathered.sums.tensors.items() if key != DATA_FIT])


def evidences(net, x, y, curvatures):
    """`log_evidence`, without the check of the network that each would begin with."""
    with torch.no_grad():
        passes = [laplace_pass(net, Batches((x, y)), Categorical(), c, check=False) for c in curvatures]
        return torch.stack([assemble(net, done, starting_log_precisions(net)).total for done in passes])


@pytest.mark.parametrize("kind, samples", [("full", 1), ("kron", 1), ("kron", 3), ("diag", 1)])
def test_sampled_sums_are_unbiased(kind, samples):
    """The mean over 120 seeds within 4.5 standard errors of the exact sums, in each of some hundred entries."""
    net, x, y = problem()
    exact = sums(net, x, y, Curvature(kind))
    drawn = torch.stack([sums(net, x, y, Curvature(kind, samples=samples, seed=s)) for s in range(SEEDS)])
    error = drawn.std(0) / SEEDS**0.5
    assert error.max() > 0
    off = (drawn.mean(0) - exact).abs()
    assert bool((off <= 4.5 * error + 1e-12 * exact.abs().max()).all()), (off / (error + 1e-30)).max()


def test_thinned_inputs_are_unbiased(monkeypatch):
    """Over its four offsets, every fourth datum is every datum."""
    monkeypatch.setattr("bayesws.evidence.kronecker.PLENTY", 0)
    net, x, y = problem()
    with torch.no_grad():
        exact, thinned = (
            [
                {key: value / sums.counts[key] for key, value in sums.tensors.items() if key[0] == "inputs"}
                for sums in (gather(net, Batches((x, y), 3), Categorical(), c, check=False).sums for c in curvatures)
            ]
            for curvatures in ([Curvature()], [Curvature(samples=1, seed=s) for s in range(4)])
        )
    for key, value in exact[0].items():
        mean = sum(found[key] for found in thinned) / 4
        torch.testing.assert_close(mean, value, rtol=1e-12, atol=1e-14)
        assert not torch.allclose(thinned[0][key], value)


@pytest.mark.parametrize("kind", ["full", "kron", "diag"])
def test_sampled_evidence_overestimates_and_converges(kind):
    """log det is concave: E[evidence] lies above the exact one, and the gap shrinks with the number of samples."""
    net, x, y = problem()
    exact = float(log_evidence(net, (x, y), curvature=kind))
    gaps = []
    for samples in (1, 16):
        drawn = evidences(net, x, y, [Curvature(kind, samples=samples, seed=s) for s in range(60)])
        gaps.append(float(drawn.mean()) - exact)
        error = float(drawn.std()) / 60**0.5
    assert gaps[0] > gaps[1] > -4 * error


@pytest.mark.parametrize("kind, draws", [("full", 200), ("layer", 60), ("pathway", 60), ("diag", 60)])
def test_subsets_of_exact_blocks_are_lower_bounds_in_expectation(kind, draws):
    """N/m (data fit - Occam of the subset) over all halves: at most the evidence with all the data."""
    net, x, y = problem()
    exact = float(log_evidence(net, (x, y), curvature=kind))
    drawn = evidences(net, x, y, [Curvature(kind, subset=0.5, seed=s) for s in range(draws)])
    assert float(drawn.mean()) + 3 * float(drawn.std()) / draws**0.5 < exact


def test_subset_of_all_is_all():
    net, x, y = problem()
    whole = log_evidence(net, (x, y), curvature="kron")
    found = log_evidence(net, (x, y), curvature=Curvature("kron", subset=1.0, seed=5))
    assert float(found) == float(whole) and found.examples == N


def test_draws_repeat_and_do_not_depend_on_parts():
    x, y, root = torch.arange(7.0)[:, None], torch.arange(7), torch.randn(7, 3, 3)
    curvature = Curvature(samples=2, subset=0.9, seed=4)

    def walk(parts):
        found = [(a, draw.combine(root[: len(a)] * 0 + 1)) for a, _, draw in sampled_batches(data, curvature, parts)]
        return [torch.cat(column) for column in zip(*found, strict=True)]

    data = Batches((x, y), batch_size=4)
    whole, parts, again = walk(1), walk(3), walk(1)
    for a, b, c in zip(whole, parts, again, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    other = Curvature(samples=2, subset=0.9, seed=5)
    assert not torch.equal(whole[0], torch.cat([a for a, _, _ in sampled_batches(data, other)]))


def test_a_curvature_says_what_it_is():
    assert Curvature("full").bound == "exact"
    assert "lower bound" in Curvature("layer").bound and "no bound" in Curvature("kron").bound
    both = Curvature("diag", samples=1, subset=0.5).bound
    assert "overestimate" in both and "subset" in both
    net, x, y = problem()
    asked = Curvature("kron", "reduce", samples=2)
    assert log_evidence(net, (x, y), curvature=asked).curvature == asked
    assert laplace_pass(net, Batches((x, y)), Categorical(), "diag").curvature == Curvature("diag")


BAD = [
    ({"kind": "kfac"}, "curvature='kfac': expected one of"),
    ({"kfac": "sum"}, "kfac='sum': expected one of expand, reduce"),
    ({"kind": "full", "kfac": "reduce"}, "they belong to 'kron'"),
    ({"exact_up_to": -1}, "exact_up_to=-1"),
    ({"samples": 0}, "samples=0: expected at least 1"),
    ({"subset": 0.0}, r"subset=0.0: expected a share of the data, in \(0, 1\]"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[str(a) for a, _ in BAD])
def test_bad_curvatures(arguments, message):
    with pytest.raises(ValueError, match=message):
        Curvature(**arguments)

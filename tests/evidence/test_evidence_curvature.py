"""Full, diagonal and Kronecker curvature against dense matrices that are built the long way."""

import networks
import oracles
import pytest
import torch

from bayesws import Categorical, Curvature, Gaussian, log_evidence
from bayesws.evidence.batches import Batches
from bayesws.evidence.gathering import gather
from bayesws.evidence.objective import finish, laplace_pass
from bayesws.layers.contract import starting_log_precisions

NOISE = 0.7
LIKELIHOODS = {
    "classification": (Categorical, oracles.softmax_hessian),
    "regression": (lambda: Gaussian(NOISE, dtype=torch.float64), oracles.gaussian_hessian(NOISE)),
}
every_net = pytest.mark.parametrize("sharing", networks.SHARING, ids=networks.SHARING_IDS)
every_likelihood = pytest.mark.parametrize("kind", LIKELIHOODS)
N, OUTPUTS = 5, 3


def problem(sharing, kind, net=networks.EveryLayer):
    likelihood, hessian = LIKELIHOODS[kind]
    return net(*sharing, OUTPUTS), networks.images(N), networks.targets(kind, N, OUTPUTS), likelihood(), hessian


def precisions_by_row(net, spans, prior):
    return torch.cat([prior[name].exp().detach().expand(s.stop - s.start) for name, s in spans.items()])


@every_net
@every_likelihood
def test_full_is_the_dense_matrix(sharing, kind):
    net, x, y, likelihood, hessian = problem(sharing, kind)
    prior = starting_log_precisions(net)
    names = oracles.weight_names(net)
    h, spans = oracles.dense_ggn(net, x, hessian, names), oracles.spans(net, names)
    assert set(spans) == set(prior)
    done = finish(gather(net, Batches((x, y)), likelihood, Curvature("full")))  # in the space of parameters
    order = torch.cat([torch.arange(spans[n].start, spans[n].stop) for n in done.hessian.sizes])
    # the same products summed in another order: relative to the largest entry
    scale = h.abs().max()
    torch.testing.assert_close(done.hessian.matrix / scale, h[order[:, None], order] / scale, rtol=0, atol=1e-12)
    found = log_evidence(net, (x, y), likelihood, "full")
    by_row = precisions_by_row(net, spans, prior)
    expected = oracles.occam_factor(h, by_row)
    assert found.occam.item() == pytest.approx(expected, rel=1e-10)
    gammas = oracles.effective_parameters(h, by_row)
    for name, span in spans.items():
        # 1 - (a diagonal entry of an inverse): cancellation, hence an absolute tolerance
        gamma = found.by_pathway[name].effective.item()
        assert gamma == pytest.approx(gammas[span].sum().item(), rel=1e-10, abs=1e-9)
        assert found.by_pathway[name].parameters == span.stop - span.start


@every_net
@every_likelihood
def test_diag_is_the_diagonal_of_the_dense_matrix(sharing, kind):
    net, x, y, likelihood, hessian = problem(sharing, kind)
    prior = starting_log_precisions(net)
    names = oracles.weight_names(net)
    diagonal = oracles.dense_ggn(net, x, hessian, names).diagonal()
    done = laplace_pass(net, Batches((x, y)), likelihood, "diag")
    found = log_evidence(net, (x, y), likelihood, "diag")
    values = {name: diagonal[span] for name, span in oracles.spans(net, names).items()}
    deltas = {name: prior[name].exp().detach() for name in values}
    for name, (occam, gamma) in oracles.coupled_shares(values, deltas, oracles.pairs_of(net)).items():
        # sums of products in another order
        torch.testing.assert_close(done.hessian.eigenvalues[name], values[name], rtol=1e-10, atol=1e-14)
        share = found.by_pathway[name]
        torch.testing.assert_close(share.occam.detach(), occam, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(share.effective.detach(), gamma, rtol=1e-10, atol=1e-12)


@every_net
@every_likelihood
@pytest.mark.parametrize("kfac", ["expand", "reduce"])
def test_kron_is_its_definition(sharing, kind, kfac, tight_sinkhorn):
    net, x, y, likelihood, hessian = problem(sharing, kind)
    prior = starting_log_precisions(net)
    blocks = oracles.kron_blocks(net, x, hessian, kfac == "reduce")
    assert set(blocks) == set(prior)
    curvature = Curvature("kron", kfac=kfac)
    done = laplace_pass(net, Batches((x, y)), likelihood, curvature)
    found = log_evidence(net, (x, y), likelihood, curvature)
    spectra = {name: torch.linalg.eigvalsh(block).clamp(min=0) for name, block in blocks.items()}
    deltas = {name: prior[name].exp().detach() for name in blocks}
    expected = oracles.coupled_shares(spectra, deltas, oracles.pairs_of(net))
    for name, (occam, gamma) in expected.items():
        values, largest = done.hessian.eigenvalues[name].detach().sort().values, spectra[name][-1]
        # eigenvalues are good to rounding times the largest
        torch.testing.assert_close(values / largest, spectra[name] / largest, rtol=0, atol=1e-12)
        share = found.by_pathway[name]
        assert share.occam.item() == pytest.approx(occam.item(), rel=1e-10)
        assert share.effective.item() == pytest.approx(gamma.item(), rel=1e-9)
    assert found.occam.item() == pytest.approx(sum(occam.item() for occam, _ in expected.values()), rel=1e-10)


@every_likelihood
def test_kron_is_exact_for_one_position_one_output_and_one_datum(kind):
    """H = (a aᵀ) ⊗ (g gᵀ) where there is nothing to average over."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 3, dtype=torch.float64))
    x = torch.randn(1, 4, dtype=torch.float64)
    likelihood, _ = LIKELIHOODS[kind]
    y = networks.targets(kind, 1, 3)
    kron, full = (
        finish(gather(net, Batches((x, y)), likelihood(), Curvature(kind))).hessian for kind in ("kron", "full")
    )
    h = full.matrix[:12, :12]
    torch.testing.assert_close(
        kron.eigenvalues["0.weight"].sort().values.detach(),
        torch.linalg.eigvalsh(h).detach(),
        rtol=1e-10,
        atol=1e-12,
    )


@every_net
@every_likelihood
@pytest.mark.parametrize("curvature", ["full", "diag", "kron"])
def test_data_fit_and_scatter(sharing, kind, curvature):
    net, x, y, likelihood, _ = problem(sharing, kind)
    prior = starting_log_precisions(net)
    found = log_evidence(net, (x, y), likelihood, curvature)
    noise = None if kind == "classification" else NOISE
    fit = oracles.log_probability(net(x), y, noise).item()
    assert found.data_fit.item() == pytest.approx(fit, rel=1e-10)
    scatter = 0.0
    for name in oracles.weight_names(net):
        pathway = oracles.pathway_of(net, name)
        part = 0.5 * prior[pathway].exp().item() * net.get_parameter(name).square().sum().item()
        assert found.by_pathway[pathway].scatter.item() == pytest.approx(part, rel=1e-10)
        scatter += part
    assert found.scatter.item() == pytest.approx(scatter, rel=1e-10)
    expected = found.data_fit - found.scatter - found.occam
    assert float(found) == found.total.item() == expected.item() and found.examples == N


@every_likelihood
@pytest.mark.parametrize("width", [1, 3])
def test_likelihood_roots(kind, width):
    likelihood, hessian = LIKELIHOODS[kind]
    outputs = torch.randn(4, width, dtype=torch.float64)
    root = likelihood().hessian_root(outputs).detach()
    torch.testing.assert_close(root @ root.mT, hessian(outputs), rtol=1e-12, atol=1e-15)


@every_likelihood
def test_likelihood_hessian_is_the_second_derivative(kind):
    likelihood, hessian = LIKELIHOODS[kind]
    outputs, y = torch.randn(1, 3, dtype=torch.float64), networks.targets(kind, 1, 3)
    second = torch.func.hessian(lambda f: -likelihood().log_prob(f[None], y))(outputs[0])
    torch.testing.assert_close(second.detach(), hessian(outputs)[0], rtol=1e-10, atol=1e-13)


def test_diagonal_and_kron_are_bounds_that_full_does_not_exceed():
    """Fischer: log det of a matrix is at most that of its diagonal."""
    net, x, y, likelihood, _ = problem(networks.SHARING[0], "classification")
    full, diag = (log_evidence(net, (x, y), likelihood, c).occam.item() for c in ("full", "diag"))
    assert full < diag


@every_net
def test_layers_have_the_blocks_of_the_dense_matrix(sharing):
    net, x, y, likelihood, hessian = problem(sharing, "classification")
    prior, names = starting_log_precisions(net), oracles.weight_names(net)
    h, spans = oracles.dense_ggn(net, x, hessian, names), oracles.spans(net, names)
    by_row, total = precisions_by_row(net, spans, prior), 0.0
    blocks = {}
    for name, span in spans.items():
        blocks.setdefault(name.rpartition(".")[0], []).append(span)
    for block in blocks.values():
        rows = torch.cat([torch.arange(span.start, span.stop) for span in block])
        total += oracles.occam_factor(h[rows[:, None], rows], by_row[rows])
    assert log_evidence(net, (x, y), likelihood, "layer").occam.item() == pytest.approx(total, rel=1e-10)


@every_net
def test_pathways_have_the_blocks_of_the_dense_matrix_and_pairs_are_coupled(sharing):
    net, x, y, likelihood, hessian = problem(sharing, "classification")
    prior, names = starting_log_precisions(net), oracles.weight_names(net)
    h = oracles.dense_ggn(net, x, hessian, names)
    spans = {oracles.pathway_of(net, name): span for name, span in oracles.spans(net, names).items()}
    values = {name: torch.linalg.eigvalsh(h[span, span]).clamp(min=0) for name, span in spans.items()}
    deltas = {name: prior[name].exp().detach() for name in values}
    expected = oracles.coupled_shares(values, deltas, oracles.pairs_of(net))
    found = log_evidence(net, (x, y), likelihood, "pathway")
    for name, (occam, gamma) in expected.items():
        # eigenvalues are good to rounding times the largest
        assert found.by_pathway[name].occam.item() == pytest.approx(occam.item(), rel=1e-9, abs=1e-9)
        assert found.by_pathway[name].effective.item() == pytest.approx(gamma.item(), rel=1e-9, abs=1e-9)


@every_likelihood
def test_fewer_covariances_mean_a_lower_evidence(kind):
    """Fischer: log det of a matrix is at most that of its blocks, these at most that of their blocks."""
    net, x, y, likelihood, _ = problem(networks.SHARING[0], kind)
    values = [float(log_evidence(net, (x, y), likelihood, c)) for c in ("full", "layer", "pathway", "diag")]
    assert values == sorted(values, reverse=True) and len(set(values)) == 4


def test_small_layers_keep_their_joint_block():
    """All layers small: the layer blocks; none: Kronecker factors; between: every layer as its size says."""
    net, x, y, likelihood, _ = problem(networks.SHARING[0], "classification")
    layered, kron = (log_evidence(net, (x, y), likelihood, c) for c in ("layer", "kron"))
    all_exact = log_evidence(net, (x, y), likelihood, Curvature("kron", exact_up_to=10_000))
    assert float(all_exact) == pytest.approx(float(layered), rel=1e-12)
    head = sum(p.numel() for p in net.head.parameters())
    mixed = log_evidence(net, (x, y), likelihood, Curvature("kron", exact_up_to=head))
    for name, part in mixed.by_pathway.items():
        other = kron.by_pathway[name]
        size = sum(p.parameters for n, p in kron.by_pathway.items() if n.rpartition(".")[0] == name.rpartition(".")[0])
        if size <= head:
            assert part.occam is None
            expected = layered.by_pathway[name].effective.item()
            assert part.effective.item() == pytest.approx(expected, rel=1e-9)
        else:
            assert part.occam.item() == pytest.approx(other.occam.item(), rel=1e-12)

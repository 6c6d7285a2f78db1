"""The log-domain Sinkhorn projection: doubly stochastic, honest about convergence, right gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesws.sharing import doubly_stochastic, sinkhorn

SHAPES = [(1, 1), (2, 2), (5, 5), (3, 4, 4), (2, 3, 6, 6), (0, 3, 3)]


def logits_of(*shape, scale=1.0, dtype=torch.float64):
    return scale * torch.randn(*shape, dtype=dtype)


def row_error(matrix):
    return (matrix.sum(-1) - 1).abs().max().item() if matrix.numel() else 0.0


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_and_columns_sum_to_one(shape):
    found = sinkhorn(logits_of(*shape))
    assert found.matrix.shape == shape and found.converged and (found.matrix >= 0).all()
    # rows are as good as the residual says (1e-9 asked for, rounding added); columns are normalised last
    assert row_error(found.matrix) <= found.residual + 1e-14 and found.residual <= 1e-9
    assert row_error(found.matrix.mT) < 1e-13


@given(st.integers(1, 6), st.floats(0.0, 5.0), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_residual_is_what_the_rows_say(d, scale, seed):
    found = sinkhorn(scale * torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    # two ways to sum d numbers of at most one
    assert found.residual == pytest.approx(row_error(found.matrix), abs=1e-13)
    assert found.converged == (found.residual <= 1e-9)


def test_is_the_plain_alternate_normalisation():
    r = logits_of(4, 4).exp()
    expected = r.clone()
    for _ in range(500):
        expected = expected / expected.sum(1, keepdim=True)
        expected = expected / expected.sum(0, keepdim=True)
    torch.testing.assert_close(sinkhorn(r.log(), tolerance=1e-14).matrix, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("logit", [-3.0, 0.0, 0.5, 4.0])
def test_two_by_two_by_hand(logit):
    a = torch.sigmoid(torch.tensor(logit, dtype=torch.float64))
    expected = torch.stack([torch.stack([a, 1 - a]), torch.stack([1 - a, a])])
    found = sinkhorn(torch.eye(2, dtype=torch.float64) * logit).matrix
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)  # symmetric: one normalisation is exact


def test_does_not_depend_on_row_and_column_offsets():
    logits = logits_of(5, 5)
    moved = logits + logits_of(5, 1, scale=3) + logits_of(1, 5, scale=3)
    # both stop at a residual of 1e-13 but at different points
    torch.testing.assert_close(sinkhorn(logits, 1e-13).matrix, sinkhorn(moved, 1e-13).matrix, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("d", [2, 4, 9])
def test_extreme_logits_become_the_permutation(d):
    permutation = torch.randperm(d)
    logits = torch.full((d, d), -1e4, dtype=torch.float64)
    logits[torch.arange(d), permutation] = 1e4
    found = sinkhorn(logits)
    assert found.converged and torch.equal(found.matrix, torch.eye(d, dtype=torch.float64)[permutation])


@pytest.mark.parametrize("iterations", [1, 3])
def test_what_did_not_converge_says_so(iterations):
    # [[0, 0], [0, -30]]: the limit has a zero where exp(-30) is not, which alternate normalisation reaches slowly
    found = sinkhorn(torch.tensor([[0.0, 0.0], [0.0, -30.0]], dtype=torch.float64), max_iterations=iterations)
    assert not found.converged and found.iterations == iterations and found.residual > 1e-3
    assert row_error(found.matrix) == pytest.approx(found.residual, abs=1e-14)


def test_looser_tolerance_needs_fewer_iterations():
    logits = logits_of(6, 6, scale=3)
    loose, tight = sinkhorn(logits, 1e-2), sinkhorn(logits, 1e-10)
    assert loose.converged and tight.converged and loose.iterations < tight.iterations
    assert tight.residual <= 1e-10 < loose.residual <= 1e-2


@pytest.mark.parametrize("shape", [(3, 3), (2, 4, 4), (2, 2, 2, 2)])
def test_gradient_against_finite_differences(shape):
    logits = logits_of(*shape).requires_grad_()
    # converged to rounding error, so that the difference quotient (step 1e-6) is not about the residual
    assert torch.autograd.gradcheck(lambda x: sinkhorn(x, 1e-14).matrix, logits)


def test_second_derivative_against_finite_differences():
    logits = logits_of(3, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: sinkhorn(x, 1e-14).matrix, logits)


def test_gradient_is_that_of_unrolled_iterations():
    logits = logits_of(4, 4).requires_grad_()
    weights = logits_of(4, 4)
    unrolled = logits
    for _ in range(300):
        unrolled = unrolled - unrolled.logsumexp(-1, keepdim=True)
        unrolled = unrolled - unrolled.logsumexp(-2, keepdim=True)
    (expected,) = torch.autograd.grad((weights * unrolled.exp()).sum(), logits)
    (found,) = torch.autograd.grad((weights * sinkhorn(logits, 1e-14).matrix).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def adjoint_by_pseudo_inverse(r, incoming):
    """R ∘ (Γ - a 1ᵀ - 1 bᵀ) from the whole singular system, [[I, R], [Rᵀ, I]] (a, b) = ((R ∘ Γ) 1, (R ∘ Γ)ᵀ 1)."""
    eye = torch.eye(r.shape[-1], dtype=r.dtype)
    system = torch.cat([torch.cat([eye, r], -1), torch.cat([r.T, eye], -1)])
    weighted = r * incoming
    a, b = (torch.linalg.pinv(system, hermitian=True) @ torch.cat([weighted.sum(1), weighted.sum(0)])).chunk(2)
    return weighted - r * (a[:, None] + b)


@pytest.mark.parametrize("d", [1, 2, 5, 12])
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_gradient_is_that_of_the_pseudo_inverse(d, scale):
    logits, incoming = logits_of(d, d, scale=scale).requires_grad_(), logits_of(d, d)
    r = sinkhorn(logits, 1e-14).matrix
    (found,) = torch.autograd.grad(r, logits, incoming)
    # the smallest eigenvalue of the system divides the rounding error of either
    torch.testing.assert_close(found, adjoint_by_pseudo_inverse(r.detach(), incoming), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("logit", [0.0, 1.0, 10.0, 20.0, 30.0, 40.0, 100.0])
def test_gradient_near_a_permutation_by_hand(logit):
    # R_11 = σ(½ (l_11 + l_22 - l_12 - l_21)); at logit 30 its slope is 5e-14, and 1 - R_11 is not resolved any more
    logits = torch.tensor([[logit, 0.0], [0.0, logit]], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(sinkhorn(logits).matrix[0, 0], logits)
    slope = torch.sigmoid(torch.tensor(logit, dtype=torch.float64)) * torch.sigmoid(torch.tensor(-logit)).double() / 2
    expected = torch.stack([torch.stack([slope, -slope]), torch.stack([-slope, slope])])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=3e-13)  # the ridge, 1e-13, is added to 1 - R_11²


@pytest.mark.parametrize("hardness", [5.0, 15.0, 25.0, 35.0])
def test_gradient_near_a_permutation_against_finite_differences(hardness):
    logits = logits_of(7, 7) + hardness * torch.eye(7, dtype=torch.float64)[torch.randperm(7)]
    logits.requires_grad_()
    # absolute: the gradient itself falls like exp(-hardness), to 1e-13
    check = torch.autograd.gradcheck
    assert check(lambda x: sinkhorn(x, 1e-14).matrix, logits, eps=1e-4, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
def test_without_reading_back_it_is_the_same_projection(scale):
    logits = logits_of(3, 9, 9, scale=scale)
    expected = sinkhorn(logits)
    r, residual, iterations = doubly_stochastic._normalise(logits, 1e-9, 500, may_wait=False)
    assert residual <= 1e-9 and iterations >= expected.iterations
    # each element stops at its own residual of at most 1e-9
    torch.testing.assert_close(r, expected.matrix, rtol=0, atol=3e-9)


def test_an_element_that_has_converged_stays_while_others_go_on():
    easy, hard = logits_of(4, 4, scale=0.1), logits_of(4, 4, scale=30)
    alone, together = sinkhorn(easy), sinkhorn(torch.stack([easy, hard]))
    assert together.iterations > alone.iterations
    # but for the last bits, which some processors round by the batch's shape; going on would move it by 1e-10 and more
    torch.testing.assert_close(together.matrix[0], alone.matrix, rtol=1e-14, atol=0)


def test_nothing_is_read_back_outside_the_cpu():
    logits = torch.zeros(2, 5, 5, device="meta", requires_grad=True)  # a tensor without values cannot be read
    found = sinkhorn(logits)
    (gradient,) = torch.autograd.grad(found.matrix.sum(), logits, create_graph=True)
    assert found.matrix.shape == (2, 5, 5) and gradient.shape == (2, 5, 5)
    assert found.iterations == doubly_stochastic.FIRST_SWEEPS + doubly_stochastic.UNREAD_STEPS


def test_logits_that_are_not_finite_are_seen_in_the_residual():
    r, residual, _ = doubly_stochastic._normalise(torch.full((2, 2), torch.nan).double(), 1e-9, 500, may_wait=False)
    assert not doubly_stochastic.DoublyStochastic(r, residual, 10).converged


@pytest.mark.parametrize("scale", [50.0, 1e4])
def test_gradient_stays_finite_at_extreme_logits(scale):
    logits = (scale * torch.eye(4, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(sinkhorn(logits).matrix.square().sum(), logits)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_type_and_device(dtype, device):
    logits = logits_of(3, 3, dtype=dtype).to(device)
    found = sinkhorn(logits).matrix
    assert found.dtype == dtype and found.device == logits.device


BAD = [
    (torch.zeros(2, 3), r"\(2, 3\).*expected floating \(\.\.\., d, d\)"),
    (torch.zeros(3), r"\(3,\).*expected"),
    (torch.zeros(2, 2, dtype=torch.int64), "int64.*expected floating"),
    (torch.tensor([[0.0, float("nan")], [0.0, 0.0]]), "NaN or infinite"),
    (torch.tensor([[0.0, float("-inf")], [0.0, 0.0]]), "NaN or infinite"),
]


@pytest.mark.parametrize("logits, message", BAD)
def test_bad_logits(logits, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        sinkhorn(logits)

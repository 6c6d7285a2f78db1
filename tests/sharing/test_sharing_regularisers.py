"""The published penalties: values by hand, gradients, what does not count."""

import math

import pytest
import torch

from bayesws.sharing import dense_stack, known_group, mean_entropy, normaliser, sinkhorn


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_normaliser_by_hand():
    logits = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64).log()
    rows, columns = (3, 7), (4, 6)
    expected = sum(math.log(n) ** 2 for n in rows) / 2 + sum(math.log(n) ** 2 for n in columns) / 2
    assert normaliser(logits).item() == pytest.approx(expected, rel=1e-14)


def test_normaliser_vanishes_where_the_projection_has_nothing_to_do():
    logits = normal(3, 4, 4)
    assert normaliser(sinkhorn(logits, 1e-14).matrix.log()).item() < 1e-26 < normaliser(logits).item()


def test_normaliser_is_the_mean_over_a_batch():
    logits = normal(3, 4, 4)
    single = torch.stack([normaliser(one) for one in logits]).mean()
    torch.testing.assert_close(normaliser(logits), single, rtol=1e-14, atol=0)


def test_normaliser_has_a_gradient_along_what_the_projection_ignores():
    logits = normal(4, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(normaliser(logits), logits)
    assert gradient.sum(-1).abs().max() > 1e-3
    (gradient,) = torch.autograd.grad(sinkhorn(logits).matrix.square().sum(), logits)
    assert gradient.sum(-1).abs().max() < 1e-9


def test_gradients_against_finite_differences():
    logits = normal(2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(normaliser, logits)
    stack = (0.1 + torch.rand(3, 4, 4, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(mean_entropy, stack)


@pytest.mark.parametrize("d", [1, 2, 7])
def test_entropy_by_hand(d):
    eye = torch.eye(d, dtype=torch.float64)
    uniform = torch.full((d, d), 1 / d, dtype=torch.float64)
    # half of the rows that count have the entropy log d, the anchor none and no part in the mean
    assert mean_entropy(torch.stack([eye, uniform, eye])).item() == pytest.approx(math.log(d) / 2, abs=1e-14)


def test_entropy_of_a_group_is_zero():
    assert mean_entropy(known_group("quarter-turns", 3, 3).matrices()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_entropy_of_hard_stacks_has_a_finite_gradient(dtype, scale):
    logits = (scale * torch.eye(4, dtype=dtype)).expand(2, 4, 4).clone().requires_grad_()
    entropy = mean_entropy(dense_stack(logits).matrix)
    (gradient,) = torch.autograd.grad(entropy, logits)
    assert entropy >= 0 and torch.isfinite(gradient).all()


def test_nothing_to_penalise():
    logits = torch.zeros(0, 3, 3, requires_grad=True)
    total = normaliser(logits) + mean_entropy(dense_stack(logits).matrix)
    assert total == 0
    total.backward()

"""Stacks of soft permutations: anchored, doubly stochastic, built as their equation says."""

from functools import partial

import pytest
import torch

from bayesws.sharing import dense_stack, doubly_stochastic, power_stack, product_stack, sinkhorn

G = 4


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


STACKS = {
    "dense": lambda: dense_stack(normal(G - 1, 6, 6)),
    "product": lambda: product_stack(normal(G - 1, 2, 2), normal(G - 1, 3, 3)),
    "product without an axis": lambda: product_stack(normal(G - 1, 1, 1), normal(G - 1, 6, 6)),
    "power": lambda: power_stack(normal(6, 6), G),
}


@pytest.mark.parametrize("make", STACKS.values(), ids=STACKS)
def test_anchored_and_doubly_stochastic(make):
    found = make()
    r = found.matrix
    assert r.shape == (G, 6, 6) and found.converged and found.iterations > 0
    assert torch.equal(r[0], torch.eye(6, dtype=torch.float64))
    assert (r >= 0).all()
    # a product of k projections that are off by 1e-9 each is off by k · 1e-9
    torch.testing.assert_close(r.sum(-1), torch.ones(G, 6, dtype=torch.float64), rtol=0, atol=G * 1e-9)
    torch.testing.assert_close(r.sum(-2), torch.ones(G, 6, dtype=torch.float64), rtol=0, atol=G * 1e-9)


def test_dense_is_one_projection_an_element():
    logits = normal(G - 1, 5, 5)
    found = dense_stack(logits).matrix
    for g in range(1, G):
        # a batch iterates until its slowest element is done
        torch.testing.assert_close(found[g], sinkhorn(logits[g - 1]).matrix, rtol=0, atol=1e-8)


def test_product_is_the_kronecker_product():
    axis, support = normal(G - 1, 2, 2), normal(G - 1, 3, 3)
    found = product_stack(axis, support).matrix
    s, p = sinkhorn(axis).matrix, sinkhorn(support).matrix
    for g in range(1, G):
        torch.testing.assert_close(found[g], torch.kron(s[g - 1], p[g - 1]), rtol=1e-14, atol=0)


@pytest.mark.parametrize("group_size", [1, 2, 5])
def test_power_is_the_matrix_power(group_size):
    logits = normal(4, 4)
    found = power_stack(logits, group_size).matrix
    generator = sinkhorn(logits).matrix
    for g in range(group_size):
        torch.testing.assert_close(found[g], torch.linalg.matrix_power(generator, g), rtol=1e-13, atol=1e-15)


def test_power_of_a_cyclic_generator_closes():
    shift = torch.roll(torch.eye(G, dtype=torch.float64), 1, 0)
    r = power_stack(60 * shift, G).matrix
    # exp(-60) ≈ 1e-26: the generator is the shift to rounding error, and its G-th power the identity
    torch.testing.assert_close(r[-1] @ r[1], torch.eye(G, dtype=torch.float64), rtol=0, atol=1e-12)


def test_stack_of_the_anchor_alone():
    found = dense_stack(torch.zeros(0, 3, 3, dtype=torch.float64))
    assert torch.equal(found.matrix, torch.eye(3, dtype=torch.float64)[None]) and found.converged


HARD = torch.tensor([[0.0, 0.0], [0.0, -60.0]], dtype=torch.float64)  # alternation converges like 1/iterations
UNCONVERGED = {
    "dense": lambda: dense_stack(HARD[None]),
    "product, axis": lambda: product_stack(HARD[None], torch.zeros(1, 2, 2, dtype=torch.float64)),
    "product, support": lambda: product_stack(torch.zeros(1, 2, 2, dtype=torch.float64), HARD[None]),
    "power": lambda: power_stack(HARD, 3),
}


@pytest.mark.parametrize("make", UNCONVERGED.values(), ids=UNCONVERGED)
def test_stack_that_did_not_converge_says_so(make, monkeypatch):
    monkeypatch.setattr(doubly_stochastic, "sinkhorn", partial(doubly_stochastic.sinkhorn, max_iterations=5))
    found = make()
    assert not found.converged and found.residual > 1e-9 and found.iterations == 5


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_hard_and_nearly_tied_logits_converge(scale):
    generator = torch.Generator().manual_seed(0)
    found = dense_stack(scale * torch.randn(5, 9, 9, dtype=torch.float64, generator=generator))
    assert found.converged and found.iterations < 200  # alternation alone takes more than 10 000


GRADIENTS = {
    "dense": (lambda a: dense_stack(a).matrix, [(2, 3, 3)]),
    "product": (lambda a, b: product_stack(a, b).matrix, [(2, 2, 2), (2, 3, 3)]),
    "power": (lambda a: power_stack(a, 4).matrix, [(3, 3)]),
    "dense, rows": (lambda a: dense_stack(a, "rows").matrix, [(2, 3, 3)]),
    "product, rows": (lambda a, b: product_stack(a, b, "rows").matrix, [(2, 2, 2), (2, 3, 3)]),
    "power, none": (lambda a: power_stack(a, 4, "none").matrix, [(3, 3)]),
}


@pytest.mark.parametrize("stack, shapes", GRADIENTS.values(), ids=GRADIENTS)
def test_gradient_against_finite_differences(stack, shapes, tight_sinkhorn):
    logits = [normal(*shape).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(stack, logits)

"""Steps on precisions: MacKay's from the gradient is MacKay's, and stops only where the gradient does."""

import pytest
import torch

import bayesws as bws
from bayesws.evidence.batches import Batches
from bayesws.evidence.gradient import gradient_in
from bayesws.evidence.nesting import rebalance
from bayesws.evidence.objective import laplace_pass, resolve_prior
from bayesws.evidence.precision import ascend_precisions, update_precisions
from bayesws.layers.contract import named_pathways


def problem(stack):
    torch.manual_seed(1)
    net = bws.models.WSCNN(hidden_channels=2, num_classes=3, stack=stack, layers=1, dtype=torch.float64)
    data = torch.randn(40, 1, 6, 6, dtype=torch.float64), torch.arange(40) % 3
    prior = resolve_prior(net, None)
    rebalance(dict(named_pathways(net)), prior)
    return net, data, prior


def gradients_of(net, data, prior):
    tensors = list({id(t): t for t in prior.values()}.values())
    for tensor in tensors:
        tensor.requires_grad_()
    _, found = gradient_in(net, Batches(data), bws.Categorical(), bws.Curvature("full"), prior, tensors, "once")
    return tensors, found


@pytest.mark.parametrize("damping", [0.2, 1.0])
def test_from_the_gradient_it_is_mackays_step(damping):
    net, data, prior = problem("fixed")
    tensors, gradients = gradients_of(net, data, prior)
    stepped = {name: tensor.detach().clone() for name, tensor in prior.items()}
    with torch.no_grad():
        done = laplace_pass(net, Batches(data), bws.Categorical(), bws.Curvature("full"))
    ascend_precisions(net, prior, tensors, gradients, damping=damping)
    update_precisions(net, done.hessian, stepped, steps=1, damping=damping)
    for name in prior:
        torch.testing.assert_close(prior[name].detach(), stepped[name], rtol=1e-8, atol=1e-8)
    assert len({round(float(t), 3) for t in stepped.values()}) > 1


def test_steps_end_where_nothing_moves_any_more(monkeypatch):
    net, data, prior = problem("fixed")
    with torch.no_grad():
        done = laplace_pass(net, Batches(data), bws.Categorical(), bws.Curvature("full"))
    whole, counted = {name: tensor.clone() for name, tensor in prior.items()}, []
    count_of = type(done.hessian).effective
    monkeypatch.setattr(type(done.hessian), "effective", lambda *given: (counted.append(0), count_of(*given))[1])
    update_precisions(net, done.hessian, prior, steps=400, hold_split=True)
    assert 5 < len(counted) < 100
    monkeypatch.setattr("bayesws.evidence.precision.STILL", -1.0)
    update_precisions(net, done.hessian, whole, steps=400, hold_split=True)
    for name in prior:
        torch.testing.assert_close(prior[name], whole[name], rtol=0, atol=1e-5)  # the rest of a geometric sequence


def test_it_climbs_to_where_the_gradient_of_a_soft_stack_vanishes():
    """The weights' sum held: these precisions also shape the kernel, which MacKay's own step would not see."""
    net, data, prior = problem("dense")
    first = None
    for _ in range(80):
        tensors, gradients = gradients_of(net, data, prior)
        first = gradients if first is None else first
        ascend_precisions(net, prior, tensors, gradients)
        rebalance(dict(named_pathways(net)), prior)
    # a precision may end at its bound, where the gradient points out
    inside = [abs(float(g)) for t, g in zip(tensors, gradients, strict=True) if abs(float(t.detach()) - 4) < 11.9]
    assert max(inside) < 1e-5 * max(abs(float(g)) for g in first)
    assert len(inside) >= 3

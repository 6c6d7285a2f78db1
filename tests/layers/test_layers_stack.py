"""A stack's constraint, the ablations included: what the matrices keep to, their start, prior and gradients."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

import bayesws as bws
from bayesws.layers import RepresentationStack, Sharing, WSConv2d, WSLiftConv2d, WSLinear
from bayesws.layers.weight_sharing import RESIDUAL_JITTER

KINDS = ["dense", "product", "power"]
CONSTRAINTS = ["doubly", "rows", "none"]
every_stack = pytest.mark.parametrize("kind", KINDS)
every_constraint = pytest.mark.parametrize("constraint", CONSTRAINTS)
BOTH, SHARED = ("shared", "free"), ("shared",)
LAYERS = {
    "WSLinear": (lambda **k: WSLinear(4, 2, dtype=torch.float64, **k), (3, 4)),
    "WSLiftConv2d": (lambda **k: WSLiftConv2d(2, 2, 2, dtype=torch.float64, **k), (1, 2, 3, 3)),
    "WSConv2d": (lambda **k: WSConv2d(1, 2, (1, 2), dtype=torch.float64, **k), (1, 1, 3, 2, 3)),
}


def stack_of(kind, constraint, size=3, seed=0):
    torch.manual_seed(seed)
    return RepresentationStack(Sharing(size, kind, constraint=constraint), (4,), True, dtype=torch.float64)


def layer_of(name, kind, constraint, pathways):
    make, shape = LAYERS[name]
    layer = make(group_size=3, stack=kind, pathways=pathways, constraint=constraint)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
    return layer, torch.randn(*shape, dtype=torch.float64)


@every_stack
@every_constraint
def test_keeps_to_its_constraint_and_says_so(kind, constraint):
    stack = stack_of(kind, constraint)
    with torch.no_grad():
        for logits in stack.logits:
            logits.copy_(torch.randn_like(logits))
    found = stack.converge()
    r = found.matrix.detach()
    assert found.constraint == constraint and found.converged and torch.equal(r[0], torch.eye(12, dtype=r.dtype))
    rows, columns = ((r.sum(dim) - 1).abs().max().item() for dim in (-1, -2))
    # products of two projections that are off by up to 1e-9 each
    assert (rows < 3e-9) == (constraint != "none") and (columns < 3e-9) == (constraint == "doubly")
    assert (r.min() < 0) == (constraint == "none")


def test_without_a_constraint_the_entries_are_the_parameters():
    stack = stack_of("dense", "none")
    assert torch.equal(stack()[1:], stack.logits[0])


@every_stack
def test_starts_of_the_constraints_are_of_the_same_logits(kind):
    doubly, rows, none = (stack_of(kind, constraint) for constraint in CONSTRAINTS)
    for logits, same, entries in zip(doubly.logits, rows.logits, none.logits, strict=True):
        assert torch.equal(logits, same) and entries.is_leaf and entries.shape == logits.shape
    assert torch.equal(doubly(), none())


@every_constraint
@pytest.mark.parametrize("pathways", [BOTH, SHARED], ids=["both", "shared"])
@every_stack
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_against_finite_differences(name, kind, pathways, constraint, tight_sinkhorn):
    layer, x = layer_of(name, kind, constraint, pathways)
    names = [n for n, _ in layer.named_parameters()]

    def outputs(*values):
        return functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(outputs, tuple(layer.parameters()))


@every_constraint
@pytest.mark.parametrize("pathways", [BOTH, SHARED], ids=["both", "shared"])
def test_the_free_pathways_covariance(constraint, pathways):
    """L Lᵀ = λ I + s (I - R Rᵀ / c), c = max(1, ‖R‖₁ ‖R‖_∞): positive definite also where entries are negative."""
    layer, _ = layer_of("WSLinear", "dense", constraint, pathways)
    r, roots = layer.representations(), layer._free_roots(layer.representations())
    level, scale = RESIDUAL_JITTER, 1.0
    if "free" in pathways:
        level, scale = 1.0, (layer.log_precisions["free"] - layer.log_precisions["shared"]).exp()
    eye = torch.eye(4, dtype=torch.float64)
    for g in range(1, 3):
        norms = [torch.linalg.matrix_norm(r[g], p) for p in (1, torch.inf)]
        expected = level * eye + scale * (eye - r[g] @ r[g].T / max(1.0, float((norms[0] * norms[1]).detach())))
        torch.testing.assert_close(roots[g] @ roots[g].T, expected, rtol=1e-10, atol=1e-12)
    assert 0 <= layer.sharing_strength() <= 1


@pytest.mark.parametrize("constraint", ["rows", "none"])
@pytest.mark.parametrize("curvature", ["full", "kron"])
def test_gradient_of_the_evidence_in_what_is_not_doubly_stochastic(constraint, curvature):
    layer, x = layer_of("WSLinear", "dense", constraint, SHARED)
    y = torch.randn(3, 2, 3, dtype=torch.float64)
    (logits,) = layer.structure()

    def total(values):
        with torch.no_grad():
            logits.copy_(values)
        return float(bws.log_evidence(layer, (x, y), "regression", curvature))

    start, along = logits.detach().clone(), torch.randn_like(logits)
    step = 1e-5
    expected = (total(start + step * along) - total(start - step * along)) / (2 * step)
    total(start)
    evidence = bws.log_evidence(layer, (x, y), "regression", curvature).total
    (gradient,) = torch.autograd.grad(evidence, logits)
    # the largest absolute sum that bounds a norm has a kink; the draw is not at it
    assert float((gradient * along).sum()) == pytest.approx(expected, rel=1e-6)


BAD = [
    ({"constraint": "row"}, "constraint='row': expected one of doubly, rows, none"),
    ({"constraint": "rows", "stack": "fixed", "group": "cyclic-shifts"}, "'rows' with stack='fixed'"),
]


@pytest.mark.parametrize("arguments, message", BAD)
def test_bad_constraints(arguments, message):
    with pytest.raises(ValueError, match=message):
        WSLinear(4, 3, **arguments)
    with pytest.raises(ValueError, match="constraint='columns'"):
        bws.sharing.constrained(torch.zeros(2, 2), "columns")


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_entries_that_are_not_finite_are_refused_under_every_constraint(constraint, without_type_checks):
    with pytest.raises(ValueError, match="NaN or infinite"):
        bws.sharing.constrained(torch.full((2, 2), torch.nan), constraint)


@every_constraint
def test_repr_and_state(constraint):
    stack = stack_of("dense", constraint)
    assert ("constraint" in repr(stack)) == (constraint != "doubly")
    other = stack_of("dense", constraint, seed=1)
    other.load_state_dict(stack.state_dict())
    assert isinstance(other.logits[0], nn.Parameter) and torch.equal(other(), stack())

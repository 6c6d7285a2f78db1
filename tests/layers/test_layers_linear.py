"""WSLinear by hand: leading dimensions, cyclic shifts, strengths of two-element stacks, what is refused."""

import math

import pytest
import torch

from bayesws.layers import WSLinear
from bayesws.sharing import known_group

LEADING = [(), (3,), (2, 5), (2, 1, 3)]


@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_leading_dimensions(leading):
    layer = WSLinear(4, 3, group_size=2, dtype=torch.float64)
    x = torch.randn(*leading, 4, dtype=torch.float64)
    y = layer(x)
    assert y.shape == (*leading, 3, 2)
    expected = torch.stack([layer(row) for row in x.reshape(-1, 4)]).reshape(y.shape)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-14)


def test_cyclic_shifts_correlate():
    """y_g = w · R_gᵀ x: with cyclic shifts a circular correlation."""
    layer = WSLinear(5, 1, False, group_size=5, stack="fixed", group="cyclic-shifts", pathways=("shared",))
    layer = layer.double()
    x, w = torch.randn(5, dtype=torch.float64), layer.shared[0, 0]
    for g in range(5):
        torch.testing.assert_close(layer(x)[0, g], torch.roll(w, g) @ x, rtol=1e-12, atol=0)
    shifted = layer(torch.roll(x, 2))
    torch.testing.assert_close(shifted, layer(x).roll(2, -1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("stack", ["fixed", "dense", "product", "power"])
@pytest.mark.parametrize("pathways", [("shared",), ("shared", "free")])
def test_group_of_one(stack, pathways):
    layer = WSLinear(3, 2, group_size=1, stack=stack, pathways=pathways, dtype=torch.float64)
    y = layer(torch.randn(4, 3, dtype=torch.float64))
    y.square().sum().backward()
    assert y.shape == (4, 2, 1)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in layer.parameters())


# stack, pathways, log α, log β, logit l (R_2 = [[a, 1 - a], [1 - a, a]], a = sigmoid(l)), ρ
LOG3 = math.log(3)
STRENGTHS = [
    ("fixed", ("shared", "free"), 0.0, LOG3, None, 0.75),
    ("fixed", ("shared", "free"), 0.0, 0.0, None, 0.5),
    ("fixed", ("shared", "free"), LOG3, 0.0, None, 0.25),
    ("fixed", ("shared",), 2.0, None, None, 1.0),
    ("fixed", ("free",), None, 2.0, None, 0.0),
    ("dense", ("shared",), 1.0, None, 0.0, 0.5),  # a² + (1 - a)² with a = 1/2
    ("dense", ("shared",), 1.0, None, LOG3, 0.625),  # 9/16 + 1/16
    ("dense", ("shared", "free"), 0.0, LOG3, LOG3, 0.75 * 0.625),
    ("power", ("shared", "free"), 0.0, LOG3, LOG3, 0.75 * 0.625),
    ("dense", ("shared", "free"), 0.0, LOG3, 40.0, 0.75),
    ("dense", ("shared", "free"), 0.0, 40.0, -40.0, 1.0),
]


@pytest.mark.parametrize("stack, pathways, alpha, beta, logit, expected", STRENGTHS)
def test_sharing_strength_by_hand(stack, pathways, alpha, beta, logit, expected):
    group = "cyclic-shifts" if stack == "fixed" else None
    layer = WSLinear(2, 3, group_size=2, stack=stack, group=group, pathways=pathways, dtype=torch.float64)
    with torch.no_grad():
        for name, value in (("shared", alpha), ("free", beta)):
            if value is not None:
                layer.log_precisions[name].fill_(value)
        for logits in layer.structure():
            logits.copy_(logit * torch.eye(2, dtype=torch.float64))
    # symmetric logits are projected in one step: only rounding and exp(-40) are left
    assert layer.sharing_strength().item() == pytest.approx(expected, rel=1e-12)


def test_sharing_strength_of_three_copies_is_a_mean_over_pairs():
    layer = WSLinear(2, 1, group_size=3, stack="dense", pathways=("shared",), dtype=torch.float64)
    with torch.no_grad():
        layer.structure()[0].copy_(torch.tensor([0.0, LOG3])[:, None, None] * torch.eye(2))
    # pairs (I, ½): ½, (I, ¾): ⅝, (½, ¾): R_2 R_3ᵀ is uniform, ½; float32 log 3 gives 1e-7
    assert layer.sharing_strength().item() == pytest.approx((0.5 + 0.625 + 0.5) / 3, rel=1e-6)


def test_start_is_shared_first():
    layer = WSLinear(64, 64, group_size=4, stack="power")
    assert layer.sharing_strength() <= 0.5  # equal precisions, lowered by the soft stack's overlap
    assert not any(t.item() for t in layer.log_precisions.values())
    ratio = layer.free.std() / layer.shared.std()
    # 4096 and 16384 draws: the ratio of standard deviations is 0.1 up to 1.2 % (one standard error)
    assert ratio.item() == pytest.approx(0.1, rel=0.06) and not layer.bias.any()


BAD_ARGUMENTS = [
    ({"in_features": 0}, "expected at least 1"),
    ({"out_features": 0}, "expected at least 1"),
    ({"group_size": -1}, "group_size=-1: expected at least 1"),
    ({"stack": "Dense"}, "stack 'Dense': expected one of fixed, dense"),
    ({"stack": "fixed", "group": "quarter-turns"}, "'quarter-turns' on a 4 support: expected one of"),
    ({"stack": "fixed", "group": "cyclic-shifts"}, "4 elements on 4 positions.*group_size=2"),
    ({"stack": "fixed", "group": known_group("cyclic-shifts", 2)}, "2 positions.*on 4"),
    ({"stack": "power", "group": "cyclic-shifts"}, "needs stack='fixed'"),
    ({"stack": "product", "pathways": ("free",)}, "use stack='fixed'"),
    ({"pathways": ("weights",)}, "'weights'.*expected 'shared', 'free' or both"),
]


@pytest.mark.parametrize("arguments, message", BAD_ARGUMENTS, ids=[str(a) for a, _ in BAD_ARGUMENTS])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        WSLinear(**{"in_features": 4, "out_features": 3, "group_size": 2} | arguments)


@pytest.mark.parametrize("argument", ["in_features", "out_features"])
def test_bad_sizes_are_named_as_they_were_given(argument):
    with pytest.raises(ValueError, match=f"^{argument}=0"):
        WSLinear(**{"in_features": 4, "out_features": 3} | {argument: 0})


@pytest.mark.parametrize("shape", [(3,), (2, 5), (4, 2)])
def test_bad_inputs(shape):
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 4\) for this WSLinear"):
        WSLinear(4, 3, group_size=2)(torch.zeros(*shape))


def test_repr_shows_the_sizes_it_was_given():
    assert "WSLinear(\n  4, 3, " in repr(WSLinear(4, 3))

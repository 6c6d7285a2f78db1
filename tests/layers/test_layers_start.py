"""Where stacks start: at what the moments of every layer's input propose."""

import numpy as np
import pytest
import torch

import bayesws as bws
from bayesws.data import load
from bayesws.layers.start import moments, start_at_moments, start_at_random
from bayesws.sharing.groups import known_group

DIGITS = {task: load("digits", task=task, train_size=1700, seed=0).train[0] for task in ("turned", "upright")}


def test_moments_are_those_of_a_loop():
    patches = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    second, third = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    for x in patches.permute(0, 1, 3, 2).reshape(-1, 4):
        second += torch.outer(x, x) / 30
        third += torch.outer(x, x) * x.mean() / 30
    torch.testing.assert_close(moments(patches), torch.stack([second, third]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["dense", "product", "power"])
@pytest.mark.parametrize("constraint", ["doubly", "rows", "none"])
@pytest.mark.parametrize("on_features", [False, True])
def test_stack_starts_at_given_permutations(kind, constraint, on_features):
    group = known_group("quarter-turns", 3, 3)
    group = group.on_features() if on_features else group
    stack = bws.layers.RepresentationStack(
        bws.Sharing(4, kind, constraint=constraint), (3, 3), on_features, dtype=torch.float64
    )
    stack.start_at(group.permutations, softness=0.01)
    # of a row 0.01 is elsewhere; a product of two such, or the third power of one, has up to 0.02 or 0.03
    assert float((stack() - group.matrices()).abs().max()) < 0.031
    assert float((stack() - group.matrices()).abs().max()) > 0.005


@pytest.mark.parametrize("kind", ["dense", "product", "power"])
def test_random_start_follows_its_seed(kind):
    nets = [bws.models.WSCNN(stack=kind) for _ in range(2)]
    for net, seed in zip(nets, (0, 0), strict=True):
        start_at_random(net, seed)
    for a, b in zip(bws.layers.structure(nets[0]), bws.layers.structure(nets[1]), strict=True):
        assert torch.equal(a, b)
        assert float(a.abs().max()) < 1
    start_at_random(nets[1], 1)
    assert not torch.equal(bws.layers.structure(nets[0])[0], bws.layers.structure(nets[1])[0])


@pytest.mark.parametrize("kind", ["dense", "product", "power"])
def test_every_layer_of_a_network_starts_at_the_turns(kind):
    """Nobody tells the network that its digits are turned."""
    torch.manual_seed(0)
    net = bws.models.WSCNN(hidden_channels=8, stack=kind, layers=2)
    before = [p.clone() for p in net.parameters() if p.ndim > 2 and p.shape[-1] in (9, 36) and p.shape[-2] != 36]
    found = start_at_moments(net, DIGITS["turned"])
    assert list(found) == ["lift", "group_convs.0"]
    assert [c.group.name for c in found.values()] == ["quarter-turns"] * 2
    truth = {tuple(p) for p in known_group("quarter-turns", 3, 3).permutations.tolist()}
    assert {tuple(p) for p in net.lift.representations().argmax(-1).tolist()} == truth
    deep = net.group_convs[0].representations().argmax(-1)
    assert {tuple((p[:9] % 9).tolist()) for p in deep} == truth
    assert torch.equal(net.lift.shared, before[0]) or any(torch.equal(net.lift.shared, b) for b in before)
    assert net.training


def test_upright_digits_propose_no_group():
    assert bws.candidates(DIGITS["upright"]).group.name == "trivial"


@pytest.mark.parametrize("objective", ["evidence", "task"])
def test_fit_starts_at_moments_and_says_what_they_proposed(objective, tmp_path):
    x, y = load("digits", task="turned", seed=0).train
    net = bws.models.WSCNN(stack="product", layers=1, hidden_channels=4)
    decays = {"weight_decays": (0.0,)} if objective == "task" else {}
    options = {"epochs": 1, "start": "moments", "progress": False, "keep_posterior": False}
    fit = bws.fit(net, (x, y), objective=objective, **options, **decays)
    assert [(row.name, row.group, row.elements) for row in fit.start] == [("lift", "quarter-turns", 4)]
    fit.save(tmp_path / "fit")
    assert bws.FitResult.load(tmp_path / "fit").start == fit.start


def test_moments_are_of_the_images_as_a_loader_moves_them():
    upright = load("digits", train_size=1700, seed=0)
    net = bws.models.WSCNN(stack="product", layers=1, hidden_channels=4)
    options = {"epochs": 1, "start": "moments", "progress": False, "keep_posterior": False}
    fit = bws.fit(net, bws.data.moving(upright, "turned", 100, 0), **options)
    assert [row.group for row in fit.start] == ["quarter-turns"]


def test_random_start_of_a_fit_is_its_seeds():
    x, y = load("digits", seed=0).train
    nets = [bws.models.WSCNN(stack="product", layers=1, hidden_channels=4) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    fits = [
        bws.fit(net, (x[:50], y[:50]), epochs=1, start="random", progress=False, keep_posterior=False, seed=3)
        for net in nets
    ]
    assert torch.equal(fits[0].model.lift.representations(), fits[1].model.lift.representations())


def test_misfits_have_no_scale():
    x = bws.data.load("digits", task="turned", seed=0, train_size=300).train[0]
    small, large = bws.candidates(x), bws.candidates(x * 1e15)
    assert torch.equal(small.permutations, large.permutations)
    torch.testing.assert_close(small.misfits, large.misfits, rtol=1e-4, atol=1e-6)


def test_a_start_with_nothing_to_start_is_noted():
    x, y = bws.data.load("digits", seed=0, train_size=50).train
    with pytest.warns(UserWarning):
        fit = bws.fit(bws.models.WSCNN(hidden_channels=1), (x, y), epochs=1, start="moments", progress=False)
    assert any("nothing to start" in note for note in fit.notes)
    assert any("steps on the hyperparameters" in note for note in fit.notes)  # nor can one epoch converge


def test_all_of_a_group_is_printed_and_the_gap_is_marked():
    text = str(bws.candidates(bws.data.load("digits", task="turned", seed=0, train_size=1700).train))
    rows = text.splitlines()
    assert sum(row.endswith("  *") for row in rows) == 4 and "rejected below 0.0001" in rows[-1]
    gap = next(i for i, row in enumerate(rows) if "widest gap" in row)
    assert rows[gap - 1].startswith("flip") and rows[gap + 1][0].isdigit()


BAD = [
    (lambda: bws.candidates(torch.zeros(3, 3)), "expected floating"),
    (lambda: bws.candidates(torch.zeros(9, 1, 2, 2)), "kernel_size=3 on images of shape"),
    (lambda: bws.candidates(torch.zeros(9, 1, 8, 8), kernel_size=0), "kernel_size=0"),
    (lambda: bws.candidates(torch.zeros(1, 1, 8, 8)), "expected two or more"),
    (lambda: bws.candidates(torch.full((9, 1, 8, 8), float("nan"))), "NaN or infinite"),
    (lambda: bws.candidates("digits"), "expected a pair of tensors"),
    (lambda: bws.candidates(np.zeros((9, 1, 8, 8), dtype=np.uint8)), "the same everywhere"),
    (lambda: bws.candidates(torch.zeros(9, 1, 8, 8)), "the same everywhere"),
    (lambda: bws.candidates(torch.ones(9, 1, 8, 8)), "the same everywhere"),
    (lambda: bws.candidates(torch.zeros(9, 0, 8, 8)), "9, 0, 8, 8"),
    (lambda: bws.candidates(torch.rand(9, 1, 8, 8), kernel_size=(3, 3)), "kernel_size=\\(3, 3\\)"),
    (lambda: bws.candidates(torch.rand(9, 1, 8, 8), kernel_size=1), "kernel_size=1.*at least 2"),
    (lambda: bws.candidates(torch.rand(9, 1, 8, 8), keep=1), "keep=1"),
    (
        lambda: bws.layers.RepresentationStack(bws.Sharing(4, "fixed"), (3, 3), False).start_at(
            torch.zeros(4, 9).long()
        ),
        "a fixed stack",
    ),
    (
        lambda: bws.layers.RepresentationStack(bws.Sharing(4, "dense"), (3, 3), False).start_at(
            torch.zeros(3, 9).long()
        ),
        "expected \\(4, 9\\)",
    ),
    (
        lambda: bws.layers.RepresentationStack(bws.Sharing(8, "power"), (3, 3), False).start_at(
            known_group("dihedral", 3, 3).permutations
        ),
        "no powers|not the powers",
    ),
    (lambda: start_at_moments(bws.models.WSCNN(stack="dense"), torch.zeros(1, 1, 8, 8)), "expected two or more"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_told_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)

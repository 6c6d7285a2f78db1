"""GroupHead: what it computes, what it declares, and that its evidence is exact."""

import oracles
import pytest
import torch
from refusals import assert_refused
from torch import nn

import bayesws as bws
from bayesws.layers import GroupHead, harden, layers_of, named_pathways
from bayesws.layers.contract import starting_log_precisions

BOTH = ("shared", "free")
every_head = pytest.mark.parametrize("pathways", [BOTH, ("shared",), ("free",)])


def head(pathways=BOTH, **settings):
    torch.manual_seed(0)
    made = GroupHead(3, 2, 4, pathways, dtype=torch.float64, **settings)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "log_precisions" not in name:
                parameter.normal_()
    return made


def features(n=7):
    return torch.randn(n, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@every_head
def test_it_is_a_linear_map_of_the_mean_and_one_of_all(pathways):
    layer, x = head(pathways), features()
    expected = layer.bias + 0 * x.sum()
    for c in range(3):
        for g in range(4):
            if layer.shared is not None:
                expected = expected + x[:, c, g, None] * layer.shared[:, c] / 4
            if layer.free is not None:
                expected = expected + x[:, c, g, None] * layer.free[:, c, g]
    torch.testing.assert_close(layer(x), expected)
    rolled = layer(x.roll(1, -1))
    assert torch.allclose(rolled, layer(x)) == (pathways == ("shared",))  # invariant where it shares


@every_head
@pytest.mark.parametrize("kind", ["full", "pathway", "kron"])
def test_its_evidence_is_that_of_the_dense_matrix(pathways, kind):
    net, x, y = head(pathways), features(), torch.arange(7) % 2
    prior = {name: torch.tensor(0.5 * i - 0.3) for i, name in enumerate(starting_log_precisions(net))}
    names = oracles.weight_names(net)
    h, spans = oracles.dense_ggn(net, x, oracles.softmax_hessian, names), oracles.spans(net, names)
    found = bws.log_evidence(net, (x, y), "classification", kind, prior)
    if kind == "full":
        precisions = torch.cat([prior[n].double().exp().expand(s.stop - s.start) for n, s in spans.items()])
        assert found.occam.item() == pytest.approx(oracles.occam_factor(h, precisions), rel=1e-9)
        return
    blocks = {name: h[span, span] for name, span in spans.items()}
    if kind == "kron":  # A of the inputs, of w their mean over the group; B of the outputs
        b = sum(p for p in oracles.softmax_hessian(net(x)))
        inputs = {"shared": x.mean(-1), "free": x.flatten(1), "bias": torch.ones(7, 1, dtype=torch.float64)}
        blocks = {name: torch.kron(b, inputs[name].mT @ inputs[name] / 7) for name in names}
    values = {name: torch.linalg.eigvalsh(block).clamp(min=0) for name, block in blocks.items()}
    pairs = {"shared": ("free", 0.25)} if pathways == BOTH else {}
    deltas = {name: prior[name].double().exp() for name in values}
    for name, (occam, gamma) in oracles.coupled_shares(values, deltas, pairs).items():
        assert found.by_pathway[name].occam.item() == pytest.approx(occam.item(), rel=1e-6)
        assert found.by_pathway[name].effective.item() == pytest.approx(gamma.item(), rel=1e-6)


def test_what_it_declares_of_its_sum_is_so():
    layer = head()
    within = dict(named_pathways(layer))["shared"].within
    w, v = layer.shared.detach(), layer.free.detach()
    torch.testing.assert_close(within.lower(within.lift(w)), within.kappa * w)
    torch.testing.assert_close((within.lift(w) * v).sum(), (w * within.lower(v)).sum())
    torch.testing.assert_close(within.lift(w) + v, layer.kernel().detach())


def test_its_strength_is_the_correlation_of_its_copies():
    layer = head()
    alpha, beta = 0.3, -1.1
    with torch.no_grad():
        layer.log_precisions["shared"].fill_(alpha)
        layer.log_precisions["free"].fill_(beta)
    (row,) = layers_of(layer).values()
    shared, free = torch.tensor([-alpha, -beta]).exp()
    expected = (shared / 16) / (shared / 16 + free)
    assert float(row.strength({})) == pytest.approx(float(expected), rel=1e-6)
    assert row.sharing_pathways() == BOTH


@every_head
def test_hardened_it_is_torchs_own(pathways):
    layer, x = head(pathways), features()
    plain = harden(layer)
    torch.testing.assert_close(plain(x), layer(x))
    assert [type(m) for m in plain] == [nn.Flatten, nn.Linear]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: GroupHead(3, 2, 0), "group_size"),
        (lambda: GroupHead(3, 2, 4, ("both",)), r"pathways=\('both',\): expected \('shared',\)"),
        (lambda: head()(torch.zeros(2, 3, 5)), r"input of shape \(2, 3, 5\): expected \(batch, 3, 4\)"),
    ],
)
def test_bad_input_is_told(call, message):
    assert_refused(call, message)

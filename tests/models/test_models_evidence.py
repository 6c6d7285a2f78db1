"""The evidence of every network of ours against brute force: normalisation in eval mode and shortcuts included."""

import oracles
import pytest
import torch

from bayesws import Curvature, log_evidence
from bayesws.layers.contract import evaluating, starting_log_precisions
from bayesws.models import CNN, WSCNN, ResNet, WSResNet

SMALL = {"num_classes": 3, "hidden_channels": 2, "dtype": torch.float64}
HALF = {"group_size": 2, "kernel_size": 2, "group": "half-turns"}
SOFT = {"group_size": 2, "kernel_size": 2, "stack": "product", "pathways": ("shared",)}
BLOCK = {"in_channels": 1, "widths": (2,), "head_features": 6, **SMALL}
NETS = {
    "WSCNN": lambda: WSCNN(layers=2, norm="layer", pooling=False, **HALF, **SMALL),
    "WSCNN soft": lambda: WSCNN(layers=2, norm="layer", **SOFT, **SMALL),
    "CNN": lambda: CNN(kernel_size=2, norm="batch", **SMALL),
    "WSResNet": lambda: WSResNet(**HALF, **BLOCK),
    "WSResNet soft": lambda: WSResNet(**SOFT, **BLOCK),
    "WSResNet without norm": lambda: WSResNet(norm=None, **HALF, **BLOCK),
    "ResNet": lambda: ResNet(kernel_size=2, **BLOCK),
    "ResNet without norm": lambda: ResNet(kernel_size=2, norm=None, **BLOCK),
}
every_net = pytest.mark.parametrize("name", NETS)
pytestmark = pytest.mark.filterwarnings("ignore:layer .* normalises")


def problem(name):
    """In training mode, as a user may leave it; the truth is that of eval mode."""
    net = NETS[name]().train()
    with torch.no_grad():
        for n, parameter in net.named_parameters():
            parameter.normal_().mul_(0.5 if "log_precisions" in n else 0.7)
        for n, buffer in net.named_buffers():
            if "running" in n:
                buffer.uniform_(0.5, 2.0)
    return net, torch.randn(4, 1, 4, 4, dtype=torch.float64), torch.arange(4) % 3


@every_net
@pytest.mark.parametrize("curvature", [Curvature("full"), Curvature("kron"), Curvature("kron", "reduce")], ids=str)
def test_occam_factor(name, curvature):
    net, x, y = problem(name)
    names = oracles.weight_names(net)
    prior = {n: v.detach() for n, v in starting_log_precisions(net).items()}
    assert set(prior) == {oracles.pathway_of(net, n) for n in names}  # everything is declared
    found = log_evidence(net, (x, y), curvature=curvature)
    assert net.training
    with evaluating(net):
        h, spans = oracles.dense_ggn(net, x, oracles.softmax_hessian, names), oracles.spans(net, names)
        if curvature.kind == "kron":
            kron = oracles.kron_blocks(net, x, oracles.softmax_hessian, curvature.kfac == "reduce")
            values = {n: torch.linalg.eigvalsh(kron.get(n, h[s, s])).clamp(min=0) for n, s in spans.items()}
            deltas = {n: prior[n].exp() for n in spans}
            shares = oracles.coupled_shares(values, deltas, oracles.pairs_of(net))
            expected = sum(float(occam) for occam, _ in shares.values())
        else:
            precisions = torch.cat([prior[n].exp().expand(s.stop - s.start) for n, s in spans.items()])
            expected = oracles.occam_factor(h, precisions)
        data_fit = oracles.log_probability(net(x).detach(), y).item()
    assert found.data_fit.item() == pytest.approx(data_fit, rel=1e-10)
    assert found.occam.item() == pytest.approx(expected, rel=1e-9)
    if curvature.kind == "full":  # the layers are not cut off from the outputs by units that are off
        layers = {n.rpartition(".")[0] for n in names}
        effective = {n: p.effective.item() for n, p in found.by_pathway.items()}
        for layer in layers:
            assert sum(e for n, e in effective.items() if n.startswith(layer)) > 1e-6, layer


@pytest.mark.parametrize("name", [n for n in NETS if "norm" not in n])
def test_normalisation_is_warned_of(name):
    net, x, y = problem(name)
    with pytest.warns(UserWarning, match="layer '.*norm.*' normalises"):
        log_evidence(net, (x, y), curvature="diag")

"""A network contains its special cases: free alone is the plain network, shared alone the group network."""

import torch

import bayesws as bws
from bayesws.layers import WeightSharing, layers_of
from bayesws.models import CNN, WSCNN, ResNet, WSResNet

SIZES = {"in_channels": 2, "num_classes": 3, "layers": 3, "padding": 1, "dtype": torch.float64}
CONTAINING = {"contains": True}


def network(seed=0, **settings):
    torch.manual_seed(seed)
    net = WSCNN(hidden_channels=2, group_size=4, **SIZES, **settings)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "log_precisions" not in name:
                parameter.normal_(std=0.4)
    return net


def images():
    return torch.randn(5, 2, 9, 9, dtype=torch.float64)


@torch.no_grad()
def test_free_alone_it_is_the_plain_network():
    net, plain, x = network(**CONTAINING), CNN(hidden_channels=8, **SIZES), images()
    for layer, twin in zip(net.convolutions(), plain.convolutions(), strict=True):
        layer.shared.zero_()
        layer.bias.zero_()
        layer.free.copy_(twin.weight.reshape(layer.free.shape))
        layer.offset.copy_(twin.bias)
    net.head.shared.zero_()
    net.head.free.copy_(plain.head.weight.reshape(net.head.free.shape))
    net.head.bias.copy_(plain.head.bias)
    torch.testing.assert_close(net(x), plain(x), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_shared_alone_it_is_the_group_network():
    net, group, x = network(**CONTAINING), network(1, pathways=("shared",)), images()
    for layer, twin in zip(net.convolutions(), group.convolutions(), strict=True):
        layer.free.zero_()
        layer.offset.zero_()
        layer.shared.copy_(twin.shared)
        layer.bias.copy_(twin.bias)
    net.head.free.zero_()
    net.head.shared.copy_(group.head.weight)
    net.head.bias.copy_(group.head.bias)
    torch.testing.assert_close(net(x), group(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(net(x.rot90(1, (-2, -1))), net(x), rtol=1e-10, atol=1e-12)


def test_the_two_special_cases_are_networks_of_their_own():
    free, plain = network(pathways=("free",), contains=True), CNN(hidden_channels=8, **SIZES)

    def weights(net):
        return sum(p.numel() for name, p in net.named_parameters() if "log_precisions" not in name)

    assert weights(free) == weights(plain)
    assert free(images()).shape == plain(images()).shape


def test_its_head_is_a_row_of_every_table():
    net = network(**CONTAINING)
    rows = {name for name, layer in layers_of(net).items() if len(layer.sharing_pathways()) > 1}
    assert rows == {"lift", "group_convs.0", "group_convs.1", "head"}


def test_all_its_pathways_are_nested_and_its_evidence_is_a_number():
    net, x, y = network(**CONTAINING), images(), torch.arange(5) % 3
    found = bws.log_evidence(net, (x, y), curvature="kron")
    exact = bws.log_evidence(net, (x, y), curvature="layer")
    names = set(found.by_pathway)
    for layer, module in net.named_modules():
        if isinstance(module, WeightSharing):
            assert {f"{layer}.{p}" for p in ("shared", "free", "bias", "offset")} <= names
    assert float(found) < float(found.data_fit) and float(exact) < float(exact.data_fit)


RESIDUAL = {"in_channels": 2, "num_classes": 3, "kernel_size": 3, "head_features": 5, "dropout": 0.0, "norm": None}
RESIDUAL |= {"dtype": torch.float64}
KINDS = (("shared", "bias"), ("free", "offset"))  # what shares, and what does not


def residual(seed=0, **settings):
    torch.manual_seed(seed)
    net = WSResNet(hidden_channels=2, **RESIDUAL, **settings)
    with torch.no_grad():
        for _, parameter in named_weights(net):
            parameter.normal_(std=0.4)
    return net


def named_weights(net):
    return [(name, p) for name, p in net.named_parameters() if "log_precisions" not in name]


@torch.no_grad()
def close(net, names):
    for name, parameter in named_weights(net):
        if name.rpartition(".")[-1] in names and (name != "head.0.bias"):
            parameter.zero_()


@torch.no_grad()
def test_free_alone_the_residual_network_is_the_plain_one():
    net, x = residual(), torch.randn(5, 2, 9, 8, dtype=torch.float64)
    plain = ResNet(hidden_channels=8, **RESIDUAL)
    close(net, KINDS[0])
    mine = dict(named_weights(net))
    for name, twin in plain.named_parameters():
        layer, _, kind = name.replace("shortcut", "shortcut.map").rpartition(".")
        found = mine.get(f"{layer}.{'free' if kind == 'weight' else 'offset'}", mine.get(name))
        found.copy_(twin.reshape(found.shape))
    torch.testing.assert_close(net(x), plain(x), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_shared_alone_the_residual_network_is_the_group_network():
    net, group, x = residual(), residual(1, pathways=("shared",)), torch.randn(5, 2, 9, 9, dtype=torch.float64)
    close(net, KINDS[1])
    mine = dict(named_weights(net))
    for name, twin in group.named_parameters():
        if "log_precisions" not in name:
            mine[name.replace("head.0.weight", "head.0.shared")].copy_(twin)
    torch.testing.assert_close(net(x), group(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(net(x.rot90(1, (-2, -1))), net(x), rtol=1e-10, atol=1e-12)


def test_linear_maps_and_head_of_the_residual_network_are_rows():
    rows = {name for name, layer in layers_of(residual()).items() if len(layer.sharing_pathways()) > 1}
    assert {"stem", "blocks.1.first", "blocks.1.shortcut.map", "head.0"} <= rows
    free = residual(pathways=("free",))
    plain = ResNet(hidden_channels=8, **RESIDUAL)
    assert sum(p.numel() for _, p in named_weights(free)) == sum(p.numel() for p in plain.parameters())


@torch.no_grad()
def test_other_modules_may_stand_in_the_place_of_the_residual_network_s_own():
    net, x = residual().eval(), torch.randn(2, 2, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(bws.harden(net, x[:1])(x), net(x), rtol=1e-10, atol=1e-12)
    plain = ResNet(hidden_channels=4, **RESIDUAL).eval()  # whose linear maps become sharing layers
    torch.testing.assert_close(bws.share(plain, group_size=4)(x), plain(x), rtol=1e-10, atol=1e-12)

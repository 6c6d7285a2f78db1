"""WSResNet: invariant where it shares fully; its sizes are the published ones."""

import pytest
import torch
from networks import stack_and_other_parameters

from bayesws.models import ResNet, WSResNet
from bayesws.sharing import known_group

D = {"dtype": torch.float64}
SYMMETRIC = [("quarter-turns", 4), ("dihedral", 8), ("half-turns", 2), ("flips", 2)]


def moved_from_start(net):
    """In eval mode, with running statistics and precisions that are not those of a start."""
    for name, buffer in net.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim <= 1:
                parameter.uniform_(0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("name, size", SYMMETRIC)
@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.parametrize("side, kernel", [(16, 7), (13, 3), (4, 3)])
def test_invariant_to_its_group_where_it_shares_fully(name, size, norm, side, kernel):
    options = {"hidden_channels": 2, "head_features": 32, "group": name, "pathways": ("shared",), "norm": norm}
    net = moved_from_start(WSResNet(2, 3, group_size=size, kernel_size=kernel, **options, **D))
    x = torch.randn(3, 2, side, side, **D)
    y = net(x)
    for matrix in known_group(name, side, side).matrices():
        moved = (x.flatten(-2) @ matrix.T).reshape(x.shape)
        torch.testing.assert_close(net(moved), y, rtol=1e-10, atol=1e-10)
    assert (net(x.roll(1, -1)) - y).abs().max() > 1e-6  # not constant


def test_free_pathway_breaks_the_invariance():
    net = WSResNet(1, 3, 2, kernel_size=3, **D).eval()
    x = torch.randn(3, 1, 8, 8, **D)
    assert (net(torch.rot90(x, 1, (-2, -1))) - net(x)).abs().max() > 1e-4


@pytest.mark.parametrize("norm", ["instance", None])
def test_is_resnet_without_a_group(norm):
    same = {
        "in_channels": 2,
        "num_classes": 4,
        "hidden_channels": 3,
        "kernel_size": 3,
        "head_features": 5,
        "norm": norm,
    }
    sharing = moved_from_start(WSResNet(**same, group_size=1, pathways=("shared",), **D))
    plain = ResNet(**same, **D).eval()
    state = {name.replace("shortcut.map", "shortcut"): value for name, value in sharing.state_dict().items()}
    plain.load_state_dict(
        {
            name: state[name if name in state else name.replace("weight", "shared")].reshape(value.shape)
            for name, value in plain.state_dict().items()
        }
    )
    x = torch.randn(3, 2, 8, 9, **D)
    torch.testing.assert_close(plain(x), sharing(x), rtol=1e-10, atol=1e-12)  # sums in another order


def test_sizes_of_the_published_network():
    """arXiv 2412.04594: 468 195 stack parameters beside 1.63M: a layer of 49 positions, four of 196, and the rest."""
    net = WSResNet(stack="dense", pathways=("shared",), device="meta")
    logits, other = stack_and_other_parameters(net)
    assert logits == 3 * 49**2 + 4 * 3 * 196**2 == 468_195
    convolutions = 32 * 3 * 49 + 196 * (2 * 32 * 32 + 32 * 64 + 64 * 64)
    norms, shortcut, head = 2 * (32 + 32 + 64), 32 * 64, 64 * 256 + 2 * 256 + 256 * 10 + 10
    assert other == convolutions + norms + shortcut + head
    assert other == pytest.approx(1.63e6, rel=0.005)
    assert stack_and_other_parameters(WSResNet(pathways=("shared",), device="meta")) == (0, other)
    assert net(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("stack", ["fixed", "dense", "product", "power"])
@pytest.mark.parametrize("norm", ["instance", None])
def test_rebuilt_from_its_settings_and_state(stack, norm):
    net = moved_from_start(WSResNet(2, 4, 2, 4, 3, stack=stack, widths=(2, 1), head_features=3, norm=norm, **D))
    twin = WSResNet(**net.settings, **D).eval()
    twin.load_state_dict(net.state_dict())
    x = torch.randn(3, 2, 8, 8, **D)
    assert net(x).shape == (3, 4) and torch.equal(net(x), twin(x))
    assert repr(net) == repr(twin)


BAD = [
    ({"kernel_size": 0}, "kernel_size=0"),
    ({"in_channels": 0}, "in_channels=0"),
    ({"group_size": 3}, "group_size=3.*name one with group="),
    ({"stack": "loose"}, "stack 'loose'"),
    ({"pathways": ("none",)}, "expected 'shared', 'free' or both"),
    ({"padding_mode": "mirror"}, "padding_mode='mirror'"),
    ({"norm": "layer"}, "norm='layer': expected 'instance' or None"),
    ({"widths": ()}, r"widths=\(\)"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[str(a) for a, _ in BAD])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        WSResNet(**arguments)

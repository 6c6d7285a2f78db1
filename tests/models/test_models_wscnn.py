"""WSCNN: invariant where it shares fully, and only there."""

import pytest
import torch
from networks import stack_and_other_parameters

from bayesws.models import WSCNN
from bayesws.sharing import known_group

SYMMETRIC = [("quarter-turns", 4), ("dihedral", 8), ("half-turns", 2), ("flips", 2)]


def image_of(side, channels=2):
    return torch.randn(3, channels, side, side, dtype=torch.float64)


@pytest.mark.parametrize("name, size", SYMMETRIC)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("side, layers, padding", [(5, 2, 1), (6, 3, 1), (12, 3, 1), (8, 2, 0), (13, 2, 0), (28, 3, 0)])
def test_invariant_to_its_group_where_it_shares_fully(name, size, mode, side, layers, padding):
    geometry = {"layers": layers, "padding": padding, "padding_mode": mode, "dtype": torch.float64}
    net = WSCNN(2, 5, 3, size, group=name, pathways=("shared",), **geometry)
    x = image_of(side)
    y = net(x)
    for matrix in known_group(name, side, side).matrices():
        moved = (x.flatten(-2) @ matrix.T).reshape(x.shape)
        # sums of a few hundred products in another order, then maxima and means
        torch.testing.assert_close(net(moved), y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name, size", SYMMETRIC)
def test_the_published_network_is_invariant_to_a_known_group(name, size):
    net = WSCNN.published(stack="fixed", group=name, group_size=size, hidden_channels=8, dtype=torch.float64)
    x = image_of(28, 1)
    y = net(x)
    for matrix in known_group(name, 28, 28).matrices():
        moved = (x.flatten(-2) @ matrix.T).reshape(x.shape)
        torch.testing.assert_close(net(moved), y, rtol=1e-10, atol=1e-10)
    assert (net(x.mT.flip(-2, -1) if size != 8 else x.roll(3, -1)) - y).abs().max() > 1e-4  # in none of the groups


def test_sizes_of_the_published_network():
    """arXiv 2412.04594: 121 875 stack parameters beside "410K": five layers of 25 and 100 positions, and a head."""
    logits, other = stack_and_other_parameters(WSCNN.published(device="meta"))
    assert logits == 3 * 25**2 + 4 * 3 * 100**2 == 121_875
    assert other == 32 * 25 + 4 * 32**2 * 100 + 5 * 32 + 32 * 10 + 10
    assert other == pytest.approx(410e3, rel=0.005)
    assert stack_and_other_parameters(WSCNN.published(stack="fixed", device="meta")) == (0, other)


@pytest.mark.parametrize("norm", ["layer", None])
@pytest.mark.parametrize("pooling", [True, False])
def test_normalisation_and_pooling(norm, pooling):
    """By hand, image by image: zero mean and variance one over channels, group and positions, before ReLU."""
    net = WSCNN(2, 4, 3, layers=3, stack="product", norm=norm, pooling=pooling, dtype=torch.float64)
    x = image_of(20)
    outputs = []
    for image in x:
        features = image
        for index, convolution in enumerate([net.lift, *net.group_convs]):
            if index and pooling:  # 20 - 2 = 18 to 9, then 9 - 2 = 7 to 3, windows of 2 and of 3
                window = 2 + features.shape[-1] % 2
                features = features.unfold(-2, window, 2).unfold(-2, window, 2).amax((-1, -2))
            features = convolution(features.unsqueeze(0)).squeeze(0)
            if norm == "layer":
                features = (features - features.mean()) / (features.var(correction=0) + 1e-5).sqrt()
            features = features.clamp(min=0)
        outputs.append(net.head.kernel().flatten(1) @ features.mean((2, 3)).flatten() + net.head.bias)
        assert features.shape[-1] == (1 if pooling else 14)
    torch.testing.assert_close(net(x), torch.stack(outputs), rtol=1e-10, atol=1e-12)


def test_batch_normalisation_takes_a_channels_elements_together():
    """By hand, over the batch: zero mean and variance one by channel over examples, group and positions."""
    net = WSCNN(2, 4, 3, layers=2, norm="batch", pooling=False, dtype=torch.float64)
    x = features = image_of(9)
    for convolution in (net.lift, net.group_convs[0]):
        features = convolution(features).transpose(0, 1)
        rows = features.flatten(1)
        rows = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        features = rows.view_as(features).transpose(0, 1).clamp(min=0)
    by_hand = features.mean((3, 4)).flatten(1) @ net.head.kernel().flatten(1).T + net.head.bias
    torch.testing.assert_close(net(x), by_hand, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", [None, "layer", "batch"])
def test_shared_alone_is_invariant_with_every_normalisation(norm):
    net = WSCNN(1, 3, 2, pathways=("shared",), norm=norm, padding=1, dtype=torch.float64).eval()
    x = image_of(8)[:, :1]
    torch.testing.assert_close(net(x.rot90(1, (2, 3))), net(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [4, 8])
def test_group_of_four_is_turns_and_of_eight_dihedral(size):
    net = WSCNN(1, 3, 2, size, pathways=("shared",), dtype=torch.float64)
    x = image_of(6, 1)
    torch.testing.assert_close(net(torch.rot90(x, 1, (-2, -1))), net(x), rtol=1e-10, atol=1e-10)
    flipped = torch.allclose(net(x.flip(-1)), net(x), rtol=1e-10, atol=1e-10)
    assert flipped == (size == 8)


def test_free_pathway_breaks_the_invariance():
    net = WSCNN(1, 3, 2, 4, dtype=torch.float64)
    x = image_of(6, 1)
    assert (net(torch.rot90(x, 1, (-2, -1))) - net(x)).abs().max() > 1e-4


@pytest.mark.parametrize("stack", ["fixed", "dense", "product", "power"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("constraint", ["doubly", "rows", "none"])
def test_rebuilt_from_its_settings_and_state(stack, layers, constraint):
    if stack == "fixed" and constraint != "doubly":
        pytest.skip("a known group is doubly stochastic")
    options = {"norm": "layer", "pooling": False} if layers == 2 else {}
    net = WSCNN(
        2, 4, 2, 4, layers=layers, stack=stack, constraint=constraint, padding=1, **options, dtype=torch.float64
    )
    twin = WSCNN(**net.settings, dtype=torch.float64)
    twin.load_state_dict(net.state_dict())
    x = image_of(8)
    assert net(x).shape == (3, 4) and torch.equal(net(x), twin(x))
    assert repr(net) == repr(twin)


def test_type_and_device(device):
    net = WSCNN(1, 3, 2, stack="dense", device=device, dtype=torch.float64)
    y = net(image_of(6, 1).to(device))
    assert y.dtype == torch.float64 and y.device.type == device


BAD = [
    ({"layers": 0}, "layers=0: expected at least 1"),
    ({"kernel_size": 0}, "kernel_size=0"),
    ({"num_classes": 1}, "num_classes=1: expected at least 2"),
    ({"in_channels": 0}, "in_channels=0"),
    ({"group_size": 3}, "group_size=3.*name one with group="),
    ({"stack": "loose"}, "stack 'loose'"),
    ({"stack": "dense", "constraint": "loose"}, "constraint='loose'"),
    ({"pathways": ("none",)}, "expected 'shared', 'free' or both"),
    ({"padding_mode": "mirror"}, "padding_mode='mirror'"),
    ({"norm": "group"}, "norm='group': expected 'layer', 'batch' or None"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[str(a) for a, _ in BAD])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        WSCNN(**arguments)


BY_LAYER = [
    (("dihedral", "quarter-turns", "half-turns"), ["half-turns"], ["quarter-turns", "flips"]),
    (("quarter-turns", "dihedral", "dihedral"), ["quarter-turns"], ["flips"]),
    (("dihedral", "flips", "dihedral"), ["flips"], ["half-turns"]),
    (("dihedral", "dihedral", "trivial"), [], ["half-turns", "flips"]),
]


@pytest.mark.parametrize("groups, kept, lost", BY_LAYER)
def test_invariant_to_what_the_groups_of_all_layers_have_in_common(groups, kept, lost):
    net = WSCNN(2, 5, 4, 8, layers=3, group=groups, pathways=("shared",), dtype=torch.float64)
    x = image_of(14)
    y = net(x)
    for name in kept + lost:
        matrix = known_group(name, 14, 14).matrices()[1]
        moved = net((x.flatten(-2) @ matrix.T).reshape(x.shape))
        assert ((moved - y).abs().max() < 1e-10) == (name in kept), name


@pytest.mark.parametrize("name, size", SYMMETRIC)
def test_one_group_for_every_layer_is_the_network_over_that_group(name, size):
    torch.manual_seed(0)
    one = WSCNN(2, 5, 8 // size, size, layers=3, group=name)
    torch.manual_seed(0)
    every = WSCNN(2, 5, 8, 1, layers=3, group=(name, known_group(name, 3, 3), name))
    assert {k: v.shape for k, v in one.state_dict().items()} == {k: v.shape for k, v in every.state_dict().items()}
    x = image_of(14).float()
    assert torch.equal(one(x), every(x))


BAD_GROUPS = [
    ({"group": ("flips", "trivial")}, "2 groups.*3 layers"),
    ({"group": ("flips", "quarter-turns", "trivial")}, "4 feature maps.*8 elements"),
    ({"group": ("flips", "turns", "trivial")}, "'turns'.*expected one of"),
    ({"group": ("flips",) * 3, "stack": "dense"}, "stack='dense'"),
]


@pytest.mark.parametrize("arguments, message", BAD_GROUPS)
def test_groups_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        WSCNN(hidden_channels=1, group_size=4, layers=3, **arguments)

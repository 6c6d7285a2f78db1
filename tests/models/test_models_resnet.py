"""ResNet: the published network, step by step."""

import pytest
import torch
import torch.nn.functional as F

from bayesws.models import ResNet

D = {"dtype": torch.float64}


def moved_from_start(net):
    """In eval mode, with parameters and running statistics that are not those of a start."""
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if tensor.ndim == 1 else tensor.normal_().mul_(0.3)
    return net.eval()


def standardised(x, mean, variance):
    shape = (1, -1, 1, 1) if x.ndim == 4 else (1, -1)
    return (x - mean.reshape(shape)) / (variance.reshape(shape) + 1e-5).sqrt()


def batch_normalised(x, norm):
    shape = (1, -1, 1, 1) if x.ndim == 4 else (1, -1)
    x = standardised(x, norm.running_mean, norm.running_var)
    return x * norm.weight.reshape(shape) + norm.bias.reshape(shape)


def image_normalised(x):
    """Every channel of every image by its own mean and variance."""
    return torch.stack(
        [standardised(i[None], i.mean((1, 2)), i.var((1, 2), correction=0)).squeeze(0) for i in x.unbind(0)]
    )


def test_step_by_step():
    net = moved_from_start(ResNet(2, 5, 3, 3, head_features=4, **D))
    x = torch.randn(3, 2, 8, 8, **D)
    y = batch_normalised(F.conv2d(x, net.stem.weight, padding=1), net.norm).clamp(min=0)
    for block in net.blocks:
        z = image_normalised(F.conv2d(y, block.first.weight, padding=1)).clamp(min=0)
        z = image_normalised(F.conv2d(z, block.second.weight, padding=1)).clamp(min=0)
        if block is net.blocks[1]:  # from 3 to 6 channels
            y = torch.einsum("oi,nihw->nohw", block.shortcut.weight, y)
        z = batch_normalised(z + y, block.norm)
        y = z.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)).clamp(min=0)
    assert y.shape == (3, 6, 2, 2)
    hidden, norm, _, dropout, last = net.head
    h = batch_normalised(y.mean((2, 3)) @ hidden.weight.T, norm).clamp(min=0)
    expected = h @ last.weight.T + last.bias
    assert dropout.p == 0.3 and hidden.bias is None
    torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-12)


def test_without_normalisation():
    net = moved_from_start(ResNet(1, 2, 2, 3, widths=(2,), head_features=3, norm=None, **D))
    x = torch.randn(2, 1, 4, 4, **D)
    block = net.blocks[0]
    y = net.stem(x).clamp(min=0)
    z = block.second(block.first(y).clamp(min=0)).clamp(min=0) + torch.einsum("oi,nihw->nohw", block.shortcut.weight, y)
    y = z.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)).clamp(min=0).mean((2, 3))
    hidden, *_, last = net.head
    torch.testing.assert_close(net(x), last(hidden(y).clamp(min=0)), rtol=1e-10, atol=1e-12)
    assert not list(net.buffers())  # no running statistics


@pytest.mark.parametrize("channels, published, digits", [(64, 1.66, 2), (128, 6.5, 1)])
def test_sizes_of_the_published_networks(channels, published, digits):
    """arXiv 2412.04594: 1.66M and 6.5M, to the digits that are given."""
    net = ResNet(hidden_channels=channels, device="meta")
    found = sum(p.numel() for p in net.parameters())
    convolutions = 49 * (3 * channels + 2 * channels**2 + 2 * channels**2 + 4 * channels**2)
    norms, shortcut = 2 * (channels + channels + 2 * channels), 2 * channels**2
    assert found == convolutions + norms + shortcut + 2 * channels * 256 + 2 * 256 + 256 * 10 + 10
    assert round(found / 1e6, digits) == published
    assert net(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_dropout_is_for_training_alone():
    net = ResNet(1, 2, 2, 3, dropout=0.9)
    x = torch.randn(4, 1, 8, 8)
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


@pytest.mark.parametrize("widths", [(1,), (1, 2, 2)])
@pytest.mark.parametrize("norm", ["instance", None])
def test_rebuilt_from_its_settings_and_state(widths, norm):
    net = moved_from_start(
        ResNet(2, 4, 2, 5, widths=widths, head_features=3, dropout=0.1, norm=norm, padding_mode="circular")
    )
    twin = ResNet(**net.settings).eval()
    twin.load_state_dict(net.state_dict())
    x = torch.randn(3, 2, 8, 8)
    assert net(x).shape == (3, 4) and torch.equal(net(x), twin(x))
    assert repr(net) == repr(twin)


BAD = [
    ({"kernel_size": 0}, "kernel_size=0: expected at least 1"),
    ({"num_classes": 1}, "num_classes=1: expected at least 2"),
    ({"in_channels": 0}, "in_channels=0: expected at least 1"),
    ({"hidden_channels": 0}, "hidden_channels=0: expected at least 1"),
    ({"head_features": 0}, "head_features=0: expected at least 1"),
    ({"widths": ()}, r"widths=\(\): expected a whole number"),
    ({"widths": (1, 0)}, r"widths=\(1, 0\): expected a whole number of at least 1 for every block"),
    ({"dropout": 1.0}, "dropout=1.0: expected at least 0 and less than 1"),
    ({"norm": "layer"}, "norm='layer': expected 'instance' or None"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[str(a) for a, _ in BAD])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)


def test_images_that_are_too_small():
    with pytest.raises(ValueError, match=r"images of 3×8: expected at least 4×4.*2 blocks"):
        ResNet(1, 2, 2, 3)(torch.zeros(2, 1, 3, 8))

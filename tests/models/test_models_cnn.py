"""CNN: what WSCNN is with a group of one element."""

import pytest
import torch

from bayesws.models import CNN, WSCNN


def with_weights_of(plain, sharing):
    """The plain network with the weights of a sharing one whose group is the identity alone: kernels are w itself."""
    weights = [p for name, p in sharing.named_parameters() if "log_precisions" not in name]
    with torch.no_grad():
        for own, other in zip(plain.parameters(), weights, strict=True):
            own.copy_(other.reshape(own.shape))
    return plain


@pytest.mark.parametrize("norm", [None, "layer"])
@pytest.mark.parametrize("pooling", [True, False])
@pytest.mark.parametrize("padding, mode", [(0, "zeros"), (1, "circular")])
def test_is_wscnn_without_a_group(norm, pooling, padding, mode):
    same = {"in_channels": 2, "num_classes": 4, "hidden_channels": 3, "layers": 3, "norm": norm, "pooling": pooling}
    same |= {"padding": padding, "padding_mode": mode, "dtype": torch.float64}
    sharing = WSCNN(**same, group_size=1, pathways=("shared",))
    plain = with_weights_of(CNN(**same, kernel_size=3), sharing)
    x = torch.randn(3, 2, 15, 12, dtype=torch.float64)
    torch.testing.assert_close(plain(x), sharing(x), rtol=1e-10, atol=1e-12)  # sums in another order


def test_size_of_the_published_network():
    """arXiv 2412.04594: 412K."""
    net = CNN.published(device="meta")
    assert sum(p.numel() for p in net.parameters()) == 64 * 25 + 4 * 64**2 * 25 + 5 * 64 + 64 * 10 + 10 == 412_170
    assert net(torch.empty(2, 1, 28, 28, device="meta")).shape == (2, 10)


def test_published_sizes_may_be_changed():
    assert CNN.published(hidden_channels=8, norm=None).settings == CNN(1, 10, 8, 5, 5, pooling=False).settings


@pytest.mark.parametrize("layers, norm", [(1, "layer"), (3, "layer"), (3, "batch")])
def test_rebuilt_from_its_settings_and_state(layers, norm):
    net = CNN(2, 4, 2, 5, layers, norm=norm, pooling=False, padding=2, padding_mode="reflect")
    twin = CNN(**net.settings)
    twin.load_state_dict(net.state_dict())
    x = torch.randn(3, 2, 8, 8)
    assert net(x).shape == (3, 4) and torch.equal(net(x), twin(x))
    assert len(list(net.norms.parameters())) == (2 * layers if norm == "batch" else 0)
    assert repr(net) == repr(twin)


BAD = [
    ({"layers": 0}, "layers=0: expected at least 1"),
    ({"kernel_size": 0}, "kernel_size=0: expected at least 1"),
    ({"num_classes": 1}, "num_classes=1: expected at least 2"),
    ({"in_channels": 0}, "in_channels=0: expected at least 1"),
    ({"hidden_channels": -1}, "hidden_channels=-1: expected at least 1"),
    ({"norm": "group"}, "norm='group': expected 'layer', 'batch' or None"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[str(a) for a, _ in BAD])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CNN(**arguments)

"""share: the same function at the start, whatever the network; what stays, and why."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import bayesws as bws
from bayesws.layers import Conversion, FoldGroup, WSConv2d, WSLiftConv2d, WSLinear, sharing_plan


def network(dtype=torch.float64):
    """What people have: normalisation, pooling, Flatten, a linear layer before the head; no weight at its start."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 4, 16),
        nn.Tanh(),
        nn.Linear(16, 10),
    ).to(dtype)
    randomise(net)
    return net.eval()


def randomise(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * (1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5))


def images(n=5, channels=3, side=8, dtype=torch.float64):
    return torch.randn(n, channels, side, side, dtype=dtype)


STACKS = {
    "dense": {},
    "product": {"stack": "product"},
    "power": {"stack": "power"},
    "fixed": {"stack": "fixed"},
    "two elements": {"group_size": 2},
    "one element": {"group_size": 1},
    "free alone": {"stack": "fixed", "pathways": ("free",)},
}
every_stack = pytest.mark.parametrize("arguments", STACKS.values(), ids=STACKS)


@every_stack
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_same_function_at_the_start(arguments, dtype, tolerance):
    net, x = network(dtype), images(dtype=dtype)
    shared = bws.share(net, **arguments)
    expected = net(x)
    torch.testing.assert_close(shared(x), expected, rtol=0, atol=tolerance * expected.abs().max().item())


@every_stack
def test_the_network_is_left_as_it_is(arguments):
    net, x = network(), images()
    before, state = net(x), copy.deepcopy(net.state_dict())
    shared = bws.share(net, **arguments)
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.zero_()
    assert torch.equal(net(x), before) and state.keys() == net.state_dict().keys()


def test_layers_by_their_place():
    shared = bws.share(network())
    assert isinstance(shared[0].layer, WSLiftConv2d)  # images have no group axis
    conv = shared[4].layer
    assert isinstance(conv, WSConv2d) and (conv.in_channels, conv.out_channels) == (2, 3)
    assert isinstance(shared[7].layer, WSLinear) and type(shared[9]) is nn.Linear


def test_a_layer_that_no_shared_one_feeds_lifts():
    # 4 channels of an image, and 6 channels of a layer that stays, are a multiple of G, but no group features
    net = nn.Sequential(nn.Conv2d(4, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 4, 1))
    kinds = [row.becomes for row in sharing_plan(net, group_size=4)]
    assert kinds == [None, "WSLiftConv2d", "WSConv2d"]


def test_group_convolution_is_found_as_shared():
    """A hardened p4 convolution holds turned copies: with its group known, the free pathway gets nothing."""
    sharing = {"stack": "fixed", "pathways": ("shared",), "dtype": torch.float64}
    plain = bws.harden(FoldGroup(WSLiftConv2d(2, 3, 3, **sharing)))
    found = bws.share(plain, stack="fixed").layer
    assert found.free.abs().max() < 1e-14 and found.shared.abs().max() > 0.1


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.again = self.first
        self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.a(self.first(torch.tanh(self.again(x)))) + self.b(x)


def test_a_module_at_two_places_stays_one():
    net = Tied().double()
    shared, x = bws.share(net), torch.randn(3, 8, dtype=torch.float64)
    assert shared.first is shared.again and isinstance(shared.first, FoldGroup)
    assert shared.a.weight is shared.b.weight and type(shared.a) is nn.Linear
    torch.testing.assert_close(shared(x), net(x), rtol=0, atol=1e-10)


class Subclass(nn.Linear):
    pass


def hooked():
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda *_: None)
    return layer


STAYS = {
    "its outputs": (lambda: nn.Linear(4, 10), "10 outputs are no multiple of group_size=4"),
    "groups": (lambda: nn.Conv2d(4, 8, 3, groups=2), "groups=2: expected groups=1"),
    "its size": (lambda: nn.Linear(513, 4), "513 × 513 are larger than largest_stack=262144"),
    "a subclass": (lambda: Subclass(4, 4), "a Subclass: expected one of Linear, Conv2d"),
    "Conv1d": (lambda: nn.Conv1d(4, 4, 1), "a Conv1d: expected one of Linear, Conv2d"),
    "a parametrization": (lambda: parametrizations.weight_norm(nn.Conv2d(1, 4, 3)), "Parametrized"),
    "a computed weight": (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), "computed from other parameters"),
    "hooks": (hooked, "it has hooks"),
    "its type": (lambda: nn.Linear(4, 4, dtype=torch.bfloat16), "torch.bfloat16: expected float32 or float64"),
}


@pytest.mark.parametrize("make, reason", STAYS.values(), ids=STAYS)
def test_what_cannot_be_shared_stays_and_says_why(make, reason):
    net = nn.ModuleList([nn.Linear(4, 8), make()])
    first, second = sharing_plan(net)
    assert first == Conversion("0", "Linear", "WSLinear") and second.becomes is None and reason in second.reason
    shared = bws.share(net)
    assert type(shared[1]) is type(net[1]) and isinstance(shared[0], FoldGroup)
    with pytest.raises(ValueError, match="nothing in this ModuleList can be shared: layer '0': "):
        bws.share(net[1:])


def test_a_stack_that_does_not_fit_is_a_reason():
    rows = {row.name: row for row in sharing_plan(network(), stack="fixed")}
    assert rows["4"].becomes == "WSConv2d" and rows["7"].becomes is None
    assert "'quarter-turns' on a 48 support" in rows["7"].reason


def test_what_is_to_be_kept_and_the_largest_stack():
    rows = sharing_plan(network(), keep=("4",), largest_stack=47**2)
    assert [row.becomes for row in rows] == ["WSLiftConv2d", None, None, None]
    assert rows[1].reason == "its name is in keep" and "48 × 48" in rows[2].reason


def test_mode_and_what_is_trained_are_kept(device):
    net = network(torch.float32).to(device)
    net[0].requires_grad_(False)
    net[4].bias.requires_grad_(False)
    net[7].train()
    shared = bws.share(net)
    assert not any(p.requires_grad for p in shared[0].parameters())
    trained = {name for name, p in shared[4].named_parameters() if p.requires_grad}
    assert "layer.shared" in trained and not {"layer.bias", "layer.log_precisions.bias"} & trained
    assert all(m.training for m in shared[7].modules()) and not shared[4].layer.training
    tensors = [*shared.parameters(), *shared.buffers()]
    assert all(t.device.type == device for t in tensors)
    assert all(t.dtype == torch.float32 for t in tensors if t.is_floating_point())


def test_flat_layers_show_the_weights_of_plain_ones():
    net = network()
    shared = bws.share(net)
    for place in (0, 4, 7):
        torch.testing.assert_close(shared[place].weight, net[place].weight, rtol=0, atol=1e-12)
        bias = net[place].bias
        if bias is None:
            assert shared[place].bias is None
        else:  # the mean over copies and the rest
            torch.testing.assert_close(shared[place].bias, bias, rtol=0, atol=1e-12)


def test_a_transformer_that_reads_its_layers_weights():
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=torch.float64).eval()
    shared, x = bws.share(net), torch.randn(2, 3, 8, dtype=torch.float64)
    assert isinstance(shared.linear1, FoldGroup) and isinstance(shared.linear2, FoldGroup)
    for context in (torch.no_grad(), torch.enable_grad()):  # the fast path calls no layer at all
        with context:
            torch.testing.assert_close(shared(x), net(x), rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:layer '1' normalises", "ignore:the log evidence still moved")
@pytest.mark.parametrize("objective", ["evidence", "task"])
@pytest.mark.parametrize("stack", ["dense", "fixed"])
def test_a_shared_network_can_be_fitted_saved_and_loaded(objective, stack, tmp_path):
    net, x, y = network(torch.float32), images(12, dtype=torch.float32), torch.arange(12) % 10
    shared = bws.share(net, stack=stack)
    settings = {"weight_decays": (1e-3,)} if objective == "task" else {"every": 1}
    fit = bws.fit(shared, (x, y), objective=objective, epochs=4, **settings, progress=False)
    sharing = [row for row in fit.sharing if not math.isnan(row.strength)]
    assert [row.name for row in sharing] == [f"{i}.layer" for i in ((0, 4, 7) if stack == "dense" else (0, 4))]
    assert {"shared", "free", "bias"} <= sharing[1].effective.keys()
    plain = {row.name for row in fit.sharing} - {row.name for row in sharing}
    assert plain == ({"1", "9"} if stack == "dense" else {"1", "7", "9"})  # a normalisation, and what stays plain
    fit.save(tmp_path / "fit")
    again = bws.FitResult.load(tmp_path / "fit", model=bws.share(net, stack=stack))
    assert torch.equal(again.predict(x, "posterior"), fit.predict(x, "posterior"))

"""harden: plain torch modules, the same outputs, and no need of this library."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from test_layers_contract import CASES, build, inputs
from torch import fx, nn

import bayesws as bws
from bayesws.layers import Deriving, FoldGroup, WeightSharing, WSConv2d, WSLiftConv2d, WSLinear


def moved(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return net


def wscnn(dtype=torch.float32, **arguments):
    arguments = {"hidden_channels": 2, "layers": 3, "num_classes": 3} | arguments
    return moved(bws.models.WSCNN(**arguments, dtype=dtype))


def plain_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 12),
        nn.ReLU(),
        nn.Linear(12, 3),
    )


NETS = {
    "fixed": lambda: wscnn(),
    "fixed, shared alone": lambda: wscnn(pathways=("shared",)),
    "fixed, free alone": lambda: wscnn(pathways=("free",)),
    "dense": lambda: wscnn(stack="dense"),
    "product, shared alone": lambda: wscnn(stack="product", pathways=("shared",)),
    "power, reflected": lambda: wscnn(stack="power", padding=1, padding_mode="reflect"),
    "one element": lambda: wscnn(group_size=1),
    "a group for every layer": lambda: wscnn(group_size=4, group=("dihedral", "flips", "quarter-turns")),
    "one layer": lambda: wscnn(layers=1),
    "shared": lambda: bws.share(moved(plain_net())),
    "shared, fixed": lambda: bws.share(moved(plain_net()), stack="fixed"),
}
every_net = pytest.mark.parametrize("make", NETS.values(), ids=NETS)


def images(n=4, side=14, dtype=torch.float32):
    return torch.randn(n, 1, side, side, dtype=dtype)


@torch.no_grad()
def largest_difference(a, b, x):
    """Relative to the largest output."""
    expected = a(x)
    return ((b(x) - expected).abs().max() / expected.abs().max()).item()


@every_net
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_same_outputs_for_any_batch_size(make, dtype, tolerance):
    net = make().to(dtype).eval()
    hard = bws.harden(net, images(2, dtype=dtype))
    for n in (1, 2, 7):
        assert largest_difference(net, hard, images(n, dtype=dtype)) <= tolerance


@every_net
def test_made_of_torch_alone(make):
    hard = bws.harden(make(), images())
    assert all(type(m).__module__.startswith("torch.") for m in hard.modules())
    text = str(hard) + (hard.code if isinstance(hard, fx.GraphModule) else "")
    assert "bayesws" not in text and "logits" not in str(hard.state_dict().keys())
    assert not any(m.training for m in hard.modules())


@every_net
def test_the_network_is_left_as_it_is(make):
    net, x = make().train(), images()
    state = copy.deepcopy(net.state_dict())
    bws.harden(net, x)
    assert all(m.training for m in net.modules())
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("name, stack, pathways", CASES)
@pytest.mark.parametrize("bias", [True, False, "free"])
def test_every_layer_is_one_plain_layer(name, stack, pathways, bias):
    layer, x = build(name, stack, pathways, bias=bias), inputs(name)
    hard = bws.harden(layer)
    torch.testing.assert_close(hard(x), layer(x), rtol=1e-12, atol=1e-13)
    (plain,) = [m for m in hard.modules() if isinstance(m, nn.Conv2d | nn.Conv3d | nn.Linear)]
    assert (plain.bias is None) == (not bias) and len(list(hard.parameters())) == (2 if bias else 1)


def test_a_fully_shared_layer_is_a_group_convolution():
    """Its kernel holds the turned copies, and the plain layer is equivariant."""
    layer = WSLiftConv2d(2, 3, 3, padding=1, stack="fixed", pathways=("shared",), dtype=torch.float64)
    hard, x = bws.harden(FoldGroup(layer)), torch.randn(2, 2, 5, 5, dtype=torch.float64)
    assert type(hard) is nn.Conv2d and hard.weight.shape == (12, 2, 3, 3)
    for g in range(4):
        torch.testing.assert_close(hard.weight[g::4], torch.rot90(hard.weight[::4], g, (-2, -1)), rtol=0, atol=1e-15)
    turned = hard(torch.rot90(x, 1, (-2, -1))).unflatten(1, (3, 4))
    expected = torch.rot90(hard(x), 1, (-2, -1)).unflatten(1, (3, 4)).roll(1, 2)
    torch.testing.assert_close(turned, expected, rtol=1e-12, atol=1e-13)


def test_a_plain_network_comes_back():
    net = moved(plain_net()).double().eval()
    hard = bws.harden(bws.share(net))
    assert str(hard) == str(net)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(hard.state_dict()[name], value, rtol=0, atol=1e-12)


def test_a_fit_can_be_hardened():
    x, y = images(12, side=8), torch.arange(12) % 3
    fit = bws.fit(bws.models.WSCNN(num_classes=3, hidden_channels=2), (x, y), epochs=2, progress=False)
    hard = bws.harden(fit, x[:1])
    torch.testing.assert_close(hard(x).softmax(-1), fit.predict(x, kind="map"), rtol=1e-5, atol=1e-6)


LOADS = """
import sys
sys.modules["bayesws"] = None  # importing it is an ImportError
import torch
x, expected = torch.load(sys.argv[1] + "/data.pt")
exported = torch.export.load(sys.argv[1] + "/net.pt2").module()
pickled = torch.load(sys.argv[1] + "/net.pt", weights_only=False)
assert not [name for name in sys.modules if name.startswith("bayesws.")]
for net in (exported, pickled):
    print(((net(x) - expected).abs().max() / expected.abs().max()).item())
"""


@pytest.mark.parametrize("kind", ["fixed", "dense", "shared", "shared, fixed"])
def test_exported_and_pickled_it_runs_where_this_library_is_not(kind, tmp_path):
    net = NETS[kind]().eval()
    hard = bws.harden(net, images(2))
    batch = torch.export.Dim("batch")
    program = torch.export.export(hard, (images(2),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    torch.save(hard, tmp_path / "net.pt")
    x = images(5)
    torch.save((x, net(x).detach()), tmp_path / "data.pt")
    (tmp_path / "load.py").write_text(LOADS)
    command = [sys.executable, "load.py", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(float(line) <= 1e-6 for line in done.stdout.split()) and len(done.stdout.split()) == 2


class Own(nn.Module):
    """A user's network: control flow on shapes, a buffer, in-place, several outputs of one call, operators."""

    def __init__(self):
        super().__init__()
        self.lift = WSLiftConv2d(1, 2, 3, padding=1, group_size=2, group="half-turns", stack="fixed")
        self.conv = WSConv2d(2, 2, 3, group_size=2, group="half-turns", stack="fixed", bias="free")
        self.linear = WSLinear(8, 3, group_size=2, stack="dense")
        self.norm = nn.Sequential(nn.LayerNorm(8), nn.Dropout(0.5))
        self.register_buffer("scale", torch.tensor(0.5))
        self.shift = nn.Parameter(torch.ones(8))

    def forward(self, x):
        n, _, height, _ = x.shape
        y = F.relu(self.lift(1 - x * self.scale), inplace=True)
        y = self.conv(y) if height > 4 else y
        y.tanh_()
        left, right = y.reshape(n, 4, -1).chunk(2, dim=2)
        y = torch.cat([left[..., :2].amax(-1), right.max(dim=-1).values], 1)
        y = self.norm(y.view(y.size(0), -1)) + self.shift
        return F.dropout(self.linear(y).mT, 0.5, self.training).mT.mean(dim=-1) @ torch.eye(3, device=x.device)


@pytest.mark.parametrize("side", [4, 7])
def test_a_network_of_ones_own_keeps_its_class_or_is_written_down(side):
    net, x = moved(Own()).eval(), images(2, side)
    kept, written = bws.harden(net), bws.harden(net, x)
    assert type(kept) is Own and type(written) is not Own
    for hard in (kept, written, pickle.loads(pickle.dumps(written))):
        assert largest_difference(net, hard, images(5, side)) <= 1e-6


class Strange(Own):
    def __init__(self, forward):
        super().__init__()
        self.strange = forward

    def forward(self, x):
        return self.strange(self, x)


constant = torch.ones(3)
STRANGE = {
    "branches": (lambda s, x: x if x.sum() > 0 else -x, "calls __bool__ on a tensor"),
    "reads": (lambda s, x: x * x.max().item(), "calls item on a tensor"),
    "writes": (lambda s, x: x.__setitem__(0, 1.0), "calls __setitem__ on a tensor"),
    "counts": (lambda s, x: x.flatten(1) + torch.arange(len(x))[:, None] * x.shape[2], "something else at 3"),
    "folds": (lambda s, x: x.reshape(2 * len(x), -1), "something else at 3"),
    "constant": (lambda s, x: x * constant.sum(), "neither its input"),
    "two outputs": (lambda s, x: (x, x), "a tuple: expected one tensor"),
}


@pytest.mark.parametrize("forward, message", STRANGE.values(), ids=STRANGE)
def test_what_cannot_be_written_down_is_refused(forward, message):
    with pytest.raises(ValueError, match=message) as error:
        bws.harden(Strange(forward), images(2))
    assert "\n" not in str(error.value)


class OtherDeriving(Deriving):
    pass


class OtherSharing(WeightSharing):
    def __init__(self):
        super().__init__(1, 1, (2,), False, True, bws.Sharing(1, "fixed", pathways=("free",)), None, None)


BAD = [
    (lambda: bws.harden(OtherDeriving()), "a OtherDeriving to harden: expected WSLinear or a convolution"),
    (lambda: bws.harden(OtherSharing()), "a OtherSharing to harden: expected WSLinear or a convolution"),
    (lambda: bws.harden("net"), "a str to harden: expected a network or a FitResult"),
    (lambda: bws.harden(wscnn(), images()[0]), r"\(1, 14, 14\): expected \(batch, 1, height, width\)"),
    (lambda: bws.harden(wscnn(), images().expand(-1, 3, -1, -1)), r"\(4, 3, 14, 14\): expected \(batch, 1, "),
    (lambda: bws.harden(wscnn(), images(side=4)), "smaller than the 3×3 that the kernel spans"),
    (lambda: bws.share("net"), "a str to share: expected an nn.Module"),
]


@pytest.mark.parametrize("call, message", BAD)
def test_bad_arguments(call, message, without_type_checks):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)

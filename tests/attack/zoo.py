"""A zoo of networks, most of them small and none of them ours to design, each with what its evidence must do.

A row is a network, the shape of one datum, and the pattern of the refusal; "" where the evidence must be exact.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from networks import half_shift, half_turn
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from bayesws.layers import FoldGroup, WSConv2d, WSLiftConv2d, WSLinear, harden

VECTOR, IMAGE, SEQUENCE = (4,), (2, 4, 4), (3, 4)
CLASSES = 3
EXACT = ""
MIXING, RANDOM = "depend on that datum alone", "the same every time"
OUTSIDE, CUT, OTHERWISE = "acts outside its layer's own calls", "gradient does not reach", "acts otherwise than its"
UNTREATED, TIED, BATCH_FIRST = "expected parameters of nn.Linear", "shares a parameter", "batch as its first dimension"


class Way(nn.Module):
    """Two linear layers, more modules by name, and a row's own way through them."""

    def __init__(self, way, **more):
        super().__init__()
        self.a, self.b, self.way = nn.Linear(4, 4), nn.Linear(4, CLASSES), way
        self.calls = 0
        for name, module in more.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.way(self, x)


def frozen(module):
    return module.requires_grad_(False)


def chain(*modules, features):
    """Modules, then a linear head on what they give."""
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(features, CLASSES))


def hooked(hook, before=False):
    """A network with a hook of the user's own on its first layer."""
    net = Way(lambda n, x: n.b(torch.tanh(n.a(x))))
    (net.a.register_forward_pre_hook if before else net.a.register_forward_hook)(hook)
    return net


def with_statistics(norm):
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return norm


class Doubling(torch.autograd.Function):
    """A function of one's own that keeps to torch.func, and whose gradient is not its derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x + 0.1 * x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return -2 * gradient


class OwnLinear(torch.autograd.Function):
    """x Wᵀ by a function of one's own."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.mT

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.mT @ x


class Gated(nn.Linear):
    """A linear layer that does what no declaration says, for large inputs."""

    at = 0.0

    def forward(self, x):
        return super().forward(x) * torch.where(x[:, :1].abs() > self.at, 2.0, 1.0)


class RarelyGated(Gated):
    at = 1.2


class Standardised(nn.Conv2d):
    """Weight standardisation."""

    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return self._conv_forward(x, w, self.bias)


class LowRank(nn.Module):
    """A low-rank adapter by parameters of its own."""

    def __init__(self):
        super().__init__()
        self.base, self.up = frozen(nn.Linear(4, CLASSES)), nn.Parameter(torch.randn(CLASSES, 1))
        self.down = nn.Parameter(torch.randn(1, 4))

    def forward(self, x):
        return self.base(x) + x @ (self.up @ self.down).mT


class Recurrent(nn.Module):
    """Torch's recurrent layers, the last state read out."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.head = cell(4, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class Attention(nn.Module):
    """Attention over positions by torch's own module."""

    def __init__(self, train=True):
        super().__init__()
        self.attend, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, CLASSES)
        self.attend.requires_grad_(train)

    def forward(self, x):
        return self.head(self.attend(x, x, x, need_weights=False)[0].mean(1))


class Tokens(nn.Module):
    """Numbers that stand for words."""

    def __init__(self, train):
        super().__init__()
        self.words, self.head = nn.Embedding(5, 4), nn.Linear(4, CLASSES)
        self.words.requires_grad_(train)

    def forward(self, x):
        return self.head(self.words((x[..., 0].abs() * 2).long().clamp(max=4)).mean(1))


def tied():
    net = Way(lambda n, x: n.b(n.c(n.a(x))), c=nn.Linear(4, 4))
    net.c.weight = net.a.weight
    return net


def tied_by_memory():
    net = Way(lambda n, x: n.b(n.c(n.a(x))), c=nn.Linear(4, 4))
    net.c.weight = nn.Parameter(net.a.weight.detach().T)
    return net


def backward_hooked():
    net = Way(lambda n, x: n.b(tanh_of(n, x)))
    net.b.register_full_backward_hook(lambda module, inputs, outputs: (2 * inputs[0],))
    return net


def weight_hooked():
    net = Way(lambda n, x: n.b(tanh_of(n, x)))
    net.a.weight.register_hook(lambda gradient: 2 * gradient)
    return net


def gradient_hooked(n, x):
    h = tanh_of(n, x)
    if h.requires_grad:
        h.register_hook(lambda gradient: 2 * gradient)
    return n.b(h)


def lazy():
    net = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(CLASSES))
    net(torch.zeros(2, 4))
    return net


def within(context, inside, after):
    def way(net, x):
        with context():
            h = inside(net, x)
        return after(net, h, x)

    return way


def by_datum(net, x):
    """One datum after the other, each by a way that depends on it."""
    return torch.stack([row.sum() * row if row[0] > 0 else row.flip(0) for row in net.b(torch.tanh(net.a(x)))])


def in_another_thread(net, x):
    with ThreadPoolExecutor(1) as pool:
        return net.b(pool.submit(net.a, x).result())


def experts(net, x):
    """Each datum by the expert that it is sent to, alone."""
    out = x.new_zeros(len(x), 4)
    for mask, expert in ((x[:, 0] > 0, net.a), (x[:, 0] <= 0, net.c)):
        out = out.index_put((mask,), expert(x[mask]))
    return net.b(out)


def attending(net, x):
    """Attention over positions, by linear maps."""
    scores = net.a(x) @ net.c(x).mT / 2
    return net.b((scores.softmax(-1) @ x).mean(1))


def elman(net, x):
    """A recurrent network by hand: one layer called for every step."""
    h = torch.zeros_like(x[:, 0])
    for step in x.unbind(1):
        h = torch.tanh(net.a(h) + net.c(step))
    return net.b(h)


def equilibrium(net, x):
    h = torch.zeros_like(x)
    for _ in range(5):
        h = torch.tanh(0.3 * net.a(h) + x)
    return net.b(h)


def halting(net, x):
    """As many steps as the slowest datum of the batch asks for; a datum that has halted stays."""
    h, going = x, torch.ones_like(x[:, :1], dtype=torch.bool)
    while going.any():
        new = torch.where(going, torch.tanh(net.a(h)), h)
        going, h = going & (new.norm(dim=1, keepdim=True) > 0.8) & ((new - h).norm(dim=1, keepdim=True) > 0.3), new
    return net.b(h)


def remembering(net, x):
    """Outputs that lean on what was seen before."""
    net.calls += 1
    return net.b(net.a(x)) + 0.01 * net.calls


def late(net, x):
    """The first calls are all the same."""
    net.calls += 1
    return net.b(net.a(x)) * (1.0 if net.calls < 9 else 1.0 + 0.1 * net.calls)


def by_size(way, least):
    """Another way for large batches."""
    return lambda n, x: way(n, x) if len(x) >= least else n.b(torch.tanh(n.a(x)))


def rolled_back(by):
    return lambda n, x: n.b(torch.tanh(n.a(x.roll(by, 0)).roll(-by, 0)))


def mean_by_gradient_alone(n, x):
    h = torch.tanh(n.a(x))
    return n.b(h + h.mean(0) - h.mean(0).detach())


def groups_of(size):
    def way(n, x):
        h = torch.tanh(n.a(x))
        parts = h.split(size)
        return n.b(torch.cat([p - 0.5 * p.mean(0) if len(p) == size else p for p in parts]))

    return way


def on_rare_data(use):
    """A use of a weight that most data do not show."""
    return lambda n, x: n.b(torch.relu(n.a(x))) + use(n, x) * (x[:, :1].abs() > 1.2)


def weight_of(n, x):
    return F.linear(x, n.a.weight)[:, :CLASSES]


SHARING = [
    *(("fixed", ("shared", "free")), ("fixed", ("shared",)), ("fixed", ("free",)), ("dense", ("shared", "free"))),
    *(("product", ("shared",)), ("power", ("shared", "free")), ("dense", ("shared",))),
]


def sharing_linear(stack, pathways):
    group = half_shift(4) if stack == "fixed" else None
    layer = WSLinear(4, 2, group_size=2, stack=stack, pathways=pathways, group=group)
    return nn.Sequential(layer, nn.Flatten(), nn.Tanh(), nn.Linear(4, CLASSES))


def sharing_convolutions(stack, pathways):
    options = {"group_size": 2, "stack": stack, "pathways": pathways, "group": None}
    if stack == "fixed":
        options["group"] = half_turn(2, 2)
    lift, conv = WSLiftConv2d(2, 2, 2, **options), WSConv2d(2, 1, 2, group_size=2, stack="dense")
    return nn.Sequential(lift, nn.Tanh(), conv, nn.Flatten(), nn.Linear(8, CLASSES))


def zeroed_view(n, x):
    h = n.a(x)
    h[:, 0] = 0
    return n.b(h)


def written_beside(n, x):
    h = n.a(x)
    h[1:] += 0.3 * h[:-1].clone()
    return n.b(h)


def written_after(n, x):
    h = tanh_of(n, x)
    x.mul_(0.9)
    return n.b(h + x)


def tanh_of(n, x):
    return torch.tanh(n.a(x))


def needing_two(n, x):
    if len(x) < 2:
        raise RuntimeError("one datum is not enough")
    return n.b(n.a(x) - n.a(x).mean(0))


def half_stopped(h):
    return h + h.detach().sin()


def rounded(h):
    return h + (h.round() - h).detach()


def opposite_signs(n, x):
    """What a weight does for one datum is taken back for the next, in what a sum over both would show."""
    return n.b(tanh_of(n, x)) + x[:, :1].sign() * n.a.weight[0, :CLASSES]


def other_weights(n, x):
    weights = {"weight": 2 * n.a.weight, "bias": n.a.bias}
    return n.b(torch.tanh(functional_call(n.a, weights, (x,))))


def biases_only():
    net = Way(lambda n, x: n.b(tanh_of(n, x)))
    for layer in (net.a, net.b):
        layer.weight.requires_grad_(False)
    return net


def only_head(net):
    net.cell.requires_grad_(False)
    return net


def folded():
    lift = FoldGroup(WSLiftConv2d(2, 2, 2, group_size=2, stack="dense"))
    return nn.Sequential(lift, nn.Tanh(), nn.Flatten(), nn.Linear(36, CLASSES))


def hardened():
    return harden(sharing_linear("dense", ("shared", "free")))


def adapter():
    net = Way(lambda n, x: n.c(x) + n.b(n.a(x)), c=frozen(nn.Linear(4, CLASSES)))
    net.a, net.b = nn.Linear(4, 1, bias=False), nn.Linear(1, CLASSES, bias=False)
    return net


def with_parameter():
    net = Way(lambda n, x: n.b(n.a(x)) * n.scale)
    net.scale = nn.Parameter(torch.ones(()))
    return net


def checkpointed(module, x, reentrant):
    return checkpoint(module, x, use_reentrant=reentrant)

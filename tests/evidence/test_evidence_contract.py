"""What log_evidence promises whatever the network: bounds, batches, priors, side effects, errors."""

import warnings

import networks
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from bayesws import Categorical, Gaussian, log_evidence
from bayesws.evidence.likelihood import likelihood_named
from bayesws.layers import WSLinear

every_net = pytest.mark.parametrize("sharing", networks.SHARING, ids=networks.SHARING_IDS)
every_curvature = pytest.mark.parametrize("curvature", ["full", "diag", "kron"])
N, OUTPUTS = 6, 3


def problem(sharing=("fixed", networks.BOTH, 2)):
    return networks.EveryLayer(*sharing, OUTPUTS), networks.images(N), torch.arange(N) % OUTPUTS


@every_net
@every_curvature
def test_bounds(sharing, curvature):
    net, x, y = problem(sharing)
    found = log_evidence(net, (x, y), curvature=curvature)
    assert found.occam >= 0 and found.scatter >= 0 and found.data_fit <= 0
    for share in found.by_pathway.values():
        assert -1e-12 <= share.effective.item() <= share.parameters  # rounding of 1 - (entry of an inverse)
        assert (share.occam is None) == (curvature == "full")
    if curvature == "full":  # no more than the data can say: N (C - 1) numbers
        assert sum(share.effective.item() for share in found.by_pathway.values()) <= N * (OUTPUTS - 1)


@every_net
@every_curvature
def test_batch_size_does_not_matter(sharing, curvature):
    net, x, y = problem(sharing)
    whole = log_evidence(net, (x, y), curvature=curvature)
    for size in (1, 4):  # 4: the last batch is smaller
        parts = log_evidence(net, (x, y), curvature=curvature, batch_size=size)
        # sums over data in another order
        assert float(parts) == pytest.approx(float(whole), rel=1e-10)
        for name, share in parts.by_pathway.items():
            expected = whole.by_pathway[name].effective.item()
            assert share.effective.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@every_net
@every_curvature
def test_no_grad_gives_the_same_value(sharing, curvature):
    net, x, y = problem(sharing)
    with_graph = log_evidence(net, (x, y), curvature=curvature)
    with torch.no_grad():
        without = log_evidence(net, (x, y), curvature=curvature)
    assert not without.total.requires_grad and with_graph.total.requires_grad
    assert float(without) == pytest.approx(float(with_graph), rel=1e-12)


class Pairs(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], int(self.y[index])


class Stream(IterableDataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        return iter(zip(self.x, self.y, strict=True))


FORMS = {
    "list": lambda x, y: [x, y],
    "TensorDataset": TensorDataset,
    "Dataset": Pairs,
    "DataLoader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=4),
    "DataLoader without a length": lambda x, y: DataLoader(Stream(x, y), batch_size=4),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_data(form):
    net, x, y = problem()
    found = log_evidence(net, FORMS[form](x, y))
    assert float(found) == pytest.approx(float(log_evidence(net, (x, y))), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_curvature
def test_type_and_device(dtype, curvature, device):
    net, x, y = problem(("dense", networks.BOTH, 2))
    expected = float(log_evidence(net, (x, y), curvature=curvature))
    net, x, y = net.to(device, dtype), x.to(device, dtype), y.to(device)
    found = log_evidence(net, (x, y), curvature=curvature)
    assert found.total.dtype == dtype and found.total.device.type == device
    # float32: 6e-8 times the condition of a hundred-row determinant
    assert float(found) == pytest.approx(expected, rel=1e-10 if dtype == torch.float64 else 1e-4)


# The prior


@every_curvature
def test_one_prior_for_all(curvature):
    net, x, y = problem()
    found = log_evidence(net, (x, y), curvature=curvature, prior=1.5)
    named = dict.fromkeys(found.by_pathway, 1.5)
    assert float(log_evidence(net, (x, y), curvature=curvature, prior=named)) == float(found)
    assert all(share.log_precision.item() == 1.5 for share in found.by_pathway.values())


@every_net
@every_curvature
def test_prior_handed_over_is_the_prior_held_by_the_layers(sharing, curvature):
    net, x, y = problem(sharing)
    given = {"lift": ("shared", 0.5), "conv": ("free", -0.25), "twice": ("bias", 1.0)}
    given = {k: v for k, v in given.items() if v[0] in net.get_submodule(k).log_precisions}
    prior = {f"{layer}.{name}": value for layer, (name, value) in given.items()}
    if sharing[1] == networks.SHARED and sharing[0] != "fixed":
        prior["lift.residual"] = prior["lift.shared"]  # one precision, two pathways
    found = float(log_evidence(net, (x, y), curvature=curvature, prior=prior))
    with torch.no_grad():
        for layer, (name, value) in given.items():
            net.get_submodule(layer).log_precisions[name].fill_(value)
    assert found == pytest.approx(float(log_evidence(net, (x, y), curvature=curvature)), rel=1e-12)


def test_prior_is_not_rounded_to_float32():
    net, x, y = problem()
    share = log_evidence(net, (x, y), prior={"lift.shared": 0.1}).by_pathway["lift.shared"]
    assert share.log_precision.item() == 0.1


@every_curvature
def test_pathways_that_are_not_named_keep_their_own(curvature):
    net, x, y = problem()
    own = log_evidence(net, (x, y), curvature=curvature)
    some = log_evidence(net, (x, y), curvature=curvature, prior={"head.weight": 2.0})
    for name, share in some.by_pathway.items():
        expected = 2.0 if name == "head.weight" else own.by_pathway[name].log_precision.item()
        assert share.log_precision.item() == expected
    assert own.by_pathway["head.weight"].log_precision.item() == 0.0


def test_unknown_prior_names_are_refused():
    net, x, y = problem()
    with pytest.raises(ValueError, match=r"prior for 'heads.weight': expected pathways among lift.shared"):
        log_evidence(net, (x, y), prior={"heads.weight": 0.0})


def test_frozen_layers_are_left_out():
    net, x, y = problem()
    net.plain.requires_grad_(False)
    net.twice.requires_grad_(False)
    found = log_evidence(net, (x, y))
    assert not [n for n in found.by_pathway if n.startswith(("plain", "twice"))]


@pytest.mark.parametrize("pathway", ["shared", "free", "bias"])
def test_one_frozen_pathway_is_left_out(pathway):
    net = networks.Linear("fixed", networks.BOTH, 2)
    net.map.get_parameter(pathway).requires_grad_(False)
    x, y = torch.randn(N, 4, dtype=torch.float64), torch.arange(N) % 4
    assert f"map.{pathway}" not in log_evidence(net, (x, y)).by_pathway


def test_network_that_is_one_layer():
    net = nn.Linear(3, 2, dtype=torch.float64)
    x, y = torch.randn(N, 3, dtype=torch.float64), torch.arange(N) % 2
    assert list(log_evidence(net, (x, y)).by_pathway) == ["weight", "bias"]


@every_curvature
def test_layer_that_is_never_called_costs_only_its_scatter(curvature):
    net, x, y = problem()
    without = log_evidence(net, (x, y), curvature=curvature)
    net.spare = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    found = log_evidence(net, (x, y), curvature=curvature)
    spare = found.by_pathway["spare.weight"]
    assert spare.effective.item() == 0.0
    expected = float(without) - 0.5 * net.spare.weight.square().sum().item()
    assert float(found) == pytest.approx(expected, rel=1e-12)


# Side effects


def test_dropout_is_off_and_modes_are_put_back():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3, dtype=torch.float64), nn.Dropout(0.5))
    x, y = networks.images(N), torch.arange(N) % 3
    net[1].eval()  # its own mode, unlike the network's
    before = [m.training for m in net.modules()]
    assert float(log_evidence(net, (x, y))) == float(log_evidence(net, (x, y)))
    assert [m.training for m in net.modules()] == before


def test_no_hook_stays_behind():
    net, x, y = problem()
    log_evidence(net, (x, y))
    with pytest.raises(ValueError):
        log_evidence(net, (x, y + 7))
    assert not any(m._forward_hooks for m in net.modules()) and net.training


# What is refused


def bad_data():
    x, y = networks.images(N), torch.arange(N) % OUTPUTS
    nan = x.clone()
    nan[2, 0, 1, 1] = float("nan")
    infinite = x.clone()
    infinite[0] = float("inf")
    return {
        "NaN": ((nan, y), "inputs hold 1 NaN or infinite"),
        "infinite": ((infinite, y), "inputs hold 16 NaN or infinite"),
        "label too large": ((x, y + 1), "labels from 1 to 3: expected 0 to 2"),
        "label negative": ((x, y - 1), "labels from -1 to 1: expected 0 to 2"),
        "labels float": ((x, y.double()), "float64: expected.*integers"),
        "labels of two axes": ((x, y[:, None]), r"labels of shape \(6, 1\)"),
        "empty": ((x[:0], y[:0]), "expected at least one example"),
        "empty Dataset": (Pairs(x[:0], y[:0]), "empty: expected at least one"),
        "empty TensorDataset": (TensorDataset(x[:0], y[:0]), "expected at least one example"),
        "empty DataLoader": (DataLoader(TensorDataset(x[:0], y[:0])), "empty: expected at least one"),
        "lengths": ((x, y[:-1]), "6 inputs and 5 targets"),
        "channels": ((x.repeat(1, 2, 1, 1), y), r"2, 4, 4\): expected \(batch, 1, height, width\)"),
        "one tensor": (x, "type Tensor: expected a pair of tensors"),
        "three tensors": ((x, y, y), "number 2 and number 3 would both do as targets"),
        "NaN in a DataLoader": (DataLoader(TensorDataset(nan, y)), "NaN or infinite"),
    }


@pytest.mark.parametrize("what", bad_data())
@every_curvature
def test_bad_data(what, curvature, without_type_checks):
    data, message = bad_data()[what]
    net, _, _ = problem()
    with pytest.raises(ValueError, match=message) as raised:
        log_evidence(net, data, curvature=curvature)
    assert "\n" not in str(raised.value)


def squeezing():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 1, dtype=torch.float64), nn.Flatten(0))


def per_position():
    return nn.Sequential(nn.Linear(4, 3, dtype=torch.float64))


X, LABELS, VALUES = networks.images(N), torch.arange(N) % 3, torch.zeros(N, 3, dtype=torch.float64)
BAD_TARGETS = {
    "regression, too few": (
        lambda: networks.softmax_regression(16, 3),
        "regression",
        VALUES[:, :2],
        r"targets of shape \(6, 2\): expected \(6, 3\)",
    ),
    "regression, labels": (
        lambda: networks.softmax_regression(16, 3),
        "regression",
        LABELS,
        r"targets of shape \(6,\)",
    ),
    "regression, outputs without an axis": (squeezing, "regression", VALUES, "expected"),
    "regression, NaN targets": (
        lambda: networks.softmax_regression(16, 3),
        "regression",
        torch.full_like(VALUES, float("nan")),
        "NaN or infinite",
    ),
    "classification, outputs without an axis": (
        squeezing,
        "classification",
        LABELS,
        r"expected \(batch, classes\)",
    ),
    "classification, outputs by position": (
        per_position,
        "classification",
        LABELS,
        r"\(6, 1, 4, 3\): expected \(batch, classes\)",
    ),
}


@pytest.mark.parametrize("make, likelihood, y, message", BAD_TARGETS.values(), ids=BAD_TARGETS)
def test_bad_targets_and_outputs(make, likelihood, y, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        log_evidence(make(), (X, y), likelihood)


def two_heads(head):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4, dtype=torch.float64), head)


def shared_weight():
    net = nn.Sequential(nn.Flatten(), *(nn.Linear(16, 16, dtype=torch.float64) for _ in range(2)))
    net[2].weight = net[1].weight
    return net


def shared_stack():
    net = nn.Sequential(*(WSLinear(4, 2, group_size=2, dtype=torch.float64) for _ in range(2)), nn.Flatten())
    net[1].stack = net[0].stack
    return net


def lone_parameter():
    net = two_heads(nn.Linear(4, 3, dtype=torch.float64))
    net.scale = nn.Parameter(torch.ones(()))
    return net


def functional_use():
    """The head's weight is used a second time, by a function."""
    net = two_heads(nn.Linear(4, 3, dtype=torch.float64))

    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x) + self.net[2].weight.sum(1)

    return Again()


class Attending(nn.Module):
    """nn.MultiheadAttention calls its output map as a function: its hook never hears of it."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True, dtype=torch.float64)
        self.attention.in_proj_weight.requires_grad_(False)
        self.attention.in_proj_bias.requires_grad_(False)
        self.head = nn.Linear(16, 3, dtype=torch.float64)

    def forward(self, x):
        x = x.squeeze(1)
        return self.head(self.attention(x, x, x, need_weights=False)[0].flatten(1))


BAD_NETS = {
    "BatchNorm": (
        lambda: nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(16, 3)),
        "BatchNorm2d without running statistics: expected",
    ),
    "PReLU": (lambda: two_heads(nn.PReLU()), "parameter '2.weight' of a PReLU"),
    "ConvTranspose": (lambda: nn.Sequential(nn.ConvTranspose2d(1, 4, 3)), "parameter '0.weight' of a ConvTranspose2d"),
    "functional": (functional_use, "parameter 'net.2.weight' acts outside its layer's own calls"),
    "attention": (Attending, "parameter 'attention.out_proj.weight' acts outside its layer's own calls"),
    "shared weight": (shared_weight, "layer '2' shares a parameter with another layer"),
    "shared stack": (shared_stack, "layer '1' shares a parameter with another layer"),
    "loose": (lone_parameter, "parameter 'scale' of a Sequential"),
}


@pytest.mark.parametrize("make, message", BAD_NETS.values(), ids=BAD_NETS)
@every_curvature
def test_bad_networks(make, message, curvature):
    with pytest.raises(ValueError, match=message) as raised:
        log_evidence(make(), (X, LABELS), curvature=curvature)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("curvature", ["full", "diag"])  # KFAC-expand treats positions as data anyway
@pytest.mark.parametrize("layer", [nn.Linear, WSLinear])
def test_positions_folded_into_the_batch_are_refused(layer, curvature):
    """Then a datum's gradient cannot be told from its neighbours': no curvature is right."""
    net = networks.Folding(layer(4, 3, dtype=torch.float64))
    outputs = 3 if layer is nn.Linear else 12
    x, y = torch.randn(N, 5, 4, dtype=torch.float64), torch.arange(N) % outputs
    with pytest.raises(ValueError, match="batch"):
        log_evidence(net, (x, y), curvature=curvature)


BAD_NAMES = [
    ({"curvature": "kfac"}, "curvature='kfac': expected one of full, layer, pathway, kron, diag"),
    ({"likelihood": "poisson"}, "likelihood='poisson': expected 'classification', 'regression', or an instance"),
    ({"batch_size": 0}, "batch_size=0: expected at least 1"),
]


@pytest.mark.parametrize("arguments, message", BAD_NAMES, ids=[str(a) for a, _ in BAD_NAMES])
def test_bad_names(arguments, message):
    net, x, y = problem()
    with pytest.raises(ValueError, match=message):
        log_evidence(net, (x, y), **arguments)


def test_weights_that_are_not_finite():
    net, x, y = problem()
    with torch.no_grad():
        net.head.bias[0] = float("nan")
    with pytest.raises(ValueError, match="outputs hold NaN or infinite values"):
        log_evidence(net, (x, y))


NORMALISATIONS = {
    "BatchNorm": lambda: nn.BatchNorm2d(1, affine=False, dtype=torch.float64),
    "GroupNorm": lambda: nn.GroupNorm(1, 1, affine=False, dtype=torch.float64),
    "LayerNorm": lambda: nn.LayerNorm(4, elementwise_affine=False, dtype=torch.float64),
    "InstanceNorm": lambda: nn.InstanceNorm2d(1, dtype=torch.float64),
    "RMSNorm": lambda: nn.RMSNorm(4, elementwise_affine=False, dtype=torch.float64),
}


@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_normalisation_warns(kind):
    head = nn.Linear(16, 3, dtype=torch.float64)
    net = nn.Sequential(NORMALISATIONS[kind](), nn.Flatten(), head)
    with pytest.warns(UserWarning, match="layer '0' normalises.*scale-invariant"):
        found = log_evidence(net, (X, LABELS))
    assert set(found.by_pathway) == {"2.weight", "2.bias"}


def test_no_warning_without_normalisation():
    net, x, y = problem()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        log_evidence(net, (x, y))
    assert not heard


@pytest.mark.parametrize("noise", [0.0, -1.0, float("nan")])
def test_noise_must_be_positive(noise):
    with pytest.raises(ValueError, match=r"noise=.*expected a positive standard deviation"):
        Gaussian(noise)


def test_likelihoods_by_name():
    assert isinstance(likelihood_named("classification"), Categorical)
    assert isinstance(likelihood_named("regression"), Gaussian)
    mine = Gaussian(0.3)
    assert likelihood_named(mine) is mine and mine.log_noise.exp().item() == pytest.approx(0.3, rel=1e-6)


def test_a_precision_that_two_pathways_share_is_given_to_both():
    """The residual of a soft stack has the precision of the shared weights."""
    net = networks.Small("dense", networks.SHARED, 2)
    x, y = networks.images(N), networks.targets("classification", N, 2)
    given = log_evidence(net, (x, y), prior={"lift.shared": 0.7})
    with torch.no_grad():
        net.lift.log_precisions["shared"].fill_(0.7)
    own = log_evidence(net, (x, y))
    assert given.by_pathway["lift.residual"].log_precision.item() == pytest.approx(0.7)
    assert float(given) == pytest.approx(float(own), rel=1e-12)

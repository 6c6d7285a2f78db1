"""A script with unpatched laplace-torch: what it gives with CurvlinopsGGN it gives with our backend.

Where Curvlinops is not exact itself, the dense matrices judge.
"""

from collections import UserDict

import networks
import oracles
import pytest
import torch
from laplace import Laplace, marglik_training
from laplace.curvature import CurvlinopsGGN
from laplace.lllaplace import LLLaplace
from refusals import assert_refused
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bayesws import Gaussian
from bayesws.evidence.laplace import PathwayGGN, PathwayKron, PathwayKronDecomposed

N, OUTPUTS, RTOL = 7, 3, 1e-5
SUBNETWORK = torch.arange(0, 40, 3)
SUBSETS = {
    "all": {},
    "last_layer": {},
    "last_layer_by_name": {"subset_of_weights": "last_layer", "last_layer_name": "6"},
    "subnetwork": {"subnetwork_indices": SUBNETWORK},
}
HESSIANS = {"classification": oracles.softmax_hessian, "regression": oracles.gaussian_hessian(1.0)}
KINDS = ["full", "kron", "diag"]
APPROXIMATIONS = [(subset, kind) for subset in SUBSETS for kind in KINDS if (subset, kind) != ("subnetwork", "kron")]
every_likelihood = pytest.mark.parametrize("likelihood", HESSIANS)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_approximation = pytest.mark.parametrize(("subset", "kind"), APPROXIMATIONS)
# the default run takes each combination in one of the two precisions
precisions = pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=["double", "float"]
)
PREDICTIVES = {
    "classification": [
        *({"link_approx": link} for link in ("probit", "bridge", "bridge_norm", "mc")),
        {"link_approx": "mc", "diagonal_output": True},
        {"pred_type": "nn", "link_approx": "mc"},
    ],
    "regression": [{}, {"diagonal_output": True}, {"joint": True}, {"pred_type": "nn", "link_approx": "mc"}],
}


def convolutions(dtype=torch.float64):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Conv2d(2, 2, 2, bias=False), nn.Flatten(), nn.Linear(8, 4))
    return net.extend([nn.Tanh(), nn.Linear(4, OUTPUTS)]).to(dtype)


def data(likelihood, dtype=torch.float64):
    torch.manual_seed(4)
    y = networks.targets(likelihood, N, OUTPUTS)
    return networks.images(N).to(dtype), y.to(dtype) if likelihood == "regression" else y


def loader(x, y, batch_size=3):  # 3 + 3 + 1
    return DataLoader(TensorDataset(x, y), batch_size)


def built(net, likelihood, subset, kind, backend, **settings):
    """Before `fit`, on a net of its own: a last layer is copied, a whole network is not."""
    noise = {"sigma_noise": 0.7} if likelihood == "regression" else {}
    asked = {"subset_of_weights": subset, "hessian_structure": kind, "prior_precision": 0.6, "backend": backend}
    return Laplace(net, likelihood, **(asked | noise | SUBSETS.get(subset, {}) | settings))


def assert_close(found, expected, rtol=RTOL):
    """Relative to the largest entry."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    scale = expected.abs().max().clamp(min=1e-30)
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=rtol)


def tensors(found):
    return found if isinstance(found, tuple) else (found,)


def predictions(la, x, likelihood):
    """Every predictive, and draws, in a row: the same random numbers are drawn by every posterior."""
    calls = [lambda call=call: la(x, n_samples=20, **call) for call in PREDICTIVES[likelihood]]
    draws = [(la.predictive_samples, "glm"), (la.predictive_samples, "nn"), (la.functional_samples, "glm")]
    if not isinstance(la, LLLaplace):  # laplace-torch writes a last layer's sample into all of its weights, and fails
        draws.append((la.functional_samples, "nn"))
    calls += [lambda draw=draw, kind=kind: draw(x, pred_type=kind, n_samples=4) for draw, kind in draws]
    found = []
    for call in calls:
        torch.manual_seed(1)
        found += tensors(call())
    return found


def agree(ours, theirs, x, likelihood, rtol=RTOL):
    assert_close(ours.log_marginal_likelihood().detach(), theirs.log_marginal_likelihood().detach(), rtol)
    for found, expected in zip(predictions(ours, x, likelihood), predictions(theirs, x, likelihood), strict=True):
        assert_close(found.detach(), expected.detach(), rtol)


@precisions
@every_likelihood
@every_approximation
def test_fit_predict_save_and_load(subset, kind, likelihood, dtype, tmp_path):
    (x, y), new = data(likelihood, dtype), networks.images(4).to(dtype)
    ours, theirs = (
        built(convolutions(dtype), likelihood, subset, kind, backend) for backend in (PathwayGGN, CurvlinopsGGN)
    )
    for la in (ours, theirs):
        la.fit(loader(x, y))
    agree(ours, theirs, new, likelihood)
    torch.save(ours.state_dict(), tmp_path / "la.pt")
    back = built(convolutions(dtype), likelihood, subset, kind, PathwayGGN)
    back.load_state_dict(torch.load(tmp_path / "la.pt"))
    agree(back, theirs, new, likelihood)
    for la in (ours, theirs):
        la.optimize_prior_precision(n_steps=5, init_prior_prec=1.0)
    assert_close(ours.prior_precision.detach(), theirs.prior_precision.detach())
    agree(ours, theirs, new, likelihood)


@every_likelihood
@every_kind
def test_marglik_training(kind, likelihood):
    # Curvlinops' noise has no gradient where H is Kronecker-factored: see below
    noise = {"fix_sigma_noise": True, "sigma_noise_init": 0.7} if kind == "kron" and likelihood == "regression" else {}
    x, y = data(likelihood)
    found = []
    for backend in (PathwayGGN, CurvlinopsGGN):
        torch.manual_seed(5)
        la, net, evidences, losses = marglik_training(
            convolutions(),
            loader(x, y),
            likelihood,
            kind,
            backend=backend,
            n_epochs=4,
            n_hypersteps=3,
            marglik_frequency=2,
            optimizer_kwargs={"lr": 0.02},
            **noise,
        )
        weights = torch.cat([p.detach().flatten() for p in net.parameters()])
        record = [*evidences, *losses, *la.prior_precision.tolist(), *la.sigma_noise.flatten().tolist()]
        found.append((weights, torch.tensor(record, dtype=torch.float64), la))
    ours, theirs = found
    assert_close(ours[0], theirs[0])
    assert_close(ours[1], theirs[1])
    agree(ours[2], theirs[2], networks.images(4), likelihood)


def test_the_noise_has_its_gradient_with_kronecker_factors():
    """laplace-torch's own factors drop it: its `pow` makes a number of the tensor."""
    x, y = data("regression")
    sigma = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    gradients, differences = [], []
    for backend in (PathwayGGN, CurvlinopsGGN):
        la = built(convolutions(), "regression", "all", "kron", backend)
        la.fit(loader(x, y))
        gradients.append(torch.autograd.grad(la.log_marginal_likelihood(sigma_noise=sigma), sigma)[0])
        differences.append(oracles.central_gradient(lambda la=la: la.log_marginal_likelihood(sigma_noise=sigma), sigma))
    assert_close(differences[0], differences[1], 1e-8)
    assert_close(gradients[0], differences[0], 1e-6)  # a finite difference with step 1e-4
    assert (gradients[1] / differences[1] - 1).abs() > 0.01


@every_likelihood
def test_kfac_reduce_by_its_name(likelihood):
    x, y = data(likelihood)
    factors = []
    for backend in (PathwayGGN, CurvlinopsGGN):
        la = built(convolutions(), likelihood, "all", "kron", backend, asdl_fisher_kwargs={"kfac_approx": "reduce"})
        la.fit(loader(x, y, N))
        factors.append(la.H_facs.to_matrix())
    assert_close(*factors)


# Drawn targets

DRAWN, REPEATED = 10, 12


@every_likelihood
@every_kind
def test_drawn_targets_have_the_curvature_as_their_mean(kind, likelihood):
    x, y = data(likelihood)
    net, names = convolutions(), oracles.weight_names(convolutions())
    expected = oracles.dense_ggn(net, x, HESSIANS[likelihood], names)
    if kind == "kron":  # A is exact, and B is linear in S Sᵀ
        blocks = oracles.kron_blocks(net, x, HESSIANS[likelihood])
        expected = torch.block_diag(*[blocks[name] for name in names])
    backend = PathwayGGN(net, likelihood, stochastic=True, num_samples=DRAWN)
    drawn, options = [], {"N": N} if kind == "kron" else {}
    for i in range(REPEATED):
        named = {} if i % 2 else {"mc_samples": DRAWN}
        loss, found = getattr(backend, kind)(x, y, **options, **named)
        drawn.append({"full": torch.Tensor.clone, "diag": torch.diag, "kron": PathwayKron.to_matrix}[kind](found))
    assert loss.item() == pytest.approx(PathwayGGN(net, likelihood).diag(x, y)[0].item(), rel=1e-12)
    expected = torch.diag(expected.diagonal()) if kind == "diag" else expected
    drawn = torch.stack(drawn)
    error = drawn.std(0).square().sum().sqrt() / REPEATED**0.5  # of the mean, in Frobenius' norm
    assert 0 < (drawn.mean(0) - expected).norm() < 3 * error


def test_drawn_targets_from_laplace():
    x, y = data("classification")
    la = built(convolutions(), "classification", "all", "kron", PathwayGGN, backend_kwargs={"stochastic": True})
    torch.manual_seed(0)
    la.fit(loader(x, y))
    first = la.log_marginal_likelihood()
    la.fit(loader(x, y))
    assert torch.isfinite(first) and la.log_marginal_likelihood() != first


# A last layer


class Sentence(nn.Module):
    """A body that nothing declares, and twice the head's output."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale, self.embed = scale, nn.Embedding(5, 4)
        self.read, self.head = nn.GRU(4, 4, batch_first=True), nn.Linear(4, OUTPUTS)

    def forward(self, tokens):
        return self.scale * self.head(self.read(self.embed(tokens))[0][:, -1])


def sentence(scale=1.0):
    torch.manual_seed(6)
    return Sentence(scale).double(), torch.randint(5, (N, 3)), torch.arange(N) % OUTPUTS


@every_kind
def test_a_last_layer_of_any_body(kind):
    _, x, y = sentence()
    ours, theirs = (
        built(sentence()[0], "classification", "last_layer", kind, backend, last_layer_name="head")
        for backend in (PathwayGGN, CurvlinopsGGN)
    )
    for la in (ours, theirs):
        la.fit(loader(x, y))
    agree(ours, theirs, x[:4], "classification")
    assert all(p.requires_grad for p in ours.model.parameters())


@every_kind
def test_what_comes_after_the_last_layer_counts(kind):
    """laplace-torch's own Jacobians take its features for all of the network."""
    net, x, y = sentence(scale=2.0)
    la = built(net, "classification", "last_layer", kind, PathwayGGN, last_layer_name="head")
    la.fit(loader(x, y))
    jacobian = oracles.dense_jacobian(net, x, ["head.weight", "head.bias"])
    assert_close(la.backend.last_layer_jacobians(x)[0], jacobian, 1e-12)
    h = sum(j.mT @ s @ j for j, s in zip(jacobian, oracles.softmax_hessian(net(x).detach()), strict=True))
    if kind == "kron":
        b = sum(4 * oracles.softmax_hessian(net(x).detach()))
        weight, bias = h.new_zeros(OUTPUTS * 4, OUTPUTS * 4), b
        a = (jacobian[:, 0, :4] / 2).mT @ (jacobian[:, 0, :4] / 2) / N
        weight = torch.kron(b, a)
        h = torch.block_diag(weight, bias)
    found = {"full": lambda: la.H, "kron": lambda: la.H_facs.to_matrix(), "diag": lambda: la.H}[kind]()
    assert_close(found, h.diagonal() if kind == "diag" else h, 1e-10)


@every_kind
def test_backpropagation_through_a_last_layer(kind):
    x, y = data("regression")
    ours, theirs = (
        built(convolutions(), "regression", "last_layer", kind, backend, enable_backprop=True)
        for backend in (PathwayGGN, CurvlinopsGGN)
    )
    gradients = []
    for la in (ours, theirs):
        la.fit(loader(x, y))
        new = x[:2].clone().requires_grad_()
        mean, variance = la(new)
        gradients.append(torch.autograd.grad(mean.sum() + variance.sum(), new)[0])
    assert_close(*gradients)


# Inputs that are not one tensor of examples


class Named(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return {"pixels": self.x[index], "label": self.y[index]}


def named_loader(x, y, batch_size=3):
    def collate(rows):
        return UserDict({name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    return DataLoader(Named(x, y), batch_size, collate_fn=collate)


class Of(nn.Module):
    """A network of a mapping."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x["pixels"])


@every_kind
def test_mappings_are_their_tensor(kind):
    (x, y), keys = data("classification"), {"dict_key_x": "pixels", "dict_key_y": "label"}
    plain = built(convolutions(), "classification", "all", kind, PathwayGGN)
    plain.fit(loader(x, y))
    for subset in ("all", "last_layer") if kind != "full" else ("all",):
        ours, theirs = (
            built(Of(convolutions()), "classification", subset, kind, backend, **keys)
            for backend in (PathwayGGN, CurvlinopsGGN)
        )
        for la in (ours, theirs):
            la.fit(named_loader(x, y))
        new = UserDict({"pixels": x[:4]})
        assert_close(ours.log_marginal_likelihood().detach(), theirs.log_marginal_likelihood().detach())
        assert_close(ours(new), theirs(new))
        if subset == "all":
            assert torch.equal(ours(new), plain(x[:4]))


class Reward(nn.Module):
    """One score an example; the examples of a pair one below the other, as laplace-torch's reward models have them."""

    def __init__(self, transposed=False):
        super().__init__()
        torch.manual_seed(7)
        self.net, self.transposed = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(), transposed

    def forward(self, x):
        if x.ndim == 2:
            return self.net(x)
        if self.transposed:
            return self.net(x.mT.reshape(-1, 3)).reshape(len(x), 2)  # examples mixed: no function of each by itself
        return self.net(x.reshape(-1, 3)).reshape(len(x), 2)


class Apart(nn.Module):
    """The same in two calls."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return torch.cat([self.net(x[:, 0]), self.net(x[:, 1])], -1)


@every_kind
def test_reward_models(kind):
    torch.manual_seed(8)
    x, y, net = torch.randn(N, 2, 3, dtype=torch.float64), torch.arange(N) % 2, Reward()
    ours, theirs = (
        Laplace(Reward(), "reward_modeling", "all", kind, prior_precision=0.6, backend=backend)
        for backend in (PathwayGGN, CurvlinopsGGN)
    )
    for la in (ours, theirs):
        la.fit(loader(x, y))
    h = oracles.dense_ggn(net, x, oracles.softmax_hessian, oracles.weight_names(net))
    if kind == "kron":  # Curvlinops divides by the pairs, though twice as many rows went in
        blocks = oracles.kron_blocks(Apart(net.net), x, oracles.softmax_hessian)
        assert_close(ours.H_facs.to_matrix(), torch.block_diag(*blocks.values()), 1e-10)
        for found, expected in zip(ours.H_facs.kfacs, theirs.H_facs.kfacs, strict=True):
            assert_close(*(f[0] if len(f) == 1 else torch.kron(*f) / share for f, share in ((found, 1), (expected, 2))))
        return
    assert_close(ours.H, h if kind == "full" else h.diagonal(), 1e-10)
    assert_close(ours.log_marginal_likelihood().detach(), theirs.log_marginal_likelihood().detach())
    for call in ({}, {"pred_type": "nn", "link_approx": "mc", "n_samples": 20}):
        pairs = []
        for la in (ours, theirs):
            torch.manual_seed(1)
            pairs.append(la(torch.randn(4, 3, dtype=torch.float64), **call))
        for found, expected in zip(*pairs, strict=True):
            assert_close(found.detach(), expected.detach())


def test_refused():
    x, y = data("classification")
    net = convolutions()
    pairs = torch.randn(3, 2, 3, dtype=torch.float64)
    ours = PathwayGGN(net, "classification")
    of, reward = PathwayGGN(Of(net), "classification"), PathwayGGN(Reward(transposed=True), "classification")
    for call, pattern in [
        (lambda: PathwayGGN(net, "regression", stochastic=True, loss=Gaussian()), "stochastic=True with Gaussian"),
        (lambda: ours.full(x, y, mc_samples=5), "mc_samples=5 without stochastic=True"),
        (lambda: ours.kron(x, y, N, kfac_approx="exp"), "kfac='exp': expected one of"),
        (lambda: ours.diag([x], y), "inputs of type list: expected a tensor, or a mapping"),
        (lambda: of.diag({"pixels": x}, y), r"inputs of type dict with \['pixels'\]: expected"),
        (lambda: reward.jacobians(pairs), r"sees inputs of shape \(6, .*\) for a batch of 3"),
    ]:
        assert_refused(call, pattern)


def test_decomposed_factors_are_copied_whole():
    x, y = data("classification")
    la = built(convolutions(), "classification", "all", "kron", PathwayGGN)
    la.fit(loader(x, y))
    copy, before = la.posterior_precision.clone(), la.posterior_precision.to_matrix()
    assert isinstance(copy, PathwayKronDecomposed)
    for values in la.H.eigenvalues:
        values[0].zero_()
    assert_close(copy.to_matrix(), before, 1e-15)

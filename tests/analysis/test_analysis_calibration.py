"""The gold standard against closed forms and quadrature; errors and rankings against hand-made numbers."""

import math

import networks
import oracles
import pytest
import torch
from torch import nn

import bayesws as bws
from bayesws.analysis.annealing import _log_mean, _systematic
from bayesws.analysis.whitened import Whitened
from bayesws.layers.contract import named_pathways, starting_log_precisions

D = torch.float64
NOISE = 0.5
NETS = [
    ("fixed", networks.BOTH, 2),
    ("fixed", networks.SHARED, 2),
    ("dense", networks.BOTH, 2),
    ("fixed", ("free",), 2),
]
linear_nets = pytest.mark.parametrize("sharing", NETS, ids=["both", "shared", "soft", "free"])


def linear_problem(sharing, examples=8, noise=NOISE):
    """A sharing layer as the whole network, data, a prior that is not the layer's own, and the closed form by scipy."""
    net = networks.Linear(*sharing)
    x = torch.randn(examples, 4, dtype=D)
    y = torch.randn(examples, 2 * sharing[2], dtype=D)
    prior = {name: 0.3 * i - 0.5 for i, name in enumerate(starting_log_precisions(net))}
    with torch.no_grad():
        for name, tensor in starting_log_precisions(net).items():
            tensor.fill_(prior[name])  # for the oracle: a soft stack takes its free roots from here
    names = oracles.weight_names(net)
    phi = oracles.linear_features(net, x, names)
    precisions = torch.cat(
        [
            torch.full((net.get_parameter(n).numel(),), math.exp(prior[oracles.pathway_of(net, n)]), dtype=D)
            for n in names
        ]
    )
    theta = oracles.linear_gaussian_map(phi, y, precisions, noise)
    with torch.no_grad():
        for name, part in zip(names, theta.split([net.get_parameter(n).numel() for n in names]), strict=True):
            net.get_parameter(name).copy_(part.reshape(net.get_parameter(name).shape))
    expected = oracles.linear_gaussian_log_evidence(phi, y, precisions, noise)
    with torch.no_grad():
        for tensor in starting_log_precisions(net).values():
            tensor.fill_(0.7)  # what is given as prior must win over what the layer holds
    return net, (x, y), prior, expected


def gaussian(noise=NOISE):
    return bws.Gaussian(noise, dtype=D)


class Bent(nn.Module):
    """f = b tanh(a x): two weights, and two copies of every mode, (a, b) and (-a, -b)."""

    def __init__(self, outputs=1):
        super().__init__()
        self.hidden = nn.Linear(1, 1, bias=False, dtype=D)
        self.head = nn.Linear(1, 1, bias=False, dtype=D)
        self.outputs = outputs

    def forward(self, x):
        f = self.head(torch.tanh(self.hidden(x)))
        return f if self.outputs == 1 else torch.cat([f, torch.zeros_like(f)], 1)


def bent_problem(kind, examples):
    x = torch.linspace(-2, 2, examples, dtype=D)[:, None]
    f = 1.5 * torch.tanh(1.2 * x)
    if kind == "regression":
        return Bent(), (x, f + NOISE * torch.randn_like(f)), gaussian()
    return Bent(2), (x, (torch.rand_like(f) > f.sigmoid()).long()[:, 0]), bws.Categorical()


def quadrature(net, data, likelihood, log_precision, reach=8.0, points=401):
    """log ∫ p(D | a, b) N(a; 0, 1/δ) N(b; 0, 1/δ) da db on a grid of standard deviations."""
    z = torch.linspace(-reach, reach, points, dtype=D)
    grid = torch.cartesian_prod(z, z)
    a, b = (grid * math.exp(-0.5 * log_precision)).unbind(1)
    f = b[:, None] * torch.tanh(a[:, None] * data[0][:, 0])
    if isinstance(likelihood, bws.Gaussian):
        log_p = torch.distributions.Normal(f, NOISE).log_prob(data[1][:, 0]).sum(1)
    else:
        log_p = -nn.functional.softplus(torch.where(data[1] == 0, -f, f)).sum(1)
    prior = -0.5 * grid.square().sum(1) - math.log(2 * math.pi)
    return float((log_p + prior).logsumexp(0)) + 2 * math.log(float(z[1] - z[0]))


@linear_nets
def test_closed_form_is_scipys_and_the_laplace_evidence_is_both(sharing):
    net, data, prior, expected = linear_problem(sharing)
    assert bws.analysis.linear_gaussian_evidence(net, data, gaussian(), prior) == pytest.approx(expected, rel=1e-10)
    found = bws.calibrate(net, data, gaussian(), expected, {"full": "full"}, prior)
    assert abs(found.error("full")) < 1e-8
    assert not found.notes  # the closed-form MAP is the MAP


@pytest.mark.parametrize("sharing", [NETS[1], NETS[2]], ids=["shared", "soft"])
def test_annealing_meets_the_closed_form(sharing):
    net, data, prior, expected = linear_problem(sharing)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = bws.annealed_evidence(net, data, gaussian(), prior, chains=12, moves=1)
    assert abs(found.log_evidence - expected) < 4 * found.standard_error
    assert found.standard_error < 1
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert found.samples.keys() == set(oracles.weight_names(net))


def scores_of(net, data, likelihood, prior, expected, seeds):
    """(estimate - truth) / standard error of independent estimates."""
    found = [bws.annealed_evidence(net, data, likelihood, prior, chains=16, seed=seed) for seed in range(seeds)]
    return torch.tensor([(f.log_evidence - expected) / f.standard_error for f in found])


def assert_honest(scores):
    """As Student's t with 7 degrees of freedom: squares have mean 1.4 and standard deviation 2.5."""
    count = len(scores)
    assert 0.2 < scores.square().mean() < 1.4 + 4 * 2.5 / count**0.5
    assert abs(scores.mean()) < 4 * (1.4 / count) ** 0.5


def test_its_standard_error_is_honest():
    net = nn.Linear(2, 1, dtype=D)
    data = torch.randn(5, 2, dtype=D), torch.randn(5, 1, dtype=D)
    expected = bws.analysis.linear_gaussian_evidence(net, data, gaussian(), 0.0)
    assert_honest(scores_of(net, data, gaussian(), 0.0, expected, seeds=8))


@pytest.mark.slow
def test_its_standard_error_is_honest_for_a_sharing_layer():
    net, data, prior, expected = linear_problem(NETS[1], 6, noise=1.5)
    assert_honest(scores_of(net, data, gaussian(1.5), prior, expected, seeds=32))


def test_the_error_of_a_mean_is_the_jackknifes():
    """Of the mean itself, by hand; and where one value outweighs all others it is their distance."""
    logs = torch.tensor([1.0, 1.1, 0.8, 1.2], dtype=D)
    mean, error = _log_mean(logs)
    assert mean == pytest.approx(float(logs.exp().mean().log()))
    others = [float(torch.cat([logs[:i], logs[i + 1 :]]).exp().mean().log()) for i in range(4)]
    centre = sum(others) / 4
    assert error == pytest.approx((3 / 4 * sum((o - centre) ** 2 for o in others)) ** 0.5)
    assert _log_mean(torch.tensor([0.0, 0.0, 0.0, 9.0], dtype=D))[1] > 5


@pytest.mark.parametrize("kind", ["regression", "classification"])
@pytest.mark.parametrize("log_precision", [0.0, -1.0])
def test_annealing_meets_quadrature_and_counts_both_modes(kind, log_precision):
    net, data, likelihood = bent_problem(kind, 12)
    expected = quadrature(net, data, likelihood, log_precision)
    found = bws.annealed_evidence(net, data, likelihood, log_precision)
    assert abs(found.log_evidence - expected) < 4 * found.standard_error
    assert found.standard_error < 0.1
    signs = found.samples["head.weight"].sign().mean()
    assert abs(signs) < 0.9  # neither copy is left out


def test_a_mode_counts_for_its_copies():
    """With the modes far apart Laplace lacks log 2, up to its own error of the order 1/N."""
    net, (x, _), likelihood = Bent(), bent_problem("regression", 60)[1], gaussian(0.05)
    data = x, 1.5 * torch.tanh(1.2 * x) + 0.05 * torch.randn_like(x)
    net = at_the_map(net, data, likelihood)
    a, b = (float(net.get_parameter(name).detach()) for name in ("hidden.weight", "head.weight"))
    # one mode by quadrature, over some eight posterior standard deviations to either side
    near = torch.linspace(-1, 1, 201, dtype=D)
    one, two = torch.cartesian_prod(a + 0.25 * near, b + 0.25 * near).unbind(1)
    log_p = torch.distributions.Normal(two[:, None] * torch.tanh(one[:, None] * x[:, 0]), 0.05).log_prob(data[1][:, 0])
    joint = log_p.sum(1) - 0.5 * (one.square() + two.square()) - math.log(2 * math.pi)
    gold = float(joint.logsumexp(0)) + 2 * math.log(0.0025) + math.log(2)
    found = bws.calibrate(net, data, likelihood, gold, {"full": "full"}, 0.0, math.log(2))
    assert abs(found.error("full", copies=True)) * 60 < 0.03
    assert found.error("full") * 60 == pytest.approx(-math.log(2), abs=0.03)


def at_the_map(net, data, likelihood):
    with torch.no_grad():
        net.hidden.weight.fill_(1.0)
        net.head.weight.fill_(1.0)
    search = torch.optim.LBFGS(net.parameters(), max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        search.zero_grad()
        value = 0.5 * sum(p.square().sum() for p in net.parameters()) - likelihood.log_prob(net(data[0]), data[1])
        value.backward()
        return value

    search.step(closure)
    return net


def test_calibration_tells_and_prints():
    net, data, likelihood = bent_problem("regression", 10)
    found = bws.calibrate(net, data, likelihood, -20.0, prior=0.0, log_copies=math.log(2))
    assert set(found.log_evidence) >= {"full", "layer", "pathway", "kron", "diag", "kron, 1 sample"}
    direct = float(bws.log_evidence(net, data, likelihood, "diag", 0.0))
    assert found.error("diag") == pytest.approx((direct + 20.0) / 10)
    assert found.error("diag", copies=True) == pytest.approx((direct + math.log(2) + 20.0) / 10)
    assert found.notes and "not at the MAP" in found.notes[0]
    assert "kron, reduce" in str(found) and "note: not at the MAP" in str(found)
    assert found.record()["log_evidence"]["diag"] == direct
    assert not bws.calibrate(at_the_map(net, data, likelihood), data, likelihood, -20.0, prior=0.0).notes


def test_the_gradient_of_the_likelihood_is_its_derivative():
    """In chunks of chains, in whitened coordinates, for one case with a soft stack."""
    net, data, prior, _ = linear_problem(NETS[2])
    target = Whitened(net, data, gaussian(), prior)
    z = torch.randn(3, target.size, dtype=D)
    values, gradients = target.with_gradient(z)
    for one, value, gradient in zip(z, values, gradients, strict=True):
        assert float(target.log_likelihood(one[None]).detach()) == pytest.approx(float(value), rel=1e-12)
        expected = oracles.central_gradient(lambda w=one: float(target.log_likelihood(w[None]).detach()), one)
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6 * float(gradient.abs().max()))
    for name, found in target.weights(target.present).items():
        torch.testing.assert_close(found, net.get_parameter(name), rtol=1e-12, atol=0)


def test_resampling_keeps_expected_numbers():
    """Every chain n w times, rounded up or down."""
    weights = torch.rand(5, 40, dtype=D)
    weights /= weights.sum(1, keepdim=True)
    drawn = _systematic(weights, torch.rand(5, 1, dtype=D))
    counts = torch.stack([row.bincount(minlength=40) for row in drawn])
    assert ((counts - 40 * weights).abs() < 1 + 1e-9).all()


def test_rankings_agree_as_kendall_says():
    gold = {"a": 0.0, "b": -1.0, "c": -1.5, "d": -9.0}
    found = bws.analysis.rank_agreement(gold, {"a": -3.0, "b": -2.0, "c": -4.0, "d": -5.0}, dict.fromkeys(gold, 0.2))
    # one of six pairs is turned round; b and c are 0.5 apart, less than 2 · √2 · 0.2
    assert (found.tau, found.pairs, found.alike) == (pytest.approx(4 / 6), 5, 4)
    assert (found.same_best, found.regret) == (False, pytest.approx(1.0))
    assert bws.analysis.rank_agreement(gold, gold).tau == pytest.approx(1.0)


def small():
    return Bent(), (torch.ones(3, 1, dtype=D), torch.ones(3, 1, dtype=D))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"populations": 1}, "populations=1: expected at least 2"),
        ({"chains": 1}, "chains=1: expected at least 2"),
        ({"moves": 0}, "moves=0: expected at least 1"),
        ({"leapfrogs": 0}, "leapfrogs=0: expected at least 1"),
        ({"overlap": 1.0}, "overlap=1.0: expected a share"),
        ({"prior": {"nothing": 0.0}}, "prior for 'nothing'"),
        ({"likelihood": "poisson"}, "likelihood='poisson'"),
        ({"data": (torch.full((3, 1), math.nan, dtype=D), torch.ones(3, 1, dtype=D))}, "3 NaN or infinite"),
        ({"data": (torch.ones(3, 1, dtype=D), torch.ones(3, 2, dtype=D))}, "targets of shape"),
        ({"net": Bent().requires_grad_(False)}, "without pathways"),
    ],
)
def test_bad_input_is_told(change, message):
    net, data = small()
    with pytest.raises(ValueError, match=message) as error:
        bws.annealed_evidence(**({"net": net, "data": data, "likelihood": "regression"} | change))
    assert "\n" not in str(error.value)


def test_bad_comparisons_are_told():
    net, data = small()
    with pytest.raises(ValueError, match="not linear in its weights"):
        bws.analysis.linear_gaussian_evidence(net, data)
    with pytest.raises(ValueError, match="needs Gaussian noise"):
        bws.analysis.linear_gaussian_evidence(Bent(2), (data[0], torch.zeros(3, dtype=torch.long)), bws.Categorical())
    with pytest.raises(ValueError, match="log_copies=-1"):
        bws.calibrate(net, data, "regression", 0.0, log_copies=-1.0)
    with pytest.raises(ValueError, match="at least two"):
        bws.analysis.rank_agreement({"a": 1.0}, {"a": 1.0})
    with pytest.raises(ValueError, match="the same names"):
        bws.analysis.rank_agreement({"a": 1.0, "b": 2.0}, {"a": 1.0, "c": 2.0})


@pytest.mark.slow
def test_thermodynamic_integration_with_pyro_finds_the_same():
    """log p(D) = ∫ E_β[log p(D | θ)] dβ (Gelman and Meng, 1998), E_β by NUTS: 200 draws at each of 12 temperatures.

    β_k = (k/11)⁵ (Friel and Pettitt, 2008), by trapezoids.
    """
    import pyro
    from pyro import distributions as dist
    from pyro.infer import MCMC, NUTS

    net = nn.Sequential(nn.Linear(1, 2, dtype=D), nn.Tanh(), nn.Linear(2, 1, dtype=D))
    x = torch.randn(10, 1, dtype=D)
    data = x, torch.tanh(x) + NOISE * torch.randn(10, 1, dtype=D)
    target = Whitened(net, data, gaussian(), 0.0)
    assert sum(p.numel for _, p in named_pathways(net)) == target.size == 7
    state = pyro.util.get_rng_state()
    pyro.set_rng_seed(0)
    betas = (torch.arange(12, dtype=D) / 11) ** 5
    means, errors = [], []
    for beta in betas:

        def model(beta=beta):
            z = pyro.sample("z", dist.Normal(torch.zeros(7, dtype=D), 1.0).to_event(1))
            pyro.factor("likelihood", beta * target.likelihood.log_prob(target.forward(z), target.y))

        run = MCMC(NUTS(model, max_tree_depth=5), num_samples=200, warmup_steps=80, disable_progbar=True)
        run.run()
        values = target.log_likelihood(run.get_samples()["z"].detach()).detach()
        means.append(values.mean())
        errors.append(values.reshape(10, 20).mean(1).std() / 10**0.5)
    pyro.util.set_rng_state(state)
    integral = float(torch.trapezoid(torch.stack(means), betas).detach())
    widths = torch.cat([betas[1:2], betas[2:] - betas[:-2], betas[-1:] - betas[-2:-1]]) / 2
    error = float((widths * torch.stack(errors)).square().sum().sqrt())
    found = bws.annealed_evidence(net, data, gaussian(), 0.0)
    assert error < 0.3
    assert abs(found.log_evidence - integral) < 4 * math.hypot(error, found.standard_error) + 0.05  # of the rule

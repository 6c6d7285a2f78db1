"""Logits without a datum: against dense matrices and against refits; the scale that they ask for; and what keeps it."""

from dataclasses import replace

import oracles
import pytest
import torch
from sealed import rewritten
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader, TensorDataset

import bayesws as bws
from bayesws.evidence import left_out as of_left_out
from bayesws.evidence.batches import Batches
from bayesws.evidence.left_out import SCALES, LeftOut, left_out


def centred(logits):
    return logits - logits.mean(-1, keepdim=True)


def labelled(n=24, inputs=4, classes=3):
    return torch.randn(n, inputs, dtype=torch.float64), torch.arange(n) % classes


NETWORKS = {
    "more weights than rows": lambda: nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 3)),
    "more rows than weights": lambda: nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3)),
    "shared and free": lambda: nn.Sequential(
        bws.layers.WSLinear(4, 3, group_size=4, stack="fixed", group="cyclic-shifts"),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 3),
    ),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_against_dense_matrices(make, monkeypatch):
    """Rounding alone: 1e-9 is what inverses of condition 1e4 leave in float64."""
    net, (x, y) = make().double(), labelled()
    prior = {name: torch.full_like(p, 0.3) for name, p in bws.evidence.objective.resolve_prior(net, None).items()}
    expected = oracles.left_out_logits(net, x, y, prior)
    found = left_out(net, Batches((x, y), 7, net=net), prior)
    torch.testing.assert_close(found.with_it, net(x).detach())
    torch.testing.assert_close(centred(found.without_it), expected, rtol=1e-9, atol=1e-9)
    monkeypatch.setattr(of_left_out, "AT_ONCE", 1)  # a datum at a time
    again = left_out(net, Batches((x, y), 24, net=net), prior)
    torch.testing.assert_close(again.without_it, found.without_it, rtol=1e-9, atol=1e-9)
    assert (centred(found.without_it) - centred(found.with_it)).abs().max() > 0.1  # there is something to get wrong


@pytest.mark.parametrize("largest", range(3))
def test_probabilities_that_vanish_do_no_harm(largest):
    """Class probabilities down to e^-80 beside one of nearly 1, whichever class that is."""
    net, (x, y) = nn.Linear(4, 3).double(), labelled(9)
    with torch.no_grad():
        net.bias.copy_(torch.tensor([-40.0, -80.0, -60.0]).index_fill(0, torch.tensor(largest), 0.0))
    prior = {"weight": torch.zeros(()).double(), "bias": torch.zeros(()).double()}
    y = torch.full_like(y, largest)
    found = left_out(net, Batches((x, y), net=net), prior)
    torch.testing.assert_close(centred(found.without_it), oracles.left_out_logits(net, x, y, prior), rtol=1e-9, atol=0)


def refitted(x, y, kept):
    """Logistic regression at its MAP, by Newton's method on the data that are kept; θ (in, 3), unit precision."""
    x, y, eye = x[kept], one_hot(y[kept], 3), torch.eye(3 * x.shape[1], dtype=x.dtype)
    theta = torch.zeros(x.shape[1], 3, dtype=x.dtype)
    for _ in range(12):
        p = (x @ theta).softmax(-1)
        w = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
        hessian = torch.einsum("ni,nab,nj->iajb", x, w, x).reshape(eye.shape) + eye
        step = torch.linalg.solve(hessian, (x.mT @ (p - y) + theta).flatten())
        theta = theta - step.view_as(theta)
    assert step.abs().max() < 1e-9
    return theta


def error_against_refits(n):
    """Of f₋ₙ - f_n, over the first 20 data: relative to that of refits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, dtype=torch.float64, generator=generator)
    planted = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    y = torch.multinomial((x @ planted).softmax(-1), 1, generator=generator).squeeze(1)
    theta = refitted(x, y, torch.arange(n))
    net = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    net.weight.data = theta.mT.contiguous()
    found = left_out(net, Batches((x, y), net=net), {"weight": torch.zeros((), dtype=torch.float64)})
    moved = torch.stack([x[i] @ (refitted(x, y, torch.arange(n) != i) - theta) for i in range(20)])
    difference = centred(found.without_it - found.with_it)[:20] - centred(moved)
    return float(difference.norm() / moved.norm())


def test_against_refits_it_is_right_to_first_order():
    """The relative error is of the order of one datum's influence, 1 / n: 16 times the data, about a sixteenth."""
    few, many = error_against_refits(40), error_against_refits(640)
    assert few < 0.1 and many < few / 6


def drawn(times, n=2000):
    logits = 2 * torch.randn(n, 4, dtype=torch.float64)
    y = torch.multinomial((times * logits).softmax(-1), 1).squeeze(1)
    return LeftOut(logits, logits, y)


def test_a_scale_is_left_at_one_without_evidence_and_goes_only_as_far_as_needed():
    assert drawn(1.0).scale() == 1.0
    for times in (0.5, 2.0):
        asked = drawn(times)
        loss = {s: cross_entropy(s * asked.without_it, asked.targets, reduction="none") for s in SCALES}
        best = min(SCALES, key=lambda s: loss[s].mean().item())
        assert abs(best - times) < 0.15 * times
        found, place = asked.scale(), SCALES.index(asked.scale())

        def exceeds(s, loss=loss, best=best):
            more = loss[s] - loss[best]
            return more.mean() > 2 * more.std(correction=0) / len(more) ** 0.5

        assert min(1, best) <= found <= max(1, best) and found != 1
        assert not exceeds(found) and exceeds(SCALES[place + (1 if times < 1 else -1)])


def digits():
    return bws.data.load("digits", task="upright", seed=0, train_size=60, test_size=20)


def small(data):
    return bws.fit(bws.models.WSCNN(hidden_channels=1), data.train, epochs=2, burn_in=0.5, progress=False)


@pytest.mark.filterwarnings("ignore:only")
def test_a_fit_predicts_scaled_and_is_saved_so(tmp_path):
    data = digits()
    fit = small(data)
    x, y = data.test
    with pytest.raises(ValueError, match=r"no scale of its logits: use fit.with_scale\(train\), or kind='map'"):
        fit.predict(x, "scaled")
    scaled = fit.with_scale(TensorDataset(*data.train))
    expected = left_out(fit.model, Batches(data.train, net=fit.model), fit.prior).scale()
    assert scaled.scale == expected and fit.scale is None
    scaled = replace(scaled, scale=1.5)  # so that it differs from "map"
    p = (1.5 * fit.model(x)).softmax(-1).detach()
    torch.testing.assert_close(scaled.predict(x, "scaled"), p)
    assert scaled.nll(x, y, "scaled") == pytest.approx(-p[torch.arange(20), y].log().mean().item(), rel=1e-5)
    assert torch.equal(scaled.predict(x), fit.predict(x))
    scaled.save(tmp_path / "fit")
    back = bws.FitResult.load(tmp_path / "fit")
    assert back.scale == 1.5 and torch.equal(back.predict(x, "scaled"), scaled.predict(x, "scaled"))


@pytest.mark.filterwarnings("ignore:only")
def test_a_fit_of_the_format_before_has_no_scale(tmp_path):
    small(digits()).save(tmp_path / "fit")

    def as_before(record):
        assert record.pop("scale") is None and record["format"] == 7
        record["format"] = 5

    rewritten(tmp_path / "fit" / "fit.json", as_before)
    assert bws.FitResult.load(tmp_path / "fit").scale is None


@pytest.mark.filterwarnings("ignore:only")
def test_errors(monkeypatch):
    data = digits()
    fit = small(data)
    with pytest.raises(ValueError, match="on other data than the fit was trained on"):
        fit.with_scale(data.test)
    with pytest.raises(ValueError, match="data from a DataLoader: expected tensors or a Dataset"):
        fit = replace(fit, provenance=replace(fit.provenance, data=None))
        fit.with_scale(DataLoader(TensorDataset(*data.train), 10, shuffle=True))
    monkeypatch.setattr(of_left_out, "memory_at_hand", lambda device: 1000)
    with pytest.raises(ValueError, match=r"takes .* for a matrix of \d+ rows, and 1.0 kB are at hand: use kind='map'"):
        fit.with_scale(data.train)
    x, y = torch.randn(9, 2), torch.randn(9, 1)
    regression = bws.fit(nn.Linear(2, 1), (x, y), "regression", epochs=1, progress=False)
    with pytest.raises(ValueError, match="likelihood 'regression': expected a classification"):
        regression.with_scale((x, y))

"""Networks of every kind: those that the evidence cannot look into are told in one line, the others work."""

import pytest
import torch
import torch.nn.functional as F
from refusals import assert_refused
from torch import nn

import bayesws as bws


def data(n=12):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=generator), torch.arange(n) % 3


class Net(nn.Module):
    """Two linear layers, with something of a case's own on the way."""

    def __init__(self, way, outputs=3):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.way = nn.Linear(4, 4), nn.Linear(4, outputs), way

    def forward(self, x):
        return self.way(self, x)


def within_autocast(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return net.b(torch.tanh(net.a(x)))


def plain():
    return Net(lambda n, x: n.b(torch.tanh(n.a(x))))


def compiled_in_place():
    net = nn.Linear(4, 3)
    net.compile(backend="eager")
    return net


def of_inference_mode():
    with torch.inference_mode():
        return nn.Linear(4, 3)


REFUSED = {
    "tuple": (lambda: Net(lambda n, x: (n.b(n.a(x)), x)), "a Net that gives a tuple: expected one tensor"),
    "dict": (lambda: Net(lambda n, x: {"logits": n.b(n.a(x))}), "a Net that gives a dict"),
    "None": (lambda: Net(lambda n, x: None), "a Net that gives a NoneType"),
    "scalar": (lambda: Net(lambda n, x: n.b(n.a(x)).sum()), r"outputs of shape \(\) for"),
    "one row": (lambda: Net(lambda n, x: n.b(n.a(x))[:1]), r"outputs of shape \(1, 3\) for"),
    "no outputs": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 0)), r"of shape \(0, 4\) is empty"),
    "nothing between": (lambda: nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3)), r"of shape \(0, 4\) is empty"),
    "whole numbers": (lambda: Net(lambda n, x: n.b(n.a(x)).argmax(1)), "outputs of type torch.int64"),
    "half": (lambda: plain().half(), "parameter 'a.weight' of type torch.float16: expected float32 or float64"),
    "bfloat16": (lambda: plain().bfloat16(), "parameter 'a.weight' of type torch.bfloat16"),
    "complex": (lambda: nn.Linear(4, 3, dtype=torch.complex64), "parameter 'weight' of type torch.complex64"),
    "meta": (lambda: plain().to("meta"), r"parameter 'a.weight' has no values \(meta\)"),
    "lazy": (lambda: nn.LazyLinear(3), "parameter 'weight' is not initialised"),
    "scripted": (lambda: torch.jit.script(nn.Linear(4, 3)), "a scripted or traced network"),
    "compiled": (lambda: torch.compile(nn.Linear(4, 3), backend="eager"), "a compiled network"),
    "compiled in place": (compiled_in_place, "a compiled network"),
    "a compiled layer": (
        lambda: nn.Sequential(torch.compile(nn.Linear(4, 3), backend="eager"), nn.Tanh()),
        "a compiled network",
    ),
    "made in inference mode": (of_inference_mode, "parameter 'weight' was made within torch.inference_mode"),
    "autocast": (lambda: Net(within_autocast), "type torch.bfloat16: expected float32 or float64"),
    "autocast, then float": (
        lambda: Net(lambda n, x: within_autocast(n, x).float()),
        "layer 'a' gives torch.bfloat16: expected float32 or float64",
    ),
    "vmap": (lambda: Net(lambda n, x: n.b(torch.vmap(n.a)(x))), "layer 'a' is called within torch.vmap"),
    "no network": (lambda: nn.Linear, "a type in the place of a network: expected an nn.Module; call it"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("run", [bws.log_evidence, bws.fit, bws.evidence_gradient], ids=lambda run: run.__name__)
def test_what_the_evidence_cannot_look_into_is_told(run, case):
    make, message = REFUSED[case]
    assert_refused(lambda: run(make(), data()), message)


@pytest.mark.parametrize("run", [bws.log_evidence, bws.fit, bws.evidence_gradient], ids=lambda run: run.__name__)
def test_a_mode_without_gradients_is_told(run):
    with torch.inference_mode():
        assert_refused(lambda: run(plain(), data()), "called within torch.inference_mode")
    with torch.autocast("cpu", torch.bfloat16):
        assert_refused(lambda: run(plain(), data()), "type torch.bfloat16: expected float32 or float64")


def test_there_must_be_something_to_fit():
    assert_refused(lambda: bws.fit(nn.Flatten(), data()), "a Flatten without parameters")
    assert_refused(lambda: bws.fit(plain().requires_grad_(False), data()), "a Net whose parameters are all frozen")


@pytest.mark.parametrize("device", ["mps", "cuda:9", "foo", 3, "meta", "", None, torch.device("meta")])
def test_a_device_that_is_not_there_is_told(device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is there")
    if device is None:
        bws.fit(plain(), data(), device=device, epochs=1, progress=False)
        return
    assert_refused(lambda: bws.fit(plain(), data(), device=device, epochs=1), "device")


WORKS = {
    "a keyword call": lambda n, x: n.b(input=torch.tanh(n.a(input=x))),
    "float64 within": lambda n, x: n.b(torch.tanh(n.a(x)).double().float()),
    "functions of the layer's outputs": lambda n, x: n.b(F.hardtanh(n.a(x), -9, 9).tanh()),
}


@pytest.mark.parametrize("case", WORKS)
@pytest.mark.parametrize("curvature", bws.evidence.curvature.KINDS)
def test_what_is_the_same_function_has_the_same_evidence(case, curvature):
    found, wanted = (bws.log_evidence(Net(way), data(), curvature=curvature) for way in (WORKS[case], plain().way))
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)


def test_predictions_say_what_they_cannot_take():
    fit = bws.fit(plain(), data(), epochs=1, progress=False)
    x, y = data()
    for call, message in (
        (lambda: fit.predict(x[:0]), r"inputs of shape \(0, 4\): expected at least one example"),
        (lambda: fit.nll(x, y[:-1]), "12 inputs and 11 targets"),
        (lambda: fit.predict([[0.0] * 4]), "inputs of type list"),
        (lambda: fit.predict(x, batch_size=1.5), "batch_size=1.5: expected at least 1, a whole number"),
        (lambda: fit.predict(torch.rand(2, 5)), r"does not take inputs of shape \(\d, 5\)"),
        (lambda: fit.predict(torch.rand(2, 5), "posterior"), r"does not take inputs of shape \(\d, 5\)"),
    ):
        assert_refused(call, message)
    with torch.inference_mode():
        assert fit.predict(x, "map").shape == (12, 3)


def test_a_group_of_one_needs_no_stack_and_has_an_evidence():
    net = nn.Sequential(bws.layers.WSLinear(4, 3, group_size=1, stack="dense"), nn.Flatten())
    assert min(parameter.numel() for parameter in net.parameters()) == 0  # the identity has no logits
    assert float(bws.log_evidence(net, data())) < 0


def test_a_batch_that_a_convolution_takes_for_one_datum_is_refused():
    net = nn.Sequential(nn.Conv1d(8, 8, 1), nn.Tanh())  # for which (8, 4) is one datum of eight channels
    assert_refused(lambda: bws.log_evidence(net, data(8)), r"a convolution of 1 axes is given \(8, 4\)")


def test_a_fit_within_no_grad_is_that_without():
    with torch.no_grad():
        within = bws.fit(plain(), data(), epochs=2, progress=False)
    assert within.log_evidence == bws.fit(plain(), data(), epochs=2, progress=False).log_evidence


@pytest.mark.parametrize("case", ["tuple", "meta", "scripted", "nothing between"])
def test_a_forecast_refuses_what_an_evidence_does(case):
    make, message = REFUSED[case]
    assert_refused(lambda: bws.forecast(make(), data()), message)

"""The evidence where the network is: the same numbers on every device, in float32 beside float64 on the CPU."""

import copy

import networks
import pytest
import torch

from bayesws import Categorical, Curvature, Gaussian, evidence_gradient, log_evidence

CURVATURES = [
    Curvature("full"),
    Curvature("layer"),
    Curvature("diag"),
    Curvature("kron"),
    Curvature("kron", "reduce"),
    Curvature("kron", exact_up_to=20),
]
every_curvature = pytest.mark.parametrize("curvature", CURVATURES, ids=str)
every_net = pytest.mark.parametrize("sharing", [networks.SHARING[0], networks.SHARING[3]], ids=["fixed", "dense"])


def problem(sharing, kind):
    """Precisions of one and more: what float32 resolves of H beside Λ."""
    net = networks.Small(*sharing)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "log_precisions" in name:
                parameter.abs_()
    return net, networks.images(8), networks.targets(kind, 8, 2)


def moved(device, net, x, y):
    y = y.to(device) if y.dtype == torch.int64 else y.to(device, torch.float32)
    return copy.deepcopy(net).to(device, torch.float32), (x.to(device, torch.float32), y)


@every_net
@every_curvature
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_evidence_on_a_device(sharing, curvature, kind, device):
    """1e-4 of the evidence: some hundred sums of products in float32 (6e-8 each), amplified by log det."""
    net, x, y = problem(sharing, kind)
    likelihood = Categorical() if kind == "classification" else Gaussian(0.7)
    there, data = moved(device, net, x, y)
    expected = log_evidence(net, (x, y), likelihood, curvature)
    if kind == "regression":
        likelihood.log_noise.data = likelihood.log_noise.data.to(device)
    found = log_evidence(there, data, likelihood, curvature, batch_size=3)
    assert found.total.device.type == device and float(found) == pytest.approx(float(expected), rel=1e-4)


@every_net
@pytest.mark.parametrize("way", ["once", "twice"])
def test_gradient_on_a_device(sharing, way, device, tight_sinkhorn):
    """1e-2 of the largest entry: the gradient is a difference of terms ten and more times its size."""
    net, x, y = problem(sharing, "classification")
    there, data = moved(device, net, x, y)
    _, expected = evidence_gradient(net, (x, y), way=way)
    _, found = evidence_gradient(there, data, way=way)
    for name, value in expected.items():
        assert found[name].device.type == device
        error = (found[name].double().cpu() - value).abs().max()
        assert float(error) <= 1e-2 * float(value.abs().max()) + 1e-4, name


@pytest.mark.parametrize("samples", [1, 3])
def test_draws_on_a_device(samples, device):
    """Signs are drawn on the CPU for every device, so that all have the same evidence; 1e-4 as above."""
    net, x, y = problem(networks.SHARING[0], "classification")
    there, data = moved(device, net, x, y)
    curvature = Curvature("kron", samples=samples, seed=2)
    found = float(log_evidence(there, data, curvature=curvature))
    assert found == float(log_evidence(there, data, curvature=curvature))
    assert found == pytest.approx(float(log_evidence(net, (x, y), curvature=curvature)), rel=1e-4)

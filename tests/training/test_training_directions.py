"""Layers whose scale the network does not see: found, turned and not shrunk, kept at their size."""

import pytest
import torch
from torch import nn

import bayesws as bws
from bayesws.layers.contract import named_pathways, starting_log_precisions
from bayesws.training.directions import Directions, unscaled_layers

X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LARGER = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def convolutions(*norms):
    torch.manual_seed(1)
    norms = [*norms, nn.Identity()]
    first = [nn.Conv2d(1, 4, 3), norms[0], nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(4, 4, 3), norms[1], nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def without_weights(net):
    nn.init.zeros_(net[-1].weight)
    return net


@pytest.mark.parametrize(
    ("net", "layers"),
    [
        (bws.models.WSCNN(norm="layer"), ["lift", "group_convs.0"]),
        (bws.models.WSCNN(norm="layer", stack="dense"), ["lift", "group_convs.0"]),
        (bws.models.WSCNN(), []),
        (bws.models.CNN(norm="batch"), []),  # its statistics are fixed where the evidence looks
        (convolutions(nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)), ["0", "1", "3"]),  # the latter knows no offset, too
        (convolutions(nn.GroupNorm(2, 4)), ["0"]),
        (without_weights(convolutions(nn.GroupNorm(2, 4))), []),  # nothing is seen of any layer
    ],
    ids=["sharing", "soft", "plain", "batch", "groups", "one", "unseen"],
)
def test_layers_before_a_normalisation_are_found(net, layers):
    before = torch.random.get_rng_state()
    assert list(unscaled_layers(net, X if isinstance(net, nn.Sequential) else LARGER)) == layers
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_pull_turns_such_a_layer_and_does_not_shrink_it():
    """Its gradient is that of Σ δ ‖θ‖² with θ held at its size: against central differences, and none along θ."""
    net = convolutions(nn.GroupNorm(2, 4)).double()
    directions, pathways = Directions(net, X.double()), dict(named_pathways(net))
    deltas = {name: 1.0 + index for index, name in enumerate(pathways)}
    pull = directions.pull(deltas, {name: p.parameter.square().sum() for name, p in pathways.items()})
    pull.backward()
    whole = sum(deltas[name] * float(p.parameter.detach().square().sum()) for name, p in pathways.items())
    assert float(pull.detach()) == pytest.approx(whole)
    turned = [net[0].weight, net[0].bias]
    size = sum(float(p.detach().square().sum()) for p in turned)

    def at_size(step, where):
        moved = [p.detach().clone() for p in turned]
        moved[0].view(-1)[where] += step
        squares = [float(p.square().sum()) for p in moved]
        return (deltas["0.weight"] * squares[0] + deltas["0.bias"] * squares[1]) * size / sum(squares)

    for where in (0, 17):
        slope = (at_size(1e-5, where) - at_size(-1e-5, where)) / 2e-5
        assert float(net[0].weight.grad.view(-1)[where]) == pytest.approx(slope, rel=1e-6, abs=1e-8)
    along = sum(float((p.detach() * p.grad).sum()) for p in turned)
    assert abs(along) < 1e-9 * size
    assert torch.allclose(net[3].weight.grad, 2 * deltas["3.weight"] * net[3].weight)  # pulled as ever


@pytest.mark.parametrize("stack", ["fixed", "dense"])
def test_another_size_is_the_same_network_with_the_same_evidence(stack):
    """To what the normalisation adds to the variance, 1e-5."""
    torch.manual_seed(0)
    net = bws.models.WSCNN(norm="layer", stack=stack, hidden_channels=2, kernel_size=3).double()
    y = torch.arange(6)
    prior = starting_log_precisions(net)
    directions = Directions(net, X.double())

    def now():
        logs = {name: tensor.detach().clone() for name, tensor in prior.items()}
        with torch.no_grad(), pytest.warns(UserWarning, match="normalises"):
            return net(X.double()), float(bws.log_evidence(net, (X.double(), y), prior=logs, curvature="full"))

    net.eval()
    outputs, evidence = now()
    weight = net.lift.shared.detach().clone()
    directions.squares = {layer: 4 * square for layer, square in directions.squares.items()}
    directions.keep_sizes(dict(named_pathways(net)), prior)
    assert torch.allclose(net.lift.shared, 2 * weight)
    again, found = now()
    assert torch.allclose(outputs, again, rtol=1e-3)
    assert found == pytest.approx(evidence, rel=1e-4)


def test_a_fit_keeps_their_sizes():
    torch.manual_seed(0)
    net = convolutions(nn.GroupNorm(1, 4, affine=False))
    y = torch.arange(6) % 3
    with pytest.warns(UserWarning):
        fit = bws.fit(net, (X, y), epochs=8, every=1, burn_in=0.2, curvature="kron", learning_rate=0.1)

    def sizes(net):
        return [float(torch.cat([net[i].weight.flatten(), net[i].bias]).norm()) for i in (0, 3)]

    before, after = sizes(net), sizes(fit.model)
    assert after[0] == pytest.approx(before[0], rel=1e-5)
    assert after[1] != pytest.approx(before[1], rel=1e-2)
    assert not torch.allclose(net[0].weight, fit.model[0].weight, rtol=0.1)

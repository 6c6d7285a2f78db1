"""Layers whose scale the network does not see: found, turned and not shrunk, kept at their size."""

import pytest
import torch
from torch import nn

import bayesws as bws
from bayesws.layers.contract import layers_of, named_pathways, starting_log_precisions
from bayesws.training.directions import Directions, unscaled_layers

X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
QUIET = {"keep_sizes": True, "learning_rate": 0.1, "progress": False, "keep_posterior": False}
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


@pytest.mark.parametrize("stack", [None, "fixed", "dense"])
def test_a_fit_keeps_their_sizes(stack):
    """With steps on the precisions alone, and on a structure; others' sizes change. Nested pathways would be rebalanced
    at the end, after which their weights are the same sum with other squares."""
    torch.manual_seed(0)
    if stack is None:
        net = convolutions(nn.GroupNorm(1, 4, affine=False))
    else:
        net = bws.models.WSCNN(norm="layer", stack=stack, hidden_channels=2, kernel_size=3, pathways=("shared",))
    before = sizes(net)
    with pytest.warns(UserWarning):
        fit = bws.fit(net, (X, torch.arange(6) % 3), epochs=8, every=1, burn_in=0.2, curvature="kron", **QUIET)
    after = sizes(fit.model)
    kept = list(unscaled_layers(net, X))
    assert kept and [layer for layer in before if after[layer] == pytest.approx(before[layer], rel=1e-5)] == kept
    first, trained = (next(iter(layers_of(of)[kept[0]].pathways.values())).parameter for of in (net, fit.model))
    assert not torch.allclose(first, trained, rtol=0.1)


def sizes(net):
    """By layer the norm of its weights."""
    weights = {name: [p.parameter.flatten() for p in layer.pathways.values()] for name, layer in layers_of(net).items()}
    return {name: float(torch.cat(found).detach().norm()) for name, found in weights.items()}


def test_nothing_is_kept_unless_it_is_asked_for():
    net = convolutions(nn.GroupNorm(1, 4, affine=False))
    with pytest.warns(UserWarning):
        fit = bws.fit(net, (X, torch.arange(6) % 3), epochs=3, **QUIET | {"keep_sizes": False})
    assert sizes(fit.model)["0"] != pytest.approx(sizes(net)["0"], rel=1e-2)
    with pytest.raises(ValueError, match="keep_sizes"):
        bws.fit(net, (X, torch.arange(6) % 3), epochs=3, **QUIET | {"keep_sizes": "yes"})

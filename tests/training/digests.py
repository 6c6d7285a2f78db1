"""Digests of what `fit` computes, for a change that must not move a bit: run it before and after, and compare.

    python tests/training/digests.py

Five objectives on fixed and soft stacks, on the digits, 20 epochs, seed 0; then sampled columns, a start at moments,
the noise of a regression, and the task loss with its regularisers. A line each: stack, objective, digest of the
history, digest of the final weights, the log evidence. About two minutes. No test compares them with numbers that were
kept: they are those of one machine's arithmetic.
"""

import hashlib
import json
import warnings

import torch

import bayesws as bws
from bayesws.training.objectives import TaskLoss

SETTINGS = {"epochs": 20, "seed": 0, "keep_posterior": False, "progress": False}


def line(name, what, net, train, **settings):
    fit = bws.fit(net, train, **SETTINGS, **settings)
    history, weights = hashlib.sha256(), hashlib.sha256()
    for record in fit.history:
        history.update(json.dumps({k: float(v).hex() for k, v in record.items()}, sort_keys=True).encode())
    for key, tensor in sorted(fit.model.state_dict().items()):
        weights.update(key.encode() + tensor.detach().contiguous().numpy().tobytes())
    print(name, what, history.hexdigest()[:16], weights.hexdigest()[:16], float(fit.log_evidence).hex(), flush=True)


def network(stack="fixed"):
    torch.manual_seed(0)
    return bws.models.WSCNN(stack=stack)


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    train = bws.data.load("digits", task="turned", seed=0).train
    for stack in ("fixed", "dense"):
        for objective in bws.objectives.OBJECTIVES:
            line(stack, objective, network(stack), train, objective=objective)
    sampled = bws.Curvature("kron", samples=1)
    line("dense", "sampled,moments", network("dense"), train, curvature=sampled, start="moments")
    line("fixed", "sampled", network(), train, curvature=sampled)
    torch.manual_seed(0)
    linear = bws.layers.WSLinear(6, 8, group_size=3, stack="dense")
    net = torch.nn.Sequential(linear, torch.nn.Flatten(), torch.nn.Linear(24, 2))
    x = torch.randn(200, 6)
    y = torch.stack([x.sum(1), x[:, 0] * x[:, 1]], 1) + 0.1 * torch.randn(200, 2)
    line("dense", "regression", net, (x, y), likelihood="regression")
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    line("plain", "regression", plain, (x, y), likelihood="regression", curvature="full")
    penalised = TaskLoss(weight_decays=(1e-3,), normaliser=0.1, entropy=0.05)
    rested = TaskLoss(weight_decays=(1e-3,), rest_structure=True, structure_rate=0.1)
    line("product", "task,penalised", network("product"), train, objective=penalised)
    line("dense", "task,rested", network("dense"), train, objective=rested)


if __name__ == "__main__":
    main()

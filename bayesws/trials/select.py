"""Which network do the data want? Networks trained alike and ranked by their evidence, with nothing held out."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from bayesws.evidence.by_default import Size, columns_of, full_curvature, parameters_of
from bayesws.evidence.curvature import Curvature, curvature_named
from bayesws.evidence.likelihood import Likelihood, likelihood_named
from bayesws.evidence.objective import batches_for
from bayesws.evidence.reading import as_tensors
from bayesws.io.arguments import path_of, whole
from bayesws.io.only_writer import only_writer
from bayesws.layers.contract import layers_of
from bayesws.training.result import FitResult
from bayesws.trials.ranking import Ranking
from bayesws.trials.starts import Start, best_of, made, started
from bayesws.trials.store import as_file_name

LARGEST_WHOLE = 2000  # parameters of a network whose whole Hessian is taken
LARGEST_LAYER = 10_000  # parameters of a layer whose joint block is taken
FEW = 2  # data that are looked at beforehand


def select(
    networks: Mapping[str, nn.Module | Callable[[], nn.Module]],
    data: Any,
    likelihood: str | Likelihood = "classification",
    seeds: int = 1,
    *,
    test: Any = None,
    curvature: str | Curvature | None = None,
    evidence_curvature: str | Curvature | None = None,
    checkpoints: str | Path | None = None,
    **settings: Any,
) -> Ranking:
    """Train every network by the evidence with one schedule, and rank them by one and the same evidence.

    p(network | D) ∝ p(D | network), at equal prior odds. Of several starts the best counts for its network.

    Kronecker factors err by different amounts for different stacks (fixed or soft, few elements or many), so the
    evidence that ranks is computed anew at the end, at the precisions and noise that training found. By default it is
    "full" (exact, up to the Laplace approximation) where all networks can afford all columns, else by as many sampled
    columns a datum as they can, with the same signs for all (see `by_default.full_curvature`): every covariance between
    layers is kept. Where memory holds no rows, or the number of data is not known, it is "layer" (a lower bound:
    covariances between layers are left out) for layers of at most 10 000 parameters, else "kron", which is no bound at
    all. A lead of a few nats by such numbers is a tie. The choice and its meaning are in the result's settings,
    "evidence_curvature" and "bound".

    Args:
        networks: by name: networks, or functions that make one, called with torch's seed set. Networks that are given
            as such start every time from the weights they have.
        data: a pair of tensors (x, y), a Dataset or a DataLoader; all of it is trained on.
        likelihood: as for `fit`, the same for all.
        seeds: starts for each network, 0 to seeds - 1; with starts=k among the settings each is the best of k.
        test: held-out data, as `data`, for a column beside the evidence and for `Ranking.disagreement`; it chooses
            nothing.
        curvature: of the steps on the hyperparameters, as for `fit`; None is as exact as each network can afford.
        evidence_curvature: of the evidence that ranks; None chooses as above.
        checkpoints: a folder with one of `fit`'s checkpoints for every network and start: the same call goes on from
            there, to the same numbers.
        settings: further arguments of `fit`, such as `epochs`.

    Raises:
        ValueError: no networks, fewer than one seed, a folder that another process writes into; what `fit` raises, with
            the network's name before it.
    """
    if not isinstance(networks, Mapping):
        raise ValueError(f"networks of type {type(networks).__name__}: expected a mapping of names to networks")
    if not networks:
        raise ValueError("no networks: expected a mapping of names to networks, or to functions that make one")
    seeds = whole("seeds", seeds)
    if reserved := next((name for name in ("objective", "seed") if name in settings), None):
        raise ValueError(f"{reserved}={settings[reserved]!r}: networks train by the evidence from seeds 0, 1, ...")
    test = None if test is None else as_tensors(test)
    noise_model = likelihood_named(likelihood)
    steps = None if curvature is None else curvature_named(curvature)
    nets = {name: made(name, network, 0) for name, network in networks.items()}
    asked = (
        comparable_curvature(nets.values(), data, noise_model)
        if evidence_curvature is None
        else curvature_named(evidence_curvature)
    )
    common: dict[str, Any] = {"keep_posterior": False} | settings
    starts, fits = [], {}
    kept = None if checkpoints is None else path_of(checkpoints)
    with nullcontext() if kept is None else only_writer(kept):
        for name, network in networks.items():
            tried: list[tuple[FitResult, Start]] = []
            for seed in range(seeds):
                net = nets[name] if seed == 0 else made(name, network, seed)
                if kept is not None:
                    common["checkpoint"] = kept / f"{as_file_name(name)}-{seed}"
                tried.append(started(name, net, data, noise_model, steps, asked, seed=seed, test=test, **common))
            fits[name] = max(tried, key=lambda pair: pair[1].log_evidence)[0]
            starts += [start for _, start in tried]
    return ranking_of(starts, noise_model.name, steps, asked, fits)


def ranking_of(
    starts: Iterable[Start],
    likelihood: str,
    curvature: Curvature | None,
    evidence_curvature: Curvature,
    fits: dict[str, FitResult] | None = None,
) -> Ranking:
    """The ranking of networks by the best of their starts.

    Args:
        starts: of all networks, as many of each.
        likelihood: its name.
        curvature: of the steps; None where each network had what `fit` takes by default.
        evidence_curvature: of the evidence that ranks.
        fits: the best start of every network by its name, where they are at hand.

    Raises:
        ValueError: starts on different data.
    """
    by_name: dict[str, list[Start]] = {}
    for start in starts:
        by_name.setdefault(start.name, []).append(start)
    rows = sorted((best_of(tried) for tried in by_name.values()), key=lambda row: -row.log_evidence)
    last = next(reversed(by_name.values()))[-1]
    record = {
        "likelihood": likelihood,
        "seeds": len(by_name[last.name]),
        "examples": last.examples,
        "schedule": last.schedule,
        "curvature": None if curvature is None else asdict(curvature),
        "evidence_curvature": asdict(evidence_curvature),
        "bound": f"curvature {evidence_curvature.kind!r}, {evidence_curvature.bound}",
    }
    return Ranking(rows, record, fits or {})


def comparable_curvature(nets: Iterable[nn.Module], data: Any, likelihood: Likelihood) -> Curvature:
    """The sharpest curvature that all networks can afford on these data (see `select`)."""
    nets = list(nets)
    if all(parameters_of(net) <= LARGEST_WHOLE for net in nets):
        return Curvature("full")
    sharpest = [_sharpest(net, data, likelihood) for net in nets]
    if None not in sharpest:
        return min((found for found in sharpest if found), key=lambda found: (found.samples or math.inf, found.rows))
    layers = [sum(p.numel for p in layer.pathways.values()) for net in nets for layer in layers_of(net).values()]
    return Curvature("layer" if max(layers) <= LARGEST_LAYER else "kron")


def _sharpest(net: nn.Module, data: Any, likelihood: Likelihood) -> Curvature | None:
    """ "full" as a network can afford it; None where it cannot, and where the number of data, or of columns of the
    likelihood's Hessian root, cannot be told beforehand: of a stream, and of what the network cannot take, of which its
    fit says what is wrong with it.
    """
    try:
        batches = batches_for(net, data, FEW)
        x = batches.example()
        if x is None or batches.total < 0:
            return None
        return full_curvature(Size.of(net, x), batches.total, columns_of(net, x, likelihood))
    except (ValueError, TypeError, RuntimeError, IndexError):
        return None

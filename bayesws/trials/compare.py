"""Running a comparison: the same network, data and schedule under several objectives, paired by seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from bayesws.data import ImageData
from bayesws.evidence.curvature import Curvature, curvature_named
from bayesws.evidence.reading import as_tensors
from bayesws.io.arguments import shown, whole
from bayesws.models import WSCNN
from bayesws.training.objectives.names import objective_named, settings_for
from bayesws.training.objectives.objective import Objective
from bayesws.trials.comparison import PATHWAYS, Comparison
from bayesws.trials.spec import train_and_score
from bayesws.trials.starts import made

DEFAULT_OBJECTIVES = ("evidence", "task")


def compare(
    make_net: Callable[[], nn.Module],
    train: Any,
    test: Any,
    seeds: int = 5,
    objectives: tuple[str | Objective, ...] = DEFAULT_OBJECTIVES,
    likelihood: str = "classification",
    curvature: str | Curvature | None = None,
    elsewhere: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    **settings: Any,
) -> Comparison:
    """Evidence against the task loss and other baselines on one data set, paired over seeds.

    Args:
        make_net: builds the network; called with torch's seed set, so that every objective starts from equal weights.
        train, test: pairs of tensors (x, y), Datasets or DataLoaders.
        seeds: how many, 0 to seeds - 1.
        objectives: as `fit` knows them.
        likelihood: as for `fit`.
        curvature: as for `fit`.
        elsewhere: test data of other tasks with the same labels, by name: how does each objective do out of its
            training distribution?
        settings: further arguments of `fit`, such as `epochs`.

    Raises:
        ValueError: as `fit`; fewer than one seed.
    """
    if isinstance(make_net, nn.Module) or not callable(make_net):
        raise ValueError(f"make_net is a {type(make_net).__name__}: expected a function that makes a network")
    seeds = whole("seeds", seeds)
    if reserved := next((name for name in ("objective", "seed", "keep_posterior") if name in settings), None):
        raise ValueError(
            f"{reserved}={shown(settings[reserved])}: every objective trains from seeds 0, 1, ...; leave it out"
        )
    if not isinstance(elsewhere, Mapping | None):
        raise ValueError(f"elsewhere={shown(elsewhere)}: expected test data by name")
    others = {name: as_tensors(other) for name, other in (elsewhere or {}).items()}
    if isinstance(objectives, str) or not isinstance(objectives, Sequence) or not objectives:
        raise ValueError(f"objectives={shown(objectives)}: expected several, such as ('evidence', 'task')")
    compared = [objective_named(objective) for objective in objectives]
    train, test = as_tensors(train), as_tensors(test)
    given: dict[str, Any] = {"likelihood": likelihood, "curvature": curvature, "keep_posterior": False}
    trials = []
    for objective in compared:
        mine = settings_for(objective, settings, compared)
        for seed in range(seeds):
            _, trial = train_and_score(
                made("make_net", make_net, seed),
                train,
                test,
                seed=seed,
                elsewhere=others,
                objective=objective,
                **given,
                **mine,
            )
            trials.append(trial)
    same = {k: v for k, v in settings.items() if k != "progress"}
    asked = None if curvature is None else asdict(curvature_named(curvature))
    return Comparison(trials, {"seeds": seeds, "curvature": asked, **same})


def network_for(images: ImageData, pathways: str, **network: Any) -> WSCNN:
    """The `WSCNN` of some images' channels and classes, with the pathways that a comparison calls so."""
    channels = images.train[0].shape[1]
    return WSCNN(in_channels=channels, num_classes=images.num_classes, pathways=PATHWAYS[pathways], **network)

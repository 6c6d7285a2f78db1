"""fit: a copy of a network is started, trained by an objective, and handed back with its numbers."""

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayesws.evidence.batches import Batches, digest_of, spread
from bayesws.evidence.by_default import sharpest_curvature, step_curvature
from bayesws.evidence.checks import FEW, check_network, check_whole_batch
from bayesws.evidence.curvature import Curvature, curvature_named
from bayesws.evidence.likelihood import Likelihood, likelihood_named
from bayesws.evidence.memory import refuse_what_does_not_fit
from bayesws.evidence.networks import check_network_kind, check_trained, outputs_of
from bayesws.evidence.thinning import rows_of
from bayesws.io.arguments import device_of, flag, path_of, seed_of, shown
from bayesws.io.only_writer import only_writer
from bayesws.io.progress import epoch_bar
from bayesws.io.provenance import versions
from bayesws.layers.contract import declarations, evaluating, structure, structures
from bayesws.training.best_start import Trainer, best_start
from bayesws.training.checkpoint import Checkpoint
from bayesws.training.held_out import Split
from bayesws.training.objectives.by_evidence import ByEvidence
from bayesws.training.objectives.names import objective_named, with_settings
from bayesws.training.objectives.objective import Objective, Setting, Work
from bayesws.training.outcome import final_posterior
from bayesws.training.recipe import Provenance, Recipe
from bayesws.training.result import FitResult
from bayesws.training.schedule import Schedule
from bayesws.training.starts import Starts

Watch = Callable[[dict[str, float]], object]


def fit(
    net: nn.Module,
    train: Any,
    likelihood: str | Likelihood = "classification",
    objective: str | Objective = "evidence",
    curvature: str | Curvature | None = None,
    *,
    seed: int = 0,
    schedule: Schedule | None = None,
    device: torch.device | str | None = None,
    progress: bool | Watch | None = None,
    keep_posterior: bool = True,
    checkpoint: str | Path | None = None,
    **settings: Any,
) -> FitResult:
    """Train a copy of a network; its sharing by the evidence, or not at all.

    objective="evidence": weights minimise -log p(D | θ) + ½ θᵀ Λ θ; every few epochs one Laplace pass sets Λ (MacKay's
    fixed point), the noise, and, with the whole gradient of the log evidence, the layers' structure (`ByEvidence`).

    objective="task": weights and structure minimise the mean of -log p + ½ λ ‖θ‖², with λ chosen on held-out data
    (`TaskLoss`); "fixed", "validated" and "constrained" tell shared and free weights apart. All are in
    `bayesws.objectives`; another is a class with the methods of `objectives.Objective`.

    All objectives share loop, optimiser, schedule, initial weights and the order of the data. Runs are reproducible to
    the last bit on one thread (torch.set_num_threads(1)).

    starts=k trains k starts: the network as given, and others with weights (and soft stacks) of their own; by the
    evidence some do not start shared, of fixed stacks every second. The highest exact evidence is kept; under the task
    loss and its relatives it is the smallest held-out loss. All are told in `FitResult.starts`; see `training.starts`
    and `training.best_start`.

    Args:
        net: the network at its initial weights; it is left as it is.
        train: a pair of tensors or numpy arrays (x, y), a Dataset or a DataLoader; also of mappings or of tuples
            (x, y, ...), see `log_evidence`.
        likelihood: "classification", "regression", or a likelihood.
        objective: a short name, or a value with settings of its own, such as `objectives.FixedRatio(ratio=30.0)`.
        curvature: a `Curvature`, or its name: "kron", "full", "layer", "pathway" or "diag". None is "full", the exact
            evidence, wherever it can be afforded: by all columns, else by sampled columns of the data (see
            `by_default.sharpest_curvature`, and `step_curvature` for the steps, which take fewer data), else "kron".
            Samples and subset are for the evidence's steps (unless the objective has a curvature of its own); the
            evidence at the end is without them, but for "full" where all columns are too many (see
            `outcome.final_curvature`).
        seed: of the order of the data, of the held-out split, and of the starts.
        schedule: how long and how fast, and where stacks start; see `Schedule`.
        device: where to train; None is where the network is.
        progress: whether to show a bar; None shows it on a terminal. Or a function that is called with every new record
            of the history, beside the bar; not while settings are chosen. With several starts a record has its "start".
        keep_posterior: whether to keep what predictions by the posterior need (`FitResult.predict_moments`, and
            kind="posterior"), as laplace-torch can hold it: the curvature "full" (P² numbers) or "diag" that is asked
            for, and Kronecker factors for all else.
        checkpoint: a folder for what the fit leaves, every ten seconds and at its end. The same call goes on from
            there, to the same numbers to the last bit; a finished fit it hands back.
        settings: fields of the schedule or the objective, such as `epochs=100` or `weight_decays=(0.0, 1e-3)`.

    Raises:
        ValueError: unknown names, data or settings that do not fit, parameters that cannot be treated.
        FloatingPointError: a loss that is not finite, naming the epoch.
    """
    started = time.perf_counter()
    check_network_kind(net)
    check_trained(net)
    declarations(net)  # before it is copied: a copy unties what lies in the same memory
    if not isinstance(schedule, Schedule | None):
        raise ValueError(
            f"schedule={shown(schedule)}: expected a Schedule, or its fields as arguments, such as epochs=100"
        )
    if not isinstance(progress, bool | None) and (isinstance(progress, type | nn.Module) or not callable(progress)):
        raise ValueError(f"progress={shown(progress)}: expected True, False, None or a function of a record")
    plan, chooser = with_settings(schedule or Schedule(), objective_named(objective), settings)
    noise, seed = copy.deepcopy(likelihood_named(likelihood)), seed_of(seed)
    asked = Curvature("kron") if curvature is None else curvature_named(curvature)
    keep_posterior, folder = flag("keep_posterior", keep_posterior), None if checkpoint is None else path_of(checkpoint)
    model = copy.deepcopy(net) if device is None else copy.deepcopy(net).to(device_of(device))
    place = next(model.parameters()).device
    data = Batches(train, plan.batch_size, place, net=model)
    setting = Setting(model, data, noise, plan, asked, seed)
    few, told = _check(setting, chooser), list[str]()
    setting = replace(setting, schedule=plan.for_data(len(data)), few=few)
    if curvature is None:
        setting, chooser, told = _by_default(setting, chooser, few)
    held = asked if keep_posterior else None
    shares = isinstance(chooser, ByEvidence) and chooser.shared_start is not None
    fitted = partial(_fitted, Starts(setting, shares), chooser, progress, held, told, started)
    if folder is None:
        return fitted(None)
    kept = Checkpoint(folder, _digest(setting, chooser, keep_posterior))
    with only_writer(kept.folder):
        finished = kept.finished(model, setting.likelihood)
        return fitted(kept) if finished is None else finished


def _fitted(
    starts: Starts,
    chooser: Objective,
    progress: bool | Watch | None,
    held: Curvature | None,
    told: list[str],
    started: float,
    kept: Checkpoint | None,
) -> FitResult:
    """Train, and look at what came out.

    Args:
        starts: of the network.
        held: the curvature of the posterior that is kept; None keeps none.
        told: notes beforehand.
        started: when, on `time.perf_counter`.
    """
    first, plan = starts.begun(0), starts.setting.schedule
    show, watch = (None, progress) if callable(progress) else (progress, _unwatched)
    watching = partial(_watching, show, plan.epochs, chooser.name)
    split = Split(first.setting, watching, kept)
    chosen = chooser.choose(first.setting, split)
    best, told_starts, doubts = best_start(Trainer(starts, chooser, chosen, watching, kept, watch), first, split)
    ended = time.perf_counter()
    setting, work, history = best.begun.setting, best.work, best.loop.history
    place = next(setting.net.parameters()).device
    posterior, notes = ({}, []) if held is None else _posterior(setting, work, held)
    if plan.start is not None and not structure(setting.net):
        notes = [f"start={plan.start!r} had nothing to start: no layer has a soft stack", *notes]
    result = FitResult(
        model=setting.net.eval(),
        prior=work.log_precisions,
        likelihood=setting.likelihood,
        evidence=best.evidence,
        history=history,
        recipe=_recipe(setting, chooser, chosen),
        provenance=Provenance(versions(), setting.data.digest(), str(place), ended - started, best.loop.seconds),
        start=best.begun.proposals,
        starts=told_starts,
        notes=(*work.notes(history), *told, *doubts, *notes),
        posterior=posterior,
    )
    if kept is not None:
        kept.finish(result)
    for note in result.notes:
        warnings.warn(note, stacklevel=3)
    return result


def _check(setting: Setting, objective: Objective) -> Tensor:
    """Everything that can be known before anything is spent; a few of the inputs."""
    rows = partial(rows_of, setting.net, setting.data, setting.likelihood, setting.curvature)
    refuse_what_does_not_fit(declarations(setting.net), setting.curvature, rows)
    with evaluating(setting.net), torch.no_grad():
        seen, few, first = 0, setting.data.few(FEW), None
        for x, y in setting.data:
            first = x.clone() if first is None else first  # now: the network may write into a batch
            few = spread(first, FEW) if few is None else few
            outputs = outputs_of(setting.net, x)
            setting.likelihood.check(outputs, y)
            setting.data.look_beside(setting.likelihood, outputs)
            seen += len(x)
        if few is None or first is None or not seen:
            raise ValueError("the data gives no batch: expected at least one example; check its sampler and drop_last")
        setting.data.saw(seen)
        setting.data.check_beside()
        layers = declarations(setting.net)
        check_network(setting.net, layers, few)
        check_whole_batch(setting.net, layers, first)
    objective.check(setting)
    return few


def _by_default(setting: Setting, chooser: Objective, few: Tensor) -> tuple[Setting, Objective, list[str]]:
    """The curvature of the evidence that is reported, that of the evidence's steps, and what is to be told of these."""
    net, count, likelihood = setting.net, setting.data.total, setting.likelihood
    setting = replace(setting, curvature=sharpest_curvature(net, count, lambda: few, likelihood))
    if not isinstance(chooser, ByEvidence) or chooser.curvature is not None:
        return setting, chooser, []
    steps, told = step_curvature(net, count, few, likelihood, structured=bool(structures(net)))
    return setting, replace(chooser, curvature=steps), [told] if told else []


def _digest(setting: Setting, objective: Objective, keep_posterior: bool) -> str:
    """Of all that the fit's numbers depend on."""
    likelihood = setting.likelihood
    tensors = [*setting.net.state_dict().values(), *likelihood.state().values(), *setting.data.tensors()]
    told = (objective.name, _as_record(objective) or repr(objective))
    values = (told, setting.curvature, setting.seed, setting.schedule, keep_posterior, likelihood.name)
    return digest_of(values, tensors)


def _posterior(setting: Setting, work: Work, held: Curvature) -> tuple[dict[str, Tensor], list[str]]:
    """What a posterior predictive needs; or nothing, and a note that says why."""
    try:
        return final_posterior(setting, work, held), []
    except ValueError as error:
        return {}, [f"no posterior was kept, predictions are the MAP weights' (kind='map'): {error}"]


def _recipe(setting: Setting, objective: Objective, chosen: Any) -> Recipe:
    """How the fit was made; of what was chosen only what there was a choice of."""
    found = {name: value for name, value in objective.chosen_settings(chosen).items() if value not in (None, {})}
    settings = _as_record(objective)
    return Recipe(objective.name, settings, found, asdict(setting.schedule), setting.curvature, setting.seed)


def _as_record(objective: Objective) -> dict[str, Any]:
    """An objective's settings as JSON has them; of a function its full name, which is the same in every process."""
    if not hasattr(objective, "__dataclass_fields__"):
        return {}
    values = {field.name: getattr(objective, field.name) for field in fields(objective)}  # type: ignore[arg-type]
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Curvature):
        return asdict(value)
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return value if isinstance(value, str | int | float | None) else repr(value)


def _watching(show: bool | None, epochs: int, name: str, what: str) -> Any:
    return epoch_bar(epochs, ", ".join(part for part in (name, what) if part), show)


def _unwatched(record: dict[str, float]) -> None:
    """Nobody watches."""

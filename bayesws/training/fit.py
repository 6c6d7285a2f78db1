"""fit: a copy of a network is started, trained by the evidence or a rival, and handed back with its numbers."""

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayesws.evidence.batches import Batches
from bayesws.evidence.capture import check_declarations
from bayesws.evidence.curvature import Curvature, curvature_named
from bayesws.evidence.likelihood import Categorical, Gaussian, likelihood_named
from bayesws.io.progress import epoch_bar
from bayesws.layers.contract import declarations, evaluating
from bayesws.layers.start import has_soft_stack, start_at_moments, start_at_random
from bayesws.training.checkpoint import Checkpoint, digest_of
from bayesws.training.loop import Run
from bayesws.training.objectives.rivals import Rival, choose_penalties, rival_named
from bayesws.training.result import EvidenceSummary, FitResult, Proposal
from bayesws.training.schedule import Penalties, Schedule, with_changes
from bayesws.training.structure import check_regularisers

STARTS = (None, "moments", "random")


def fit(
    net: nn.Module,
    train: Any,
    likelihood: str | Categorical | Gaussian = "classification",
    objective: str | Rival = "evidence",
    curvature: str | Curvature = "kron",
    *,
    seed: int = 0,
    schedule: Schedule | None = None,
    weight_decays: tuple[float, ...] = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    normaliser: float = 0.0,
    entropy: float = 0.0,
    held_out: float = 0.2,
    start: str | None = None,
    device: torch.device | str | None = None,
    progress: bool | None = None,
    keep_posterior: bool = True,
    checkpoint: str | Path | None = None,
    watch: Callable[[dict[str, float]], object] = lambda record: None,
    **changes: Any,
) -> FitResult:
    """Train a copy of a network; its sharing by the evidence, or not at all.

    objective="evidence": weights minimise -log p(D | θ) + ½ θᵀ Λ θ; every few epochs one Laplace pass sets Λ (MacKay's
    fixed point), the noise, and, with the whole gradient of the log evidence, the stacks' logits.

    objective="task": weights and logits minimise the mean of -log p + ½ λ ‖θ‖² (+ normaliser · Σ_layers normaliser of
    the logits + entropy · mean row entropy of the soft stacks, see `sharing`). A soft stack's residual stays at its
    start, 0, so that W_g = R_g w is the published layer. λ is the one of `weight_decays` with the smallest negative log
    likelihood on a held-out split of the training data, after the same training on the rest; then it is trained on all
    of it. The evidence is reported with the precisions that are best for the weights it ended with.

    objective="fixed", "validated" or "constrained": the same with shared and free weights told apart, by a ratio of
    their precisions that is set by hand, by one a layer that is chosen on the held-out split, or by dual ascent on how
    large the free ones may be; see `rivals` for their sources and settings.

    All objectives share loop, optimiser, schedule, initial weights and the order of the data. Runs are reproducible to
    the last bit on one thread (torch.set_num_threads(1)).

    Args:
        net: the network at its initial weights; it is left as it is.
        train: a pair of tensors (x, y), a Dataset or a DataLoader.
        likelihood: "classification", "regression", or a likelihood.
        objective: "evidence", "task", "fixed", "validated", "constrained", or a rival with settings of its own,
            such as `rivals.Fixed(ratio=30.0)`.
        curvature: a `Curvature`, or its structure: "kron", "full", "layer", "pathway" or "diag". Its samples and its
            subset, drawn anew at every step, are for the steps; the evidence at the end is without them.
        seed: of the order of the data, and of the held-out split.
        schedule: see `Schedule`; single fields can be given by name, as in `fit(net, train, epochs=100)`.
        weight_decays: grid of λ for the task loss and its relatives, per datum.
        normaliser: weight of the normaliser of the task loss, which is summed over the layers (arXiv 2412.04594; 0.1 in
            the released settings).
        entropy: weight of the entropy regulariser of the task loss: of the mean row entropy, nats, over all layers,
            elements and rows. The published code sums instead: its weight times L (G - 1) d, for L layers of equal
            size, is this one.
        held_out: share of the training data held out to choose λ.
        start: of the soft stacks: "moments", at the groups that the moments of each layer's input propose, from the
            input up (`layers.start`); "random", drawn anew from the seed; None leaves them as they are.
        device: where to train; None is where the network is.
        progress: whether to show a bar; None shows it on a terminal.
        keep_posterior: whether to keep the curvature that the posterior predictive needs: P² numbers with "full". Kept
            as laplace-torch can hold it: "full", "diag", and Kronecker factors for all else.

        checkpoint: a folder for what the fit leaves on its way, every ten seconds, between epochs, and at its end. The
            same call goes on from there, to the same numbers to the last bit; a finished fit it hands back.
        watch: called with every record of the history as it comes (see `FitResult`), but not while settings are chosen.

    Raises:
        ValueError: unknown names, data that does not fit, parameters that cannot be treated, weights of penalties that
            are negative, or meant for a regulariser that no layer offers.
        FloatingPointError: a loss that is not finite, naming the epoch.
    """
    rival = rival_named(objective)
    if start not in STARTS:
        raise ValueError(f"start={start!r}: expected 'moments', 'random' or None")
    plan = with_changes(schedule or Schedule(), changes)
    penalties = Penalties(normaliser=normaliser, entropy=entropy)
    model = copy.deepcopy(net) if device is None else copy.deepcopy(net).to(device)
    place = next(model.parameters()).device
    data = Batches(train, plan.batch_size, place)
    noise_model, asked = copy.deepcopy(likelihood_named(likelihood)), curvature_named(curvature)
    with evaluating(model), torch.no_grad():
        for x, y in data:
            noise_model.check(model(x), y)
        check_declarations(model, declarations(model), x)
        if rival is not None and (normaliser or entropy):
            check_regularisers(model, {"normaliser": normaliser, "entropy": entropy})
    kept = None
    if checkpoint is not None:
        settings = (objective, asked, seed, plan, weight_decays, penalties, held_out, start, keep_posterior)
        tensors = [*model.state_dict().values(), *noise_model.hyperparameters(), *data.tensors()]
        kept = Checkpoint(Path(checkpoint), digest_of((*settings, noise_model.name), tensors))
        if (finished := kept.finished(model)) is not None:
            return finished
    started = time.perf_counter()
    proposals: list[Proposal] = []
    if start == "moments":
        proposals = [Proposal.of(name, c) for name, c in start_at_moments(model, data.inputs()).items()]
    elif start == "random":
        start_at_random(model, seed)
    if rival is not None:
        penalties = choose_penalties(
            rival,
            model,
            data,
            noise_model,
            plan,
            seed,
            weight_decays,
            penalties,
            held_out,
            partial(_watcher, progress, plan.epochs),
            kept,
        )
    training = time.perf_counter()
    name = "evidence" if rival is None else rival.name
    run = Run(model, data, noise_model, plan, seed, name, asked, penalties)
    run.train(_watcher(progress, plan.epochs, name), kept, watch=watch)
    evidence = run.final_evidence()
    result = FitResult(
        model=model.eval(),
        prior=run.log_precisions,
        likelihood=noise_model,
        evidence=EvidenceSummary.of(evidence),
        history=run.history,
        objective=name,
        curvature=asked,
        seed=seed,
        settings=asdict(plan) | {k: v for k, v in asdict(penalties).items() if k != "weight_decay"},
        weight_decay=None if rival is None else penalties.weight_decay,
        start=proposals,
        notes=run.notes(),
        seconds=time.perf_counter() - started,
        training_seconds=time.perf_counter() - training,
    )
    if start is not None and not has_soft_stack(model):
        result.notes.append(f"start={start!r} had nothing to start: no layer has a soft stack")
    if keep_posterior:
        try:
            result.posterior = run.final_posterior()
        except ValueError as error:
            result.notes.append(f"no posterior was kept, predict(kind='map') is what there is: {error}")
    if kept is not None:
        kept.finish(result)
    for note in result.notes:
        warnings.warn(note, stacklevel=2)
    return result


def _watcher(progress: bool | None, epochs: int, what: str) -> Any:
    return epoch_bar(epochs, what, progress)

"""The alternating loop: weights by their loss, and precisions, noise and structure by the evidence."""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bayesws.evidence.batches import Batches
from bayesws.evidence.curvature import Curvature, curvature_named
from bayesws.evidence.gradient import WAYS, gradient_in
from bayesws.evidence.likelihood import Categorical, Gaussian, likelihood_named
from bayesws.evidence.objective import Evidence, LaplacePass, assemble, evaluating, laplace_pass
from bayesws.evidence.precision import ascend_precisions, update_noise, update_precisions
from bayesws.evidence.signals import check_declarations
from bayesws.layers.base import declarations, named_pathways, starting_log_precisions, structure
from bayesws.layers.once import computed_once
from bayesws.layers.start import start_at_moments, start_at_random
from bayesws.progress import epoch_bar
from bayesws.result import EvidenceSummary, FitResult, Proposal
from bayesws.sharing.regularisers import mean_entropy, normaliser

OBJECTIVES = ("evidence", "task")
STARTS = (None, "moments", "random")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; the same for every objective.

    Attributes:
        epochs: passes over the data.
        batch_size: examples a step.
        learning_rate: of Adam, in the weights.
        warm_up: steps of its linear warm-up.
        steady: share of the steps at the full rate, the warm-up included; after it the rate goes down a cosine.
        burn_in: share of the epochs before the first step on the hyperparameters.
        every: epochs between steps on the hyperparameters where no structure is learned.
        structure_steps: steps on structure, precisions and noise in every epoch, where a structure is learned.
        fixed_point_steps: MacKay steps on the precisions for one curvature pass.
        damping: of a MacKay step.
        structure_rate: Adam's learning rate for logits and noise where the evidence learns a structure.
        task_structure_rate: that of the logits under the task loss, with the weights' warm-up and cosine; None is the
            weights' own.
        rest_structure: whether the task loss, too, lets the logits rest in the burn-in, as the evidence always does.
            As published they move from the first step.
        structure_way: how their gradient is taken, "once", "twice" (constant memory) or "local"; see
            `evidence.gradient`.
    """

    epochs: int = 300
    batch_size: int = 100
    learning_rate: float = 0.03
    warm_up: int = 100
    steady: float = 0.7
    burn_in: float = 0.1
    every: int = 10
    structure_steps: int = 1
    fixed_point_steps: int = 10
    damping: float = 0.2
    structure_rate: float = 0.1
    structure_way: str = "once"
    task_structure_rate: float | None = None
    rest_structure: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "every", "structure_steps", "fixed_point_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("learning_rate", "structure_rate", "task_structure_rate"):
            rate = getattr(self, name)
            if rate is not None and not (rate > 0 and math.isfinite(rate)):
                raise ValueError(f"{name}={rate}: expected a positive number")
        for name in ("burn_in", "steady"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a share of the run, in [0, 1)")
        if self.structure_way not in WAYS:
            raise ValueError(f"structure_way={self.structure_way!r}: expected one of {', '.join(WAYS)}")
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping={self.damping}: expected a number in (0, 1]")


@dataclass(frozen=True)
class _Penalties:
    """What the task loss adds to the mean negative log likelihood: weights of its terms, see `fit`."""

    weight_decay: float = 0.0
    normaliser: float = 0.0
    entropy: float = 0.0

    def __post_init__(self) -> None:
        for name in ("normaliser", "entropy"):
            weight = getattr(self, name)
            if not (weight >= 0 and math.isfinite(weight)):
                raise ValueError(f"{name}={weight}: expected a weight of at least 0")


def fit(
    net: nn.Module,
    train: Any,
    likelihood: str | Categorical | Gaussian = "classification",
    objective: str = "evidence",
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

    Both objectives share loop, optimiser, schedule, initial weights and the order of the data. Runs are reproducible to
    the last bit on one thread (torch.set_num_threads(1)).

    Args:
        net: the network at its initial weights; it is left as it is.
        train: a pair of tensors (x, y), a Dataset or a DataLoader.
        likelihood: "classification", "regression", or a likelihood.
        objective: "evidence" or "task".
        curvature: a `Curvature`, or its structure: "kron", "full", "layer", "pathway" or "diag". Its samples and its
            subset, drawn anew at every step, are for the steps; the evidence at the end is without them.
        seed: of the order of the data, and of the held-out split.
        schedule: see `Schedule`; single fields can be given by name, as in `fit(net, train, epochs=100)`.
        weight_decays: grid of λ for the task loss, per datum.
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

    Raises:
        ValueError: unknown names, data that does not fit, parameters that cannot be treated, weights of penalties that
            are negative or meant for logits where a stack has none (constraint "none").
        FloatingPointError: a loss that is not finite, naming the epoch.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r}: expected one of {', '.join(OBJECTIVES)}")
    if start not in STARTS:
        raise ValueError(f"start={start!r}: expected 'moments', 'random' or None")
    plan = _with_changes(schedule or Schedule(), changes)
    penalties = _Penalties(normaliser=normaliser, entropy=entropy)
    model = copy.deepcopy(net) if device is None else copy.deepcopy(net).to(device)
    place = next(model.parameters()).device
    data = Batches(train, plan.batch_size, place)
    noise_model, asked = copy.deepcopy(likelihood_named(likelihood)), curvature_named(curvature)
    with evaluating(model), torch.no_grad():
        for x, y in data:
            noise_model.check(model(x), y)
        check_declarations(model, declarations(model), x)
        if objective == "task" and (normaliser or entropy):
            _check_penalised(model)
    started = time.perf_counter()
    proposals: list[Proposal] = []
    if start == "moments":
        proposals = [Proposal.of(name, c) for name, c in start_at_moments(model, data.inputs()).items()]
    elif start == "random":
        start_at_random(model, seed)
    weight_decay = None
    if objective == "task":
        weight_decay = _choose_weight_decay(
            model, data, noise_model, plan, seed, weight_decays, penalties, held_out, progress
        )
        penalties = replace(penalties, weight_decay=weight_decay)
    training = time.perf_counter()
    run = _Run(model, data, noise_model, plan, seed, objective, asked, penalties)
    run.train(_watcher(progress, plan.epochs, objective))
    evidence = run.final_evidence()
    result = FitResult(
        model=model.eval(),
        prior=run.log_precisions,
        likelihood=noise_model,
        evidence=EvidenceSummary.of(evidence),
        history=run.history,
        objective=objective,
        curvature=asked,
        seed=seed,
        settings=asdict(plan) | {"normaliser": normaliser, "entropy": entropy},
        weight_decay=weight_decay,
        start=proposals,
        notes=run.notes(),
        seconds=time.perf_counter() - started,
        training_seconds=time.perf_counter() - training,
    )
    if keep_posterior:
        try:
            result.posterior = run.final_posterior()
        except ValueError as error:
            result.notes.append(f"no posterior was kept, predict(kind='map') is what there is: {error}")
    for note in result.notes:
        warnings.warn(note, stacklevel=2)
    return result


def _with_changes(plan: Schedule, changes: dict[str, Any]) -> Schedule:
    known = asdict(plan)
    if unknown := next((name for name in changes if name not in known), None):
        raise ValueError(f"unknown argument {unknown!r}: expected one of {', '.join(known)}")
    return Schedule(**(known | changes))


Watcher = Callable[[], Any]


def _watcher(progress: bool | None, epochs: int, what: str) -> Any:
    return epoch_bar(epochs, what, progress)


def _choose_weight_decay(
    net: nn.Module,
    data: Batches,
    likelihood: Categorical | Gaussian,
    plan: Schedule,
    seed: int,
    grid: tuple[float, ...],
    penalties: _Penalties,
    held_out: float,
    progress: bool | None,
) -> float:
    """The λ of the grid with the smallest held-out negative log likelihood."""
    if not grid or not all(math.isfinite(w) and w >= 0 for w in grid):
        raise ValueError(f"weight_decays={grid!r}: expected one or more numbers, none negative")
    if len(grid) == 1:
        return grid[0]
    kept, held = data.split(held_out, torch.Generator().manual_seed(seed))
    losses = {}
    for decay in grid:
        trial, noise_model = copy.deepcopy(net), copy.deepcopy(likelihood)
        run = _Run(trial, kept, noise_model, plan, seed, "task", Curvature(), replace(penalties, weight_decay=decay))
        run.train(_watcher(progress, plan.epochs, f"task, weight decay {decay:g}"))
        trial.eval()
        with torch.no_grad():
            losses[decay] = -sum(float(noise_model.log_prob(trial(x), y)) for x, y in held)
    return min(losses, key=losses.__getitem__)


class _Run:
    """One training run: the state that its two alternating steps share."""

    def __init__(
        self,
        net: nn.Module,
        data: Batches,
        likelihood: Categorical | Gaussian,
        plan: Schedule,
        seed: int,
        objective: str,
        curvature: Curvature,
        penalties: _Penalties,
    ) -> None:
        self.net, self.data, self.likelihood, self.plan = net, data, likelihood, plan
        self.objective, self.curvature = objective, curvature
        self.penalties = penalties
        self.order = torch.Generator().manual_seed(seed)
        declarations(net)
        self.pathways = dict(named_pathways(net))
        self.log_precisions = {n: t.detach() for n, t in starting_log_precisions(net).items()}
        self.logits = structure(net)
        self.soft = any(d.stack is not None for _, d in declarations(net).values())
        self.history: list[dict[str, float]] = []
        self.draws = 0  # of curvatures so far
        self.unconverged: dict[str, tuple[float, int]] = {}  # by layer: its worst stack's residual and iterations
        # the task loss has no prior that a residual would serve
        self.at_rest = [p.parameter for p in self.pathways.values() if p.of_prior_only and objective == "task"]
        groups: list[dict[str, Any]] = [{"params": [p.parameter], "pathway": name} for name, p in self.pathways.items()]
        if objective == "task" and self.logits:
            share = (plan.task_structure_rate or plan.learning_rate) / plan.learning_rate
            groups.append({"params": self.logits, "pathway": "", "share": share})
        noise = likelihood.hyperparameters()
        if objective == "task" and noise:
            groups.append({"params": noise, "pathway": ""})
        self.optimiser = torch.optim.Adam(groups, lr=plan.learning_rate, betas=(0.9, 0.99))
        self.hyper_optimiser: torch.optim.Optimizer | None = None
        if objective == "evidence" and self.soft:
            self.log_precisions = starting_log_precisions(net)
            for tensor in self.log_precisions.values():
                tensor.requires_grad_()
            self.hyper_optimiser = torch.optim.Adam([*noise, *self.logits], lr=plan.structure_rate)

    def train(self, watching: Any) -> None:
        """All epochs: a pass of weight steps each, and steps on the hyperparameters when they are due."""
        plan = self.plan
        an_epoch = math.ceil(len(self.data) / plan.batch_size)
        total = plan.epochs * an_epoch
        burn_in = round(plan.burn_in * plan.epochs)
        # the last of an epoch's steps on the structure comes after its last step on the weights
        due = {an_epoch * (i + 1) // plan.structure_steps for i in range(plan.structure_steps)}
        step = 0
        with watching as advance:
            for epoch in range(1, plan.epochs + 1):
                self.net.train()
                deltas = self._precisions()
                evidence: dict[str, float] = {}
                loss: Tensor | float = 0.0
                rests = plan.rest_structure and self.objective == "task" and epoch <= burn_in
                with _frozen([*self.at_rest, *(self.logits if rests else [])]):
                    for x, y in self.data.shuffled(self.order):
                        self._set_rates(step, total, deltas)
                        loss = loss + self._weight_step(x, y, deltas)
                        step += 1
                        if (
                            self.hyper_optimiser is not None
                            and epoch > burn_in
                            and step - (epoch - 1) * an_epoch in due
                        ):
                            evidence = self._structure_step()
                            deltas = self._precisions()
                record = {"epoch": float(epoch), "loss": float(loss) / len(self.data)}
                if not math.isfinite(record["loss"]):
                    raise FloatingPointError(
                        f"the loss is not finite in epoch {epoch} of {plan.epochs}: lower the learning rate "
                        f"(now {plan.learning_rate:g}) or check the data's scale"
                    )
                if self.objective == "evidence" and not self.soft and epoch > burn_in:
                    evidence = self._precision_step(epoch - burn_in, epoch == plan.epochs)
                self.history.append(record | evidence)
                advance()

    def _set_rates(self, step: int, total: int, deltas: dict[str, float]) -> None:
        """Warm-up and cosine; a pathway that its precision keeps small takes small steps, too."""
        descent = max(0.0, step / total - self.plan.steady) / (1 - self.plan.steady)
        rate = self.plan.learning_rate * 0.5 * (1 + math.cos(math.pi * descent))
        rate *= min(1.0, (step + 1) / max(self.plan.warm_up, 1))
        for group in self.optimiser.param_groups:
            scale = group.get("share", 1.0)
            if self.objective == "evidence" and group["pathway"]:
                scale = min(1.0, PRIOR_STEP / math.sqrt(deltas[group["pathway"]]))
            group["lr"] = rate * scale

    def _weight_step(self, x: Tensor, y: Tensor, deltas: dict[str, float]) -> Tensor:
        self.optimiser.zero_grad()
        with computed_once(self.net):
            nll = -self.likelihood.log_prob(self.net(x), y)
            loss = nll / len(x)
            if self.objective == "evidence":
                squares = sum(deltas[name] * p.parameter.square().sum() for name, p in self.pathways.items())
                loss = loss + squares * (0.5 / len(self.data))
            else:
                loss = loss + self._penalty()
            loss.backward()
        self.optimiser.step()
        return nll.detach()

    def _penalty(self) -> Tensor | float:
        weights, terms = self.penalties, []
        if weights.weight_decay:
            squares = sum(p.parameter.square().sum() for p in self.pathways.values())
            terms.append(0.5 * weights.weight_decay * squares)
        if weights.normaliser:
            terms += [weights.normaliser * normaliser(logits) for logits in self.logits]
        if weights.entropy:
            terms.append(weights.entropy * _mean_entropy(self.net))
        return sum(terms)

    def _precisions(self) -> dict[str, float]:
        """δ by pathway."""
        return {name: math.exp(float(t.detach())) for name, t in self.log_precisions.items()}

    def _precision_step(self, epochs_since: int, last: bool) -> dict[str, float]:
        if (epochs_since - 1) % self.plan.every or last:
            return {}
        with torch.no_grad():
            done = laplace_pass(self.net, self.data, self.likelihood, self._drawn(), check=False)
        self._set_precisions(done, self.plan.fixed_point_steps, self.plan.damping)
        return _numbers(assemble(self.net, done, self.log_precisions))

    def _drawn(self) -> Curvature:
        """The curvature with draws of its own for this step."""
        self.draws += 1
        return replace(self.curvature, seed=self.curvature.seed + self.draws)

    def _set_precisions(self, done: LaplacePass, steps: int, damping: float) -> None:
        update_precisions(self.net, done.hessian, self.log_precisions, steps, damping)
        for noise in self.likelihood.hyperparameters():
            effective = float(sum(done.hessian.effective(self.log_precisions).values()))
            outputs = done.examples * done.outputs
            with torch.no_grad():
                error = (-2 * noise).exp()  # data_fit = -½ error / σ² - n log σ - ½ n log 2π
                normaliser = outputs * (noise + 0.5 * math.log(2 * math.pi))
                squared = float(-2 * (done.data_fit + normaliser) / error)
            update_noise(noise, squared, outputs, effective)

    def _structure_step(self) -> dict[str, float]:
        """One step on all hyperparameters with the whole gradient of the log evidence; MacKay's on the precisions.

        Data fit and Occam factor are added before Adam normalises: each alone would collapse the network.
        """
        assert self.hyper_optimiser is not None
        others = self.hyper_optimiser.param_groups[0]["params"]
        precisions = list({id(t): t for t in self.log_precisions.values()}.values())
        evidence, gradients = gradient_in(
            self.net,
            self.data,
            self.likelihood,
            self._drawn(),
            self.log_precisions,
            [*precisions, *others],
            self.plan.structure_way,
        )
        for parameter, gradient in zip(others, gradients[len(precisions) :], strict=True):
            parameter.grad = -gradient / evidence.examples
        self.hyper_optimiser.step()
        ascend_precisions(self.net, self.log_precisions, precisions, gradients[: len(precisions)])
        self._note_stacks()
        return _numbers(evidence)

    def _note_stacks(self) -> None:
        for name, (_, declaration) in declarations(self.net).items():
            if declaration.stack is None or (state := declaration.stack()).converged:
                continue
            worst = (state.residual, state.iterations)
            self.unconverged[name] = max(worst, self.unconverged.get(name, worst))

    def final_evidence(self) -> Evidence:
        """The evidence at the weights the run ended with; after the task loss with the best precisions for them.

        The precisions of a soft stack shape its kernel, so they stay what they were while the task loss trained it.
        """
        with torch.no_grad():
            exact = replace(self.curvature, samples=None, subset=1.0)
            done = laplace_pass(self.net, self.data, self.likelihood, exact, check=False)
            if self.objective == "task" and not self.soft:
                self._set_precisions(done, steps=200, damping=0.5)
            evidence = assemble(self.net, done, self.log_precisions)
        if not math.isfinite(float(evidence)):
            raise FloatingPointError("the evidence is not finite at the end of the fit: check the data's scale")
        self._note_stacks()
        return evidence

    def final_posterior(self) -> dict[str, Tensor]:
        """The curvature at the weights the run ended with, from which the posterior predictive is taken."""
        from bayesws.evidence import laplace  # takes two seconds: `import bayesws` should not

        with torch.no_grad():
            curvature = laplace.as_held(self.curvature)
            fitted = laplace.posterior(self.net, self.data, self.likelihood, curvature, self.log_precisions)
            return laplace.curvature_tensors(fitted)

    def notes(self) -> list[str]:
        """What did not converge, a line each."""
        notes = [
            f"layer {name!r}: Sinkhorn stopped after {iterations} iterations at residual {residual:.1e}; "
            "the stack was not quite doubly stochastic"
            for name, (residual, iterations) in self.unconverged.items()
        ]
        records = [r["log_evidence"] for r in self.history if "log_evidence" in r]
        if len(records) > 1 and abs(records[-1] - records[-2]) > UNSETTLED * abs(records[-1]):
            notes.append(
                f"the log evidence still moved from {records[-2]:.1f} to {records[-1]:.1f} nats in the last step on "
                "the hyperparameters: train for more epochs"
            )
        return notes


PRIOR_STEP = 10.0  # a step may be at most this many prior standard deviations per unit of the learning rate
UNSETTLED = 0.05  # relative change of the log evidence in the last hyperparameter step that is worth a note


@contextmanager
def _frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within the block the parameters take no gradient, so no optimiser moves them or remembers anything of them."""
    frozen = [p for p in parameters if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _check_penalised(net: nn.Module) -> None:
    for name, (_, declaration) in declarations(net).items():
        if declaration.stack is not None and declaration.stack().constraint == "none":
            raise ValueError(
                f"layer {name!r} has a stack with constraint='none': normaliser and entropy are for logits; use 0"
            )


def _mean_entropy(net: nn.Module) -> Tensor:
    """Mean row entropy of all soft stacks, nats."""
    stacks = [d.stack().matrix for _, d in declarations(net).values() if d.stack is not None]
    return torch.stack([mean_entropy(stack) for stack in stacks]).mean() if stacks else torch.zeros(())


def _numbers(evidence: Evidence) -> dict[str, float]:
    parts = {
        "log_evidence": evidence.total,
        "data_fit": evidence.data_fit,
        "scatter": evidence.scatter,
        "occam": evidence.occam,
    }
    return {name: float(value.detach()) for name, value in parts.items()}

"""The alternating loop: weights by their loss, and precisions, noise and structure by the evidence."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bayesws.evidence.batches import Batches
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.gradient import gradient_in
from bayesws.evidence.likelihood import Categorical, Gaussian
from bayesws.evidence.objective import Evidence, LaplacePass, assemble, laplace_pass
from bayesws.evidence.precision import ascend_precisions, update_noise, update_precisions
from bayesws.evidence.surface import log_likelihood_gradient
from bayesws.layers.cache import computed_once
from bayesws.layers.contract import declarations, named_pathways, starting_log_precisions, structure
from bayesws.sharing.regularisers import mean_entropy, normaliser
from bayesws.training.checkpoint import Checkpoint
from bayesws.training.objectives.relaxation import Relaxation
from bayesws.training.schedule import Penalties, Schedule


class Run:
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
        penalties: Penalties,
    ) -> None:
        self.net, self.data, self.likelihood, self.plan = net, data, likelihood, plan
        self.curvature = curvature
        self.penalties = penalties
        self.by_evidence = objective == "evidence"
        self.order = torch.Generator().manual_seed(seed)
        declarations(net)
        self.pathways = dict(named_pathways(net))
        self.log_precisions = {n: t.detach() for n, t in starting_log_precisions(net).items()}
        self.logits = structure(net)
        self.soft = any(d.stack is not None for _, d in declarations(net).values())
        self.history: list[dict[str, float]] = []
        self.draws = 0  # of curvatures so far
        self.unconverged: dict[str, tuple[float, int]] = {}  # by layer: its worst stack's residual and iterations
        # without the evidence there is no prior that a residual would serve
        self.at_rest = [p.parameter for p in self.pathways.values() if p.of_prior_only and not self.by_evidence]
        self.relaxation = None if penalties.slack is None else Relaxation(net, penalties.slack)
        groups: list[dict[str, Any]] = [{"params": [p.parameter], "pathway": name} for name, p in self.pathways.items()]
        if not self.by_evidence and self.logits:
            share = (plan.task_structure_rate or plan.learning_rate) / plan.learning_rate
            groups.append({"params": self.logits, "pathway": "", "share": share})
        noise = likelihood.hyperparameters()
        if not self.by_evidence and noise:
            groups.append({"params": noise, "pathway": ""})
        if self.relaxation is not None:
            groups.append({"params": list(self.relaxation.scales.values()), "pathway": ""})
        self.optimiser = torch.optim.Adam(groups, lr=plan.learning_rate, betas=(0.9, 0.99))
        self.hyper_optimiser: torch.optim.Optimizer | None = None
        if self.by_evidence and self.soft:
            self.log_precisions = starting_log_precisions(net)
            for tensor in self.log_precisions.values():
                tensor.requires_grad_()
            self.hyper_optimiser = torch.optim.Adam([*noise, *self.logits], lr=plan.structure_rate)

    def train(
        self,
        watching: Any,
        checkpoint: Checkpoint | None = None,
        what: str = "",
        watch: Callable[[dict[str, float]], object] = lambda record: None,
    ) -> None:
        """All epochs: a pass of weight steps each, and steps on the hyperparameters when they are due.

        Args:
            watching: a context that gives what to call after every epoch.
            checkpoint: where to go on from, and to write to.
            what: the run's name in it.
            watch: called with every new record of the history.
        """
        plan = self.plan
        an_epoch = math.ceil(len(self.data) / plan.batch_size)
        total = plan.epochs * an_epoch
        burn_in = round(plan.burn_in * plan.epochs)
        # the last of an epoch's steps on the structure comes after its last step on the weights
        due = {an_epoch * (i + 1) // plan.structure_steps for i in range(plan.structure_steps)}
        done = 0 if checkpoint is None else checkpoint.resume(self, what)
        step = done * an_epoch
        with watching as advance:
            for _ in range(done):
                advance()
            for epoch in range(done + 1, plan.epochs + 1):
                self.net.train()
                deltas = self._precisions()
                evidence: dict[str, float] = {}
                loss: Tensor | float = 0.0
                rests = plan.rest_structure and not self.by_evidence and epoch <= burn_in
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
                if self.by_evidence and not self.soft and epoch > burn_in:
                    evidence = self._precision_step(epoch - burn_in, epoch == plan.epochs)
                if self.relaxation is not None:
                    evidence = self.relaxation.record()
                self.history.append(record | evidence)
                watch(self.history[-1])
                if checkpoint is not None:
                    checkpoint.after_epoch(self, what, epoch)
                advance()
        if self.relaxation is not None:
            self.relaxation.fold()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the coming epochs depend on, between two of them: tensors by name, and plain values."""
        tensors = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        tensors |= {f"prior.{name}": tensor for name, tensor in self.log_precisions.items()}
        tensors |= {f"noise.{i}": tensor for i, tensor in enumerate(self.likelihood.hyperparameters())}
        tensors |= {"order": self.order.get_state(), "torch": torch.get_rng_state()}  # the latter is for dropout
        if self.relaxation is not None:
            tensors |= {f"relaxation.{name}": tensor for name, tensor in self.relaxation.state().items()}
        for kind, optimiser in self._optimisers().items():
            for index, moments in optimiser.state_dict()["state"].items():
                tensors |= {f"{kind}.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        return tensors, {"history": self.history, "draws": self.draws, "unconverged": self.unconverged}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Put a new run where `state` was taken."""
        self.net.load_state_dict({name[4:]: tensor for name, tensor in tensors.items() if name.startswith("net.")})
        for name, tensor in self.log_precisions.items():
            tensor.copy_(tensors[f"prior.{name}"])
        for index, tensor in enumerate(self.likelihood.hyperparameters()):
            tensor.copy_(tensors[f"noise.{index}"])
        self.order.set_state(tensors["order"])
        torch.set_rng_state(tensors["torch"])
        if self.relaxation is not None:
            for name, tensor in self.relaxation.state().items():
                tensor.copy_(tensors[f"relaxation.{name}"])
        for kind, optimiser in self._optimisers().items():
            whole = optimiser.state_dict()
            whole["state"] = {}
            for name, tensor in tensors.items():
                if name.startswith(f"{kind}."):
                    _, position, moment = name.split(".")
                    whole["state"].setdefault(int(position), {})[moment] = tensor
            optimiser.load_state_dict(whole)
        self.history, self.draws = values["history"], values["draws"]
        self.unconverged = {name: tuple(worst) for name, worst in values["unconverged"].items()}

    def _optimisers(self) -> dict[str, torch.optim.Optimizer]:
        hyper = {} if self.hyper_optimiser is None else {"hyper": self.hyper_optimiser}
        return {"weights": self.optimiser} | hyper

    def _set_rates(self, step: int, total: int, deltas: dict[str, float]) -> None:
        """Warm-up and cosine; a pathway that its precision keeps small takes small steps, too."""
        descent = max(0.0, step / total - self.plan.steady) / (1 - self.plan.steady)
        rate = self.plan.learning_rate * 0.5 * (1 + math.cos(math.pi * descent))
        rate *= min(1.0, (step + 1) / max(self.plan.warm_up, 1))
        for group in self.optimiser.param_groups:
            scale = group.get("share", 1.0)
            if self.by_evidence and group["pathway"]:
                scale = min(1.0, PRIOR_STEP / math.sqrt(deltas[group["pathway"]]))
            group["lr"] = rate * scale

    def _weight_step(self, x: Tensor, y: Tensor, deltas: dict[str, float]) -> Tensor:
        self.optimiser.zero_grad()
        with computed_once(self.net):
            outputs = self.net(x) if self.relaxation is None else self.relaxation.outputs(x)
            nll = -self.likelihood.log_prob(outputs, y)
            loss = nll / len(x)
            if self.by_evidence:
                squares = sum(deltas[name] * p.parameter.square().sum() for name, p in self.pathways.items())
                loss = loss + squares * (0.5 / len(self.data))
            else:
                loss = loss + self._penalty()
            loss.backward()
        self.optimiser.step()
        if self.relaxation is not None:
            self.relaxation.ascend()
        return nll.detach()

    def _penalty(self) -> Tensor | float:
        weights, terms = self.penalties, []
        if weights.weight_decay:
            ratios = weights.ratios
            squares = sum(ratios.get(n, 1.0) * p.parameter.square().sum() for n, p in self.pathways.items())
            terms.append(0.5 * weights.weight_decay * squares)
        if self.relaxation is not None:
            terms.append(self.relaxation.penalty())
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
        """The evidence at the weights the run ended with; else with the best precisions for them.

        The precisions of a soft stack shape its kernel, so they stay what they were while it was trained.
        """
        with torch.no_grad():
            exact = replace(self.curvature, samples=None, subset=1.0)
            done = laplace_pass(self.net, self.data, self.likelihood, exact, check=False)
            if not self.by_evidence and not self.soft:
                self._set_precisions(done, steps=200, damping=0.5)
            evidence = assemble(self.net, done, self.log_precisions)
        if not math.isfinite(float(evidence)):
            raise FloatingPointError("the evidence is not finite at the end of the fit: check the data's scale")
        self._note_stacks()
        return evidence

    def final_posterior(self) -> dict[str, Tensor]:
        """Curvature and gradient at the weights the run ended with: what the posterior predictive and the evidence at
        other precisions follow from.
        """
        from bayesws.evidence import laplace  # takes two seconds: `import bayesws` should not

        with torch.no_grad():
            curvature = laplace.as_held(self.curvature)
            fitted = laplace.fitted_posterior(self.net, self.data, self.likelihood, curvature, self.log_precisions)
            gradient = log_likelihood_gradient(self.net, self.data, self.likelihood)
        return laplace.curvature_tensors(fitted) | {f"gradient.{name}": g for name, g in gradient.items()}

    def notes(self) -> list[str]:
        """What did not converge, a line each."""
        notes = [
            f"layer {name!r}: Sinkhorn stopped after {iterations} iterations at residual {residual:.1e}; "
            "the stack was not quite doubly stochastic"
            for name, (residual, iterations) in self.unconverged.items()
        ]
        records = [r["log_evidence"] for r in self.history if "log_evidence" in r]
        if self.by_evidence and len(records) < FEW_STEPS:
            notes.append(
                f"only {len(records)} steps on the hyperparameters were taken: train for more epochs, or lower every="
            )
        elif len(records) > 1 and abs(records[-1] - records[-2]) > UNSETTLED * abs(records[-1]):
            notes.append(
                f"the log evidence still moved from {records[-2]:.1f} to {records[-1]:.1f} nats in the last step on "
                "the hyperparameters: train for more epochs"
            )
        return notes


PRIOR_STEP = 10.0  # a step may be at most this many prior standard deviations per unit of the learning rate
FEW_STEPS = 3  # on the hyperparameters: with fewer nothing can be said of their convergence
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

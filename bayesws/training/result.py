"""FitResult: a trained network, what the evidence says of it, and how it came about."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from bayesws.evidence.batches import Batches
from bayesws.evidence.examples import TakenBy, check_lengths, inputs_of, targets_of
from bayesws.evidence.left_out import left_out
from bayesws.evidence.likelihood import Categorical, Likelihood
from bayesws.evidence.networks import check_network_kind, outputs_of
from bayesws.io.arguments import choice, flag, path_of, whole
from bayesws.layers.contract import layers_of
from bayesws.training.recipe import Provenance, Recipe
from bayesws.training.saved import load, save
from bayesws.training.summaries import EvidenceSummary, Proposal, SharingRow, Start

KINDS = ("map", "posterior", "scaled")  # of a prediction, see `FitResult.predict`


@dataclass(frozen=True)
class FitResult:
    """What a fit leaves behind.

    Attributes:
        model: the trained network, in eval mode.
        prior: log precisions by pathway (those of sharing layers are the layers' own tensors).
        likelihood: with its fitted noise.
        evidence: at the end of the fit, nats summed over the training data.
        history: one record an epoch: "epoch", "loss" (mean negative log likelihood, nats per datum) and, after a step
            on the hyperparameters, "log_evidence", "data_fit", "scatter", "occam" (nats, summed).
        recipe: how it was fitted.
        provenance: versions, a digest of the data, device, times, and whatever `with_provenance` added.
        start: what the layers' input moments proposed, where the soft stacks started there.
        starts: what all starts have come to, where there were several.
        notes: whatever did not converge or hit a bound, one line each; empty where all is well.
        posterior: the curvature at the end of the fit, from which predictions take the weights' posterior where they
            are asked to (see `evidence.laplace.restored_posterior`), and the log likelihood's gradient, "gradient." by
            pathway; empty where it was not kept.
        scale: of the logits for kind="scaled", where `with_scale` found one.
    """

    model: nn.Module
    prior: dict[str, Tensor]
    likelihood: Likelihood
    evidence: EvidenceSummary
    history: list[dict[str, float]]
    recipe: Recipe
    provenance: Provenance
    start: tuple[Proposal, ...] = ()
    starts: tuple[Start, ...] = ()
    notes: tuple[str, ...] = ()
    posterior: dict[str, Tensor] = field(default_factory=dict, repr=False)
    scale: float | None = None
    _restored: dict[torch.device, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def log_evidence(self) -> float:
        """The log evidence, nats summed over the training data."""
        return self.evidence.log_evidence

    @property
    def sharing(self) -> list[SharingRow]:
        """A row per layer: name, strength, effective parameters by pathway, precisions; none for a frozen plain one."""
        rows = []
        for layer in layers_of(self.model).values():
            if not layer.pathways and layer.strength is None:
                continue
            parts = {name: self.evidence.by_pathway[layer.full_name(name)] for name in layer.pathways}
            prior = {name: self.prior[layer.full_name(name)] for name in layer.pathways}
            strength = math.nan if layer.strength is None else float(layer.strength(prior).detach())
            rows.append(
                SharingRow(
                    layer.name,
                    strength,
                    {n: p.effective for n, p in parts.items()},
                    {n: p.parameters for n, p in parts.items()},
                    {n: p.log_precision for n, p in parts.items()},
                )
            )
        return rows

    def with_provenance(self, **more: Any) -> Self:
        """The same fit, which also knows `more` of where it comes from: JSON values."""
        return replace(self, provenance=replace(self.provenance, more=self.provenance.more | more))

    @torch.no_grad()
    def predict(self, x: Any, kind: str = "map", batch_size: int = 1000) -> Tensor:
        """Predicted probabilities (batch, classes), or values (batch, ...) of a regression.

        "map": E[y | f(x)], of the MAP weights. "posterior": E[y | x, D], averaged over the outputs of the network
        linearised at these weights, with the curvature of the fit,

            p(y | x, D) = ∫ p(y | f) N(f; f(x), J (H + Λ)⁻¹ Jᵀ) df

        whose mean is f(x), so that a regression predicts the same either way: `predict_moments` has its variance. In
        every classification that we looked at the posterior's probabilities were too cautious, and worse than the
        MAP's; compare them by `nll`. "scaled": of a classification, softmax(s f(x)) with the scale s of `with_scale`.

        Args:
            x: (batch, ...), inputs as the network takes them, moved to its device: a tensor or a numpy array, in the
                type that `fit` would give them (see `evidence.examples`).
            kind: "map", "posterior" or "scaled".
            batch_size: how many at once; does not change the result.

        Raises:
            ValueError: inputs with NaN or infinite values, another kind, a posterior that the fit was saved without, a
                scale that it does not have.
        """
        x, batch_size = self._taken(x), whole("batch_size", batch_size)
        if choice("kind", kind, KINDS) == "posterior" and not self.likelihood.mean_is_linear:
            return torch.cat([self.likelihood.expected_mean(*both) for both in self._output_moments(x, batch_size)])
        return self.likelihood.mean(self._scale_for(kind) * self._outputs(x, batch_size))

    @torch.no_grad()
    def predict_moments(self, x: Any, noise: bool = True, batch_size: int = 1000) -> tuple[Tensor, Tensor]:
        """Mean and variance of y given x and the data, of a regression: both of the shape of its values, (batch, ...).

        E[y | x, D] = f(x), and Var[y | x, D] = diag J (H + Λ)⁻¹ Jᵀ + σ², of the network linearised at its MAP weights,
        with the curvature of the fit. A 95 % interval is the mean ± 1.96 standard deviations, the variance's root.

        Args:
            x, batch_size: as for `predict`.
            noise: whether σ² is counted: y's variance; False is that of f, what the weights leave open.

        Raises:
            ValueError: a fit of something else than a regression; as `predict` with kind="posterior".

        References: arXiv 2008.08400.
        """
        x, noise, batch_size = self._taken(x), flag("noise", noise), whole("batch_size", batch_size)
        if not self.likelihood.mean_is_linear:
            raise ValueError(
                f"predict_moments of a fit with likelihood {self.likelihood.name!r}: expected a regression; use "
                "predict(x), or predict(x, kind='posterior') for what the weights leave open"
            )
        mean = self.likelihood.mean(self._outputs(x, batch_size))
        parts = [self.likelihood.predictive_variance(*both, noise) for both in self._output_moments(x, batch_size)]
        return mean, torch.cat(parts).reshape(mean.shape)

    @torch.no_grad()
    def nll(self, x: Any, y: Any, kind: str | None = None, batch_size: int = 1000) -> float:
        """Mean negative log likelihood of data, nats per datum.

        Args:
            x, batch_size: as for `predict`.
            y: targets, as `fit` takes them.
            kind: "map", -log p(y | f(x)); "posterior", -log p(y | x, D); "scaled", -log p(y | s f(x)). None is
                "posterior" of a regression, N(y; f(x), J (H + Λ)⁻¹ Jᵀ + σ² I), which knows what the weights leave open
                beside the noise and was the better density; and "map" of everything else.

        Raises:
            ValueError: as `predict`; targets that do not fit.
        """
        x, y, batch_size = self._taken(x), targets_of(y), whole("batch_size", batch_size)
        if kind is None:
            kind = "posterior" if self.likelihood.mean_is_linear else "map"
        check_lengths(x, y)
        outputs = self._outputs(x, batch_size)
        y = y.to(outputs.device)
        self.likelihood.check(outputs, y)
        if choice("kind", kind, KINDS) != "posterior":
            return -float(self.likelihood.log_prob(self._scale_for(kind) * outputs, y)) / len(x)
        parts = zip(y.split(batch_size), self._output_moments(x, batch_size), strict=True)
        return -sum(float(self.likelihood.predictive_log_prob(*both, t)) for t, both in parts) / len(x)

    def with_scale(self, train: Any) -> Self:
        """The same fit of a classification with a scale of its logits, for kind="scaled": nothing is held out.

        What the network would have said of every training datum without it, f₋ₙ, follows to first order (exactly for
        the whole Gauss-Newton matrix, see `evidence.left_out`). The scale is the one nearest to 1 whose mean loss
        -log softmax(s f₋ₙ) at y_n is above the least one by at most two standard errors of the difference. It takes the
        inverse of a matrix of N (C - 1) rows, for N data of C classes, or of P for P weights, whichever is smaller:
        about two minutes for 9000 rows on one core, and three times 8 bytes for each of its numbers.

        Args:
            train: the data that the fit was trained on, (x, y) or a Dataset.

        Raises:
            ValueError: another likelihood, other data than the fit's, more memory than is at hand.
        """
        if not isinstance(self.likelihood, Categorical):
            raise ValueError(
                f"with_scale of a fit with likelihood {self.likelihood.name!r}: expected a classification; the "
                "scale is one of logits"
            )
        check_network_kind(self.model)
        data = Batches(train, device=next(self.model.parameters()).device, net=self.model)
        if self.provenance.data not in (None, data.digest()):
            raise ValueError("with_scale on other data than the fit was trained on: expected the same, in its order")
        return replace(self, scale=left_out(self.model, data, self.prior).scale())

    def _scale_for(self, kind: str) -> float:
        """What outputs are multiplied by for a kind of prediction."""
        if kind != "scaled":
            return 1.0
        if self.scale is None:
            raise ValueError("this fit has no scale of its logits: use fit.with_scale(train), or kind='map'")
        return self.scale

    def _taken(self, x: Any) -> Tensor:
        """x as the network takes it."""
        return TakenBy(self.model)(inputs_of(x))

    def _outputs(self, x: Tensor, batch_size: int) -> Tensor:
        device = next(self.model.parameters()).device
        self.model.eval()
        return torch.cat([outputs_of(self.model, part.to(device)) for part in x.split(batch_size)])

    def _output_moments(self, x: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Mean and covariance of the outputs, batch by batch."""
        # laplace-torch takes two seconds to import: only those who ask for a posterior should wait
        from bayesws.evidence import laplace

        check_network_kind(self.model)
        if not self.posterior:
            raise ValueError(
                "this fit was saved without a posterior: fit again with keep_posterior=True, or use kind='map'"
            )
        device = next(self.model.parameters()).device
        self.model.eval()
        outputs_of(self.model, x[:1].to(device))  # says in its own words if they do not fit
        if device not in self._restored:
            self._restored.clear()  # of the device that the network has left
            self._restored[device] = laplace.restored_posterior(
                self.model, self.posterior, self.likelihood, laplace.kind_of(self.posterior), self.prior
            )
        for part in x.split(batch_size):
            yield laplace.output_moments(self._restored[device], part.to(device))

    def save(self, path: str | Path) -> None:
        """Write the folder `path`, whole or not at all: weights.safetensors and fit.json.

        Raises:
            ValueError: a path that cannot be written, or that exists and is not a saved fit.
        """
        save(path_of(path), **{field.name: getattr(self, field.name) for field in fields(self) if field.init})

    @classmethod
    def load(
        cls, path: str | Path, model: nn.Module | None = None, likelihood: Likelihood | None = None
    ) -> "FitResult":
        """Read what `save` wrote.

        Args:
            path: the folder.
            model: a network of the same architecture, for networks that are not of `bayesws.models`; its weights are
                replaced.
            likelihood: one of the same kind, for likelihoods that are not ours; its state is replaced.

        Raises:
            ValueError: a folder that is not a saved fit or is damaged, an architecture that does not fit.
        """
        return cls(**load(path_of(path), model, likelihood))

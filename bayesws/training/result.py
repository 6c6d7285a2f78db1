"""FitResult: a trained network with its evidence, history and sharing; saved as safetensors and JSON."""

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bayesws.evidence.curvature import Curvature
from bayesws.evidence.likelihood import Categorical, Gaussian, likelihood_named
from bayesws.evidence.objective import Evidence
from bayesws.evidence.predictive import mean_probabilities, predictive_log_prob
from bayesws.io.files import save_tensors
from bayesws.layers.contract import layers_of, named_pathways
from bayesws.models import known_models
from bayesws.sharing.candidates import Candidates
from bayesws.sharing.groups import Group

FORMAT = 2
FILES = {"fit.json", "weights.safetensors"}


@dataclass(frozen=True)
class PathwaySummary:
    """One pathway's part in the evidence as plain numbers: see `PathwayEvidence`."""

    scatter: float
    occam: float | None
    effective: float
    parameters: int
    log_precision: float


@dataclass(frozen=True)
class EvidenceSummary:
    """The evidence of a fit as plain numbers, nats summed over the data: see `Evidence`."""

    log_evidence: float
    data_fit: float
    scatter: float
    occam: float
    by_pathway: dict[str, PathwaySummary]
    examples: int

    @classmethod
    def of(cls, evidence: Evidence) -> "EvidenceSummary":
        """The numbers of an `Evidence`."""
        pathways = {
            name: PathwaySummary(
                float(p.scatter.detach()),
                None if p.occam is None else float(p.occam.detach()),
                float(p.effective.detach()),
                p.parameters,
                float(p.log_precision.detach()),
            )
            for name, p in evidence.by_pathway.items()
        }
        return cls(
            float(evidence),
            float(evidence.data_fit.detach()),
            float(evidence.scatter.detach()),
            float(evidence.occam.detach()),
            pathways,
            evidence.examples,
        )


@dataclass(frozen=True)
class SharingRow:
    """How much one layer shares, and what it uses of its pathways.

    Attributes:
        name: the layer's path in the network.
        strength: ρ in [0, 1], the correlation of corresponding weights of two copies under the fitted prior; nan for a
            layer without copies that share, such as a plain linear one.
        effective: γ by pathway, effective parameters.
        parameters: number of parameters by pathway.
        log_precisions: log δ by pathway.
    """

    name: str
    strength: float
    effective: dict[str, float]
    parameters: dict[str, int]
    log_precisions: dict[str, float]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "SharingRow":
        """From what `dataclasses.asdict` made of one, as JSON brings it back: null for nan."""
        return cls(**{**record, "strength": math.nan if record["strength"] is None else record["strength"]})


@dataclass(frozen=True)
class Proposal:
    """What the moments of one layer's input proposed before the fit: see `sharing.candidates`.

    Attributes:
        name: the layer's path in the network.
        group: the known group that the input is symmetric under, None where it has no name.
        elements: how many elements it has.
        misfit: the largest of an element, relative.
        p_value: of the input being symmetric under it.
    """

    name: str
    group: str | None
    elements: int
    misfit: float
    p_value: float

    @classmethod
    def of(cls, name: str, candidates: Candidates) -> "Proposal":
        """The plain numbers of what was found."""
        group = candidates.group
        return cls(name, group.name, len(group.permutations), group.misfit, group.p_value)


@dataclass
class FitResult:
    """What a fit leaves behind.

    Attributes:
        model: the trained network, in eval mode.
        prior: log precisions by pathway (those of sharing layers are the layers' own tensors).
        likelihood: with its fitted noise.
        evidence: at the end of the fit, nats summed over the training data.
        history: one record an epoch: "epoch", "loss" (mean negative log likelihood, nats per datum) and, after a step
            on the hyperparameters, "log_evidence", "data_fit", "scatter", "occam" (nats, summed).
        objective, curvature, seed, settings: how it was fitted.
        weight_decay: chosen for the task loss, per datum; None for the evidence.
        start: what the layers' input moments proposed, for start="moments".
        notes: whatever did not converge or hit a bound, one line each; empty where all is well.
        seconds: wall time of the fit.
        training_seconds: that of its last training alone, without the choice of a weight decay.
        posterior: the curvature at the end of the fit, from which `predict` takes the weights' posterior (see
            `evidence.laplace.restored`), and the log likelihood's gradient, "gradient." by pathway; empty where it was
            not kept.
    """

    model: nn.Module
    prior: dict[str, Tensor]
    likelihood: Categorical | Gaussian
    evidence: EvidenceSummary
    history: list[dict[str, float]]
    objective: str
    curvature: Curvature
    seed: int
    settings: dict[str, Any]
    weight_decay: float | None = None
    start: list[Proposal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    training_seconds: float = 0.0
    posterior: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _restored: Any = field(default=None, init=False, repr=False, compare=False)

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

    @torch.no_grad()
    def predict(self, x: Tensor, kind: str = "posterior", batch_size: int = 1000) -> Tensor:
        """Predicted probabilities (batch, classes), or values (batch, ...) of a regression.

        p(y | x, D) = ∫ p(y | f) N(f; f(x), J (H + Λ)⁻¹ Jᵀ) df, the predictive of the network linearised at its MAP
        weights, with the curvature of the fit. Its mean is f(x), so a regression predicts the same either way. Compare
        the two by `nll`: on the digit tasks the posterior's probabilities are too cautious, the MAP's are not.

        Args:
            x: (batch, ...), inputs as the network takes them, moved to its device.
            kind: "posterior", or "map" for p(y | f(x)): faster, and without the weights' uncertainty.
            batch_size: how many at once; does not change the result.

        Raises:
            ValueError: inputs with NaN or infinite values, another kind, a fit that was saved without a posterior.
        """
        if _is_posterior(kind) and isinstance(self.likelihood, Categorical):
            return torch.cat([mean_probabilities(*moments) for moments in self._moments(x, batch_size)])
        return self.likelihood.mean(self._outputs(x, batch_size))

    @torch.no_grad()
    def nll(self, x: Tensor, y: Tensor, kind: str = "posterior", batch_size: int = 1000) -> float:
        """Mean negative log likelihood of data, nats per datum: -log p(y | x, D), or -log p(y | f(x)) for "map".

        Raises:
            ValueError: as `predict`; targets that do not fit.
        """
        outputs = self._outputs(x, batch_size)
        y = y.to(outputs.device)
        self.likelihood.check(outputs, y)
        if not _is_posterior(kind):
            return -float(self.likelihood.log_prob(outputs, y)) / len(x)
        parts = zip(y.split(batch_size), self._moments(x, batch_size), strict=True)
        return -sum(float(predictive_log_prob(self.likelihood, *moments, t)) for t, moments in parts) / len(x)

    def _outputs(self, x: Tensor, batch_size: int) -> Tensor:
        _check_finite(x)
        device = next(self.model.parameters()).device
        self.model.eval()
        return torch.cat([self.model(part.to(device)) for part in x.split(batch_size)])

    def _moments(self, x: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Mean and covariance of the outputs, batch by batch."""
        # laplace-torch takes two seconds to import: only those who ask for a posterior should wait
        from bayesws.evidence.laplace import backend as laplace

        _check_finite(x)
        if not self.posterior:
            raise ValueError("this fit was saved without a posterior: fit again, or use kind='map'")
        device = next(self.model.parameters()).device
        if self._restored is None or self._restored.mean.device != device:
            curvature = laplace.as_held(self.curvature)
            self._restored = laplace.restored(self.model, self.posterior, self.likelihood, curvature, self.prior)
        self.model.eval()
        for part in x.split(batch_size):
            yield laplace.output_moments(self._restored, part.to(device))

    def save(self, path: str | Path) -> None:
        """Write the folder `path`, whole or not at all: weights.safetensors and fit.json.

        Raises:
            ValueError: a path that cannot be written, or that exists and is not a saved fit.
        """
        target = Path(path)
        check_free_for(target)
        record = {
            "format": FORMAT,
            "network": _network_record(self.model),
            "likelihood": self.likelihood.name,
            "learns_noise": bool(self.likelihood.hyperparameters()),
            "objective": self.objective,
            "curvature": asdict(self.curvature),
            "seed": self.seed,
            "settings": self.settings,
            "weight_decay": self.weight_decay,
            "start": [asdict(proposal) for proposal in self.start],
            "notes": self.notes,
            "seconds": self.seconds,
            "training_seconds": self.training_seconds,
            "evidence": asdict(self.evidence),
            "history": self.history,
        }
        tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        tensors |= {f"prior.{k}": v.detach().cpu().clone() for k, v in self.prior.items()}
        if isinstance(self.likelihood, Gaussian):
            tensors["likelihood.0"] = self.likelihood.log_noise.detach().cpu().clone()
        tensors |= {f"posterior.{k}": v.detach().cpu().contiguous() for k, v in self.posterior.items()}
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        except OSError as error:
            raise ValueError(f"cannot write {target}: {error.strerror}; choose another path") from error
        try:
            save_tensors(tensors, draft / "weights.safetensors")
            (draft / "fit.json").write_text(json.dumps(record, indent=1))
            draft.chmod(0o755)
            if target.exists():
                shutil.rmtree(target)
            draft.rename(target)
        except OSError as error:
            raise ValueError(f"cannot write {target}: {error.strerror}; choose another path") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | None = None) -> "FitResult":
        """Read what `save` wrote.

        Args:
            path: the folder.
            model: a network of the same architecture, for networks that are not of `bayesws.models`; its weights are
                replaced.

        Raises:
            ValueError: a folder that is not a saved fit or is damaged, an architecture that does not fit.
        """
        source = Path(path)
        try:
            record = json.loads((source / "fit.json").read_text())
            tensors = load_file(source / "weights.safetensors")
        except FileNotFoundError as error:
            missing = "fit.json" if not (source / "fit.json").is_file() else "weights.safetensors"
            raise ValueError(f"{source} is not a saved fit: no {missing} in it") from error
        except (json.JSONDecodeError, SafetensorError, OSError) as error:
            raise ValueError(f"{source} is damaged and cannot be read: {error}") from error
        if record.get("format") != FORMAT:
            raise ValueError(f"{source} has format {record.get('format')!r}: expected {FORMAT}")
        network = model if model is not None else _network_from(record["network"], source)
        try:
            network.load_state_dict(_under("model.", tensors))
        except RuntimeError as error:
            raise ValueError(f"{source} does not fit this network: {str(error).splitlines()[-1]}") from error
        likelihood = likelihood_named(record["likelihood"])
        if isinstance(likelihood, Gaussian):
            likelihood.log_noise.data = tensors["likelihood.0"]
            likelihood.log_noise.requires_grad_(record.get("learns_noise", True))
        saved_prior = _under("prior.", tensors)
        prior = {
            name: saved_prior[name] if pathway.log_precision is None else pathway.log_precision
            for name, pathway in named_pathways(network)
        }
        evidence = record["evidence"]
        by_pathway = {name: PathwaySummary(**p) for name, p in evidence.pop("by_pathway").items()}
        return cls(
            model=network.eval(),
            prior=prior,
            likelihood=likelihood,
            evidence=EvidenceSummary(**evidence, by_pathway=by_pathway),
            curvature=Curvature(**record["curvature"]),
            posterior=_under("posterior.", tensors),
            start=[Proposal(**row) for row in record.get("start", [])],
            **{
                key: record[key]
                for key in (
                    "history",
                    "objective",
                    "seed",
                    "settings",
                    "weight_decay",
                    "notes",
                    "seconds",
                    "training_seconds",
                )
            },
        )


def check_free_for(folder: Path) -> None:
    """Raise ValueError where a fit cannot be saved as `folder`: it is there, and is more than a saved fit."""
    if not folder.exists():
        return
    if not (folder / "fit.json").is_file():
        raise ValueError(f"{folder} exists and is not a saved fit: choose another path")
    if others := sorted({path.name for path in folder.iterdir()} - FILES):
        raise ValueError(f"{folder} holds {others[0]!r} beside a fit, which would be lost: choose another path")


def _is_posterior(kind: str) -> bool:
    if kind not in ("posterior", "map"):
        raise ValueError(f"kind={kind!r}: expected 'posterior' or 'map'")
    return kind == "posterior"


def _check_finite(x: Tensor) -> None:
    if not torch.isfinite(x).all():
        raise ValueError(f"inputs hold {int((~torch.isfinite(x)).sum())} NaN or infinite values")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _network_record(model: nn.Module) -> dict[str, Any] | None:
    """Name and settings of a network of `bayesws.models`; None for others."""
    name = type(model).__name__
    if known_models().get(name) is not type(model):
        return None
    settings = {key: _as_json(value) for key, value in model.settings.items()}  # type: ignore[operator, union-attr]
    return {"name": name, "settings": settings}


def _as_json(value: Any) -> Any:
    """A network's argument as JSON has it."""
    if isinstance(value, Group):
        return {"name": value.name, "permutations": value.permutations.tolist()}
    return [_as_json(part) for part in value] if isinstance(value, list | tuple) else value


def _from_json(value: Any) -> Any:
    """What `_as_json` was given."""
    if isinstance(value, dict):
        return Group(value["name"], torch.tensor(value["permutations"]))
    return tuple(_from_json(part) for part in value) if isinstance(value, list) else value


def _network_from(record: dict[str, Any] | None, source: Path) -> nn.Module:
    if record is None:
        raise ValueError(f"{source} holds a network that is not of bayesws.models: pass one as model=")
    if record["name"] not in known_models():
        raise ValueError(f"{source} holds a {record['name']}: this bayesws knows {', '.join(known_models())}")
    settings = {key: _from_json(value) for key, value in record["settings"].items()}
    return known_models()[record["name"]](**settings)

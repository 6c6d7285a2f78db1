"""A fit as a folder: its tensors as safetensors, all else as JSON; written whole or not at all."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bayesws.evidence.curvature import Curvature
from bayesws.evidence.likelihood import Likelihood, likelihood_named
from bayesws.io.files import save_tensors, write_folder_whole
from bayesws.layers.contract import named_pathways
from bayesws.models import known_models
from bayesws.sharing.groups import Group
from bayesws.training.recipe import Provenance, Recipe
from bayesws.training.summaries import EvidenceSummary, PathwaySummary, Proposal

FORMAT = 3
FILES = {"fit.json", "weights.safetensors"}


def save(
    target: Path,
    *,
    model: nn.Module,
    prior: Mapping[str, Tensor],
    likelihood: Likelihood,
    evidence: EvidenceSummary,
    history: list[dict[str, float]],
    recipe: Recipe,
    provenance: Provenance,
    start: tuple[Proposal, ...],
    notes: tuple[str, ...],
    posterior: Mapping[str, Tensor],
) -> None:
    """Write a fit's fields: see `FitResult.save`, and `FitResult` for what they are."""
    check_free_for(target)
    record = {
        "format": FORMAT,
        "network": _network_record(model),
        "likelihood": likelihood.name,
        "learns": bool(likelihood.hyperparameters()),
        "recipe": asdict(recipe),
        "provenance": asdict(provenance),
        "start": [asdict(proposal) for proposal in start],
        "notes": list(notes),
        "evidence": asdict(evidence),
        "history": history,
    }
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"prior.{k}": v for k, v in prior.items()}
    tensors |= {f"likelihood.{k}": v for k, v in likelihood.state().items()}
    tensors |= {f"posterior.{k}": v for k, v in posterior.items()}
    owned = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}

    def write(folder: Path) -> None:
        save_tensors(owned, folder / "weights.safetensors")
        (folder / "fit.json").write_text(json.dumps(record, indent=1))

    write_folder_whole(target, write)


def load(source: Path, model: nn.Module | None, likelihood: Likelihood | None) -> dict[str, Any]:
    """Read a fit's fields, by name: see `FitResult.load`."""
    record, tensors = _read(source)
    network = model if model is not None else _network_from(record["network"], source)
    try:
        network.load_state_dict(_under("model.", tensors))
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit this network: {str(error).splitlines()[-1]}") from error
    saved_prior = _under("prior.", tensors)
    prior = {
        name: saved_prior[name] if pathway.log_precision is None else pathway.log_precision
        for name, pathway in named_pathways(network)
    }
    evidence = dict(record["evidence"])
    by_pathway = {name: PathwaySummary(**p) for name, p in evidence.pop("by_pathway").items()}
    recipe = dict(record["recipe"])
    return {
        "model": network.eval(),
        "prior": prior,
        "likelihood": _likelihood_from(record, likelihood, _under("likelihood.", tensors), source),
        "evidence": EvidenceSummary(**evidence, by_pathway=by_pathway),
        "history": record["history"],
        "recipe": Recipe(**recipe | {"curvature": Curvature(**recipe["curvature"])}),
        "provenance": Provenance(**record["provenance"]),
        "start": tuple(Proposal(**row) for row in record["start"]),
        "notes": tuple(record["notes"]),
        "posterior": _under("posterior.", tensors),
    }


def check_free_for(folder: Path) -> None:
    """Raise ValueError where a fit cannot be saved as `folder`: it is there, not empty, and more than a saved fit."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / "fit.json").is_file():
        raise ValueError(f"{folder} exists and is not a saved fit: choose another path")
    if others := sorted({path.name for path in folder.iterdir()} - FILES):
        raise ValueError(f"{folder} holds {others[0]!r} beside a fit, which would be lost: choose another path")


def _read(source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
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
    return record, tensors


def _likelihood_from(
    record: dict[str, Any], given: Likelihood | None, state: dict[str, Tensor], source: Path
) -> Likelihood:
    name = record["likelihood"]
    if given is None and name not in ("classification", "regression"):
        raise ValueError(f"{source} was fitted with a likelihood of its own, {name!r}: pass one as likelihood=")
    likelihood = likelihood_named(name) if given is None else given
    if likelihood.name != name:
        raise ValueError(f"{source} was fitted with likelihood {name!r}: likelihood={likelihood.name!r} came")
    likelihood.restore(state)
    for parameter in likelihood.state().values():
        parameter.requires_grad_(record["learns"])
    return likelihood


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

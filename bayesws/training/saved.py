"""A fit as a folder: its tensors as safetensors, all else as JSON; written whole or not at all."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor, nn

from bayesws.evidence.likelihood import Likelihood, likelihood_named
from bayesws.io.arguments import whole_text
from bayesws.io.files import save_tensors, write_folder_whole
from bayesws.io.json_files import in_json, read_json, sealed
from bayesws.io.tensor_files import Digest, digest_of_file, read_tensors
from bayesws.layers.contract import named_pathways
from bayesws.layers.prune import prune, pruned
from bayesws.models import known_models
from bayesws.sharing.groups import Group
from bayesws.training.recipe import Provenance, Recipe
from bayesws.training.summaries import EvidenceSummary, Proposal, Start

FORMAT = 7  # since 4 the record knows its own digest and that of the weights, since 5 the evidence its curvature
READ = (5, 6, FORMAT)  # since 6 there may be several starts, and a scale of the logits; since 7 branches that are out
TAKEN_OVER = ("evidence", "history", "recipe", "provenance", "start", "starts", "notes", "scale")  # as they are
FILES = {"fit.json", "weights.safetensors"}
CURE = "copy the whole folder again, or fit again"
LARGEST_SETTING = 64  # that a network may have whatever its tensors are


@dataclass(frozen=True)
class SavedNetwork:
    """A network of `bayesws.models`: its name, and its arguments as JSON has them."""

    name: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class SavedFit:
    """What fit.json holds: see `FitResult` for what the fields are.

    Attributes:
        format: one of `READ`.
        network: None for one that is not of `bayesws.models`.
        likelihood: its name.
        learns: whether the likelihood has hyperparameters that were learned.
        tensors: SHA-256 of the files with tensors, by name.
        scale: of the logits, since format 6.
        pruned: branches that were taken out of the network (`layers.prune`), since format 7.
    """

    format: int
    network: SavedNetwork | None
    likelihood: str
    learns: bool
    recipe: Recipe
    provenance: Provenance
    start: tuple[Proposal, ...]
    notes: tuple[str, ...]
    evidence: EvidenceSummary
    history: list[dict[str, float]]
    tensors: dict[str, Digest]
    starts: tuple[Start, ...] = ()
    scale: Annotated[float, Gt(0)] | None = None
    pruned: tuple[str, ...] = ()


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
    starts: tuple[Start, ...],
    notes: tuple[str, ...],
    posterior: Mapping[str, Tensor],
    scale: float | None,
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
        "starts": [asdict(each) for each in starts],
        "notes": list(notes),
        "evidence": asdict(evidence),
        "history": history,
        "scale": scale,
        "pruned": pruned(model),
    }
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"prior.{k}": v for k, v in prior.items()}
    tensors |= {f"likelihood.{k}": v for k, v in likelihood.state().items()}
    tensors |= {f"posterior.{k}": v for k, v in posterior.items()}
    owned = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}

    def write(folder: Path) -> None:
        save_tensors(owned, folder / "weights.safetensors")
        record["tensors"] = {"weights.safetensors": digest_of_file(folder / "weights.safetensors")}
        (folder / "fit.json").write_text(json.dumps(sealed(record), indent=1))

    write_folder_whole(target, write)


def load(source: Path, model: nn.Module | None, likelihood: Likelihood | None) -> dict[str, Any]:
    """Read a fit's fields, by name: see `FitResult.load`."""
    record, tensors = _read(source)
    network = model if model is not None else _network_from(record, _under("model.", tensors), source)
    try:
        prune(network, record.pruned)
        network.load_state_dict(_under("model.", tensors))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{source} does not fit this network: {str(error).splitlines()[-1].strip()}") from error
    saved_prior = _under("prior.", tensors)
    pathways = dict(named_pathways(network))
    if missing := [n for n, p in pathways.items() if p.log_precision is None and n not in saved_prior]:
        raise ValueError(f"{source} has no precision for {missing[0]!r}: expected one for every pathway; {CURE}")
    prior = {n: saved_prior[n] if p.log_precision is None else p.log_precision for n, p in pathways.items()}
    return {
        "model": network.eval(),
        "prior": prior,
        "likelihood": _likelihood_from(record, likelihood, _under("likelihood.", tensors), source),
        "posterior": _under("posterior.", tensors),
    } | {name: getattr(record, name) for name in TAKEN_OVER}


def check_free_for(folder: Path) -> None:
    """Raise ValueError where a fit cannot be saved as `folder`: it is there, not empty, and more than a saved fit."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / "fit.json").is_file():
        raise ValueError(f"{folder} exists and is not a saved fit: choose another path")
    if others := sorted({path.name for path in folder.iterdir()} - FILES):
        raise ValueError(f"{folder} holds {others[0]!r} beside a fit, which would be lost: choose another path")


def _read(source: Path) -> tuple[SavedFit, dict[str, Tensor]]:
    for name in sorted(FILES):
        if not (source / name).is_file():
            raise ValueError(f"{source} is not a saved fit: no {name} in it; choose a folder that FitResult.save wrote")
    path = source / "fit.json"
    found = read_json(path, dict[str, Any], CURE, sealed=False, nonfinite=True).get("format")
    if found not in READ:
        raise ValueError(
            f"{path} has format {in_json(found)}: expected {FORMAT}; fit again with this version of bayesws"
        )
    record = read_json(path, SavedFit, CURE, nonfinite=True)
    network = record.network
    several = network is not None and network.name == "LayerwiseNet" and "+" in str(network.settings.get("blocks"))
    if several and record.format < FORMAT:
        raise ValueError(f"{path} has format {record.format}, when a block was a mean of its branches: fit again")
    if record.tensors.keys() != FILES - {"fit.json"}:
        raise ValueError(f"{path} knows tensors {in_json([*record.tensors])}: expected weights.safetensors; {CURE}")
    tensors, _ = read_tensors(source / "weights.safetensors", CURE, record.tensors["weights.safetensors"])
    return record, tensors


def _likelihood_from(record: SavedFit, given: Likelihood | None, state: dict[str, Tensor], source: Path) -> Likelihood:
    name = record.likelihood
    if given is None and name not in ("classification", "regression"):
        raise ValueError(f"{source} was fitted with a likelihood of its own, {name!r}: pass one as likelihood=")
    likelihood = likelihood_named(name) if given is None else given
    if likelihood.name != name:
        raise ValueError(f"{source} was fitted with likelihood {name!r}: likelihood={likelihood.name!r} came")
    likelihood.restore(state)
    for parameter in likelihood.state().values():
        parameter.requires_grad_(record.learns)
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


def _network_from(fit: SavedFit, tensors: Mapping[str, Tensor], source: Path) -> nn.Module:
    """The network that the tensors are of; built without memory first, so that no setting asks for more than they have.

    Raises:
        ValueError: a network that is unknown, or whose parameters have other names or shapes.
    """
    if (record := fit.network) is None:
        raise ValueError(f"{source} holds a network that is not of bayesws.models: pass one as model=")
    if record.name not in known_models():
        raise ValueError(f"{source} holds a {record.name!r}: this bayesws knows {', '.join(known_models())}")
    most = max([LARGEST_SETTING, *(size for tensor in tensors.values() for size in tensor.shape)])
    for name, value in record.settings.items():
        limit = len(tensors) if name == "layers" else most
        if isinstance(value, int) and value > limit:
            raise ValueError(f"{source} has {name} {value}: its tensors have room for {limit}; {CURE}")
    try:
        settings = {key: _from_json(value) for key, value in record.settings.items()}
        make = known_models()[record.name]
        prune(frame := make(**settings, device="meta"), fit.pruned)
        shapes = {name: tuple(t.shape) for name, t in frame.state_dict().items()}
        if shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
            return make(**settings)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{source} has settings that no {record.name} has: {whole_text(error)}; {CURE}") from error
    raise ValueError(f"{source} has weights of another {record.name} than its settings say; {CURE}")

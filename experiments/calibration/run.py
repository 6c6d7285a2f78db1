"""Calibration: how far is each Laplace evidence of a tiny network from the truth, and do structures rank alike?

The command is in the README beside it. Finished cells are kept in OUT/trials, one JSON file each.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from tables import draw, report, summary_of
from tiny_networks import data_of, drawn, likelihood_of, log_copies, log_precisions, network
from torch import Tensor, nn

import bayesws as bws

CONFIG = Path(__file__).with_name("config.json")


def highest(
    net: nn.Module, data: tuple[Tensor, Tensor], likelihood: Any, prior: dict[str, float], config: dict[str, Any]
) -> dict[str, Any]:
    """Move the network to its MAP: L-BFGS from draws of the prior, the highest log joint polished.

    Returns: how many starts came within 0.01 nats of the highest, and how far the lowest stayed below it.
    """
    pathways = dict(bws.layers.named_pathways(net))
    weights = [p.parameter for p in pathways.values()]
    x, y = data

    def energy() -> Tensor:
        scatter = sum(0.5 * math.exp(prior[n]) * p.parameter.square().sum() for n, p in pathways.items())
        return scatter - likelihood.log_prob(net(x), y)

    def descend(iterations: int) -> float:
        search = torch.optim.LBFGS(
            weights,
            max_iter=iterations,
            max_eval=2 * iterations,
            tolerance_grad=1e-9,
            tolerance_change=1e-13,
            history_size=30,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            search.zero_grad()
            value = energy()
            value.backward()
            return value

        search.step(closure)
        with torch.no_grad():
            value = float(energy())
        return value if math.isfinite(value) else math.inf

    found: list[tuple[float, list[Tensor]]] = []
    for start in range(config["restarts"]):
        drawn(net, prior, torch.Generator().manual_seed(start))
        found.append((descend(config["iterations"]), [w.detach().clone() for w in weights]))
    found.sort(key=lambda pair: pair[0])
    with torch.no_grad():
        for weight, best in zip(weights, found[0][1], strict=True):
            weight.copy_(best)
    polished = descend(config["polish"])
    levels = [value for value, _ in found]
    return {"log_joint": -polished, "starts_at_best": sum(v < polished + 0.01 for v in levels), "starts": len(levels)}


def cell(
    spec: dict[str, Any],
    teacher: dict[str, Any],
    examples: int,
    data_seed: int,
    config: dict[str, Any],
    sampler: dict[str, Any],
) -> dict[str, Any]:
    """One network on one data set: MAP, every Laplace evidence, gold."""
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(1000 * config["seed"] + data_seed)
    source = network(teacher, config)
    drawn(source, log_precisions(source, teacher, config), generator)
    labels = spec.get("labels", "drawn")
    x, y = data_of(source, spec["likelihood"], max(config["examples"]), config, generator, labels)
    data = x[:examples], y[:examples]  # nested in the number of examples
    net, likelihood = network(spec, config), likelihood_of(spec, config)
    prior = log_precisions(net, spec, config)
    at_map = highest(net, data, likelihood, prior, config)
    if spec.get("gold") == "closed form":
        gold: Any = bws.analysis.linear_gaussian_evidence(net, data, likelihood, prior)
        sampled: dict[str, Any] = {}
    else:
        settings = dict(sampler)
        wanted = config["largest_standard_error"] * examples
        for attempt in range(config["attempts"]):
            gold = bws.annealed_evidence(net, data, likelihood, prior, seed=config["seed"] + attempt, **settings)
            if gold.standard_error <= wanted:
                break
            settings["chains"] *= 2
        names = ("by_population", "temperatures", "acceptance", "effective")
        sampled = {name: getattr(gold, name) for name in names}
    held = bws.calibrate(net, data, likelihood, gold, prior=prior, log_copies=log_copies(spec))
    errors = {
        name: {"error": held.error(name), "with_copies": held.error(name, copies=True)} for name in held.log_evidence
    }
    data_fit = float(likelihood.log_prob(net(data[0]), data[1]).detach())
    beyond: dict[str, Any] = {}
    if "trained_at" in spec:  # not the MAP: trained on with a weaker prior, then judged by this one
        weaker = dict.fromkeys(prior, spec["trained_at"])
        highest(net, data, likelihood, weaker, config)
        found = {name: float(bws.log_evidence(net, data, likelihood, name, prior)) for name in ("full", "kron")}
        errors_beyond = {name: (value - held.gold) / examples for name, value in found.items()}
        beyond = {"trained_at": spec["trained_at"], "log_evidence": found, "errors_nats_per_datum": errors_beyond}
    return {
        **held.record(),
        "beyond_the_map": beyond,
        "errors_nats_per_datum": errors,
        "sampler": sampled,
        "map": at_map,
        "data_fit": data_fit,
        "parameters": sum(p.numel for _, p in bws.layers.named_pathways(net)),
        "seconds": round(time.perf_counter() - began, 1),
    }


@dataclass(frozen=True)
class Cell:
    """One network on one data set, as a trial.

    Attributes:
        about: what the tables sort by.
        label: its name.
        spec, teacher: of the network, and of the one that the data is drawn from.
        examples: how many.
        data_seed: of the data.
        config: what of the configuration bears on it.
        sampler: settings of the annealed evidence.
    """

    about: dict[str, Any]
    label: str
    spec: dict[str, Any]
    teacher: dict[str, Any]
    examples: int
    data_seed: int
    config: dict[str, Any]
    sampler: dict[str, Any]

    @property
    def name(self) -> str:
        """Its file, without the ending."""
        return self.label.replace(", ", "-").replace(" ", "-")

    @property
    def settings(self) -> dict[str, Any]:
        """All that its numbers depend on."""
        return asdict(self)

    def run(self) -> dict[str, Any]:
        """MAP, every Laplace evidence, gold."""
        return self.about | cell(self.spec, self.teacher, self.examples, self.data_seed, self.config, self.sampler)


def gold_settings(config: dict[str, Any], examples: int, name: str) -> dict[str, Any]:
    """Of the sampler: the more data, the fewer chains are enough; some cells mix too slowly for that."""
    by_examples, by_cell = config["gold_by_examples"].get(str(examples), {}), config["gold_by_cell"].get(name, {})
    settings: dict[str, Any] = config["gold"] | by_examples | by_cell
    return settings


def cells(config: dict[str, Any]) -> list[Cell]:
    """All cells: networks, structures that are ranked, and those that interpolate, by number of examples."""
    bears = {name: value for name, value in config.items() if name not in BY_CELL}
    found = []

    def add(name: str, spec: dict[str, Any], teacher: dict[str, Any], examples: int, seed: int, **about: Any) -> None:
        sampler = gold_settings(config, examples, name)
        found.append(Cell({**about, "examples": examples}, name, spec, teacher, examples, seed, bears, sampler))

    for examples in config["examples"]:
        for seed, (name, spec) in enumerate(config["nets"].items()):
            add(f"nets-{name}-{examples}", spec, spec, examples, seed, part="nets", net=name)
        for seed, (name, data) in enumerate(config["data_sets"].items(), 100):
            both = config["structures"]["both"] | {"likelihood": data["likelihood"], "strength": data["strength"]}
            alone = {1.0: ["shared"], 0.0: ["free"]}.get(data["strength"])
            teacher = both | {"pathways": alone} if alone else both
            for structure, spec in config["structures"].items() if examples in config["ranking_examples"] else ():
                full = spec | {"likelihood": data["likelihood"]}
                label = f"ranking-{name}-{structure}-{examples}"
                add(label, full, teacher, examples, seed, part="ranking", data=name, structure=structure)
        extreme = config["interpolating"]
        for level in extreme["log_precisions"] if examples in extreme["examples"] else []:
            spec = extreme["net"] | {"log_precision": level}
            label = f"interpolating-{level}-{examples}"
            add(label, spec, extreme["net"], examples, 200, part="interpolating", log_precision=level)
    return found


def main() -> None:
    """Run the cells that the folder does not hold yet, print the tables, write results, summary and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--examples", type=int, nargs="+", help="instead of those of config.json, some of them")
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each (default 1)")
    options = parser.parse_args()
    config = json.loads(CONFIG.read_text())
    asked = [one for one in cells(config) if not options.examples or one.examples in options.examples]
    done = count(1)

    def tell(name: str) -> None:
        print(f"{next(done)} of {len(asked)}: {name}", file=sys.stderr, flush=True)

    try:
        stored = bws.trials.run(asked, options.out, options.workers, advance=tell)
    except ValueError as error:
        parser.error(str(error))
    records = [{name: value for name, value in record.items() if name != "settings"} for record in stored]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "scipy")}
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count(), **versions}
    minutes = sum(record["seconds"] for record in records) / 60
    result = {"config": config, "minutes": round(minutes, 1), "machine": machine, "records": records}
    write(options.out / "results.json", json.dumps(result, indent=1) + "\n")
    summary = summary_of(result)
    bws.trials.save_summary(summary, options.out / "summary.json")
    draw(summary, options.out / "results.png")
    print(report(summary))


BY_CELL = (  # what of the configuration says which cells there are, and how each is sampled
    *("nets", "structures", "data_sets", "interpolating", "ranking_examples"),
    *("gold", "gold_by_examples", "gold_by_cell"),
)


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as draft:
        draft.write(text)
    Path(draft.name).chmod(0o644)
    Path(draft.name).replace(path)


if __name__ == "__main__":
    main()

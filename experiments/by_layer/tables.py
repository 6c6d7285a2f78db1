"""Print the table of the page beside this file from the three summaries, in Markdown."""

import argparse
from pathlib import Path

import bayesws as bws

TASKS = ("turned", "orientation", "upright")


def main() -> None:
    """Log Bayes factors of every layer's groups against the chosen one, nats."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, help="with a folder a task")
    folder = parser.parse_args().folder
    found = {task: bws.trials.LayerRanking.load(folder / task / "summary.json") for task in TASKS}
    groups = list(found[TASKS[0]].log_evidences[0])
    print(f"| digits | layer | {' | '.join(groups)} |")
    print("|---" * (2 + len(groups)) + "|")
    for task, ranking in found.items():
        for place, (factors, chosen) in enumerate(zip(ranking.log_bayes_factors, ranking.chosen, strict=True), 1):
            cells = ["**chosen**" if name == chosen else f"{factors[name]:.1f}" for name in groups]
            print(f"| {task if place == 1 else ''} | {place} | {' | '.join(cells)} |".replace("|  |", "| |"))


if __name__ == "__main__":
    main()

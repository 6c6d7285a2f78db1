"""Keep the summary of a run beside its page: what bayesws compare, study or select wrote becomes a summary.json.

    python experiments/summarise.py runs/turned_large experiments/turned_mnist/large

copies the run's figures, too. Scripts of experiments that have a run.py write their summaries themselves.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import bayesws as bws

RECORDS = ("comparison.json", "study.json", "ranking.json")


def main() -> int:
    """Read the run, write its summary and its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help=f"a folder with {', '.join(RECORDS[:-1])} or {RECORDS[-1]}")
    parser.add_argument("into", type=Path, help="the folder for summary.json and the figures")
    parser.add_argument("--digits", type=int, default=6, help="of every number (default 6); fewer for many seeds")
    options = parser.parse_args()
    try:
        record = next((options.run / name for name in RECORDS if (options.run / name).is_file()), None)
        if record is None:
            raise ValueError(f"{options.run} holds none of {', '.join(RECORDS)}: expected the --out of a finished run")
        summary = bws.trials.summary_of(json.loads(record.read_text()), options.digits)
        bws.trials.save_summary(summary, options.into / "summary.json")
    except ValueError as error:
        print(f"summarise: error: {error}", file=sys.stderr)
        return 2
    for figure in sorted(options.run.glob("*.png")):
        shutil.copyfile(figure, options.into / figure.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The pages are run and held against the code, not believed."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_architecture import ARROWS

from bayesws.trials.comparison import Comparison, Summary

ROOT = Path(__file__).parent.parent
README, CODE, INDEX = ROOT / "README.md", ROOT / "bayesws" / "README.md", ROOT / "experiments" / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


def run_block(number, folder):
    """On one thread: on several the same seed ends in other local optima from run to run."""
    assert len(BLOCKS) > number, "the README has lost a Python block"
    call, one = [sys.executable, "-W", "ignore", "-c", BLOCKS[number]], os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, cwd=folder, env=one, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return BLOCKS[number], done.stdout


def test_quickstart_runs_as_it_stands_and_is_ten_lines(tmp_path):
    code, printed = run_block(0, tmp_path)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    lift = re.search(r"^lift: ρ = (\d\.\d+), in use: shared \d+\.\d, free \d+\.\d", printed, re.M)
    assert lift and float(lift[1]) > 0.9
    assert re.search(r"^head: ρ = 0\.\d+, in use: shared", printed, re.M)


def test_the_symmetry_is_found_as_it_stands(tmp_path):
    _, printed = run_block(1, tmp_path)
    assert "* quarter-turns, 4 elements" in printed
    assert "lift: quarter-turns" in printed and "group_convs.0: quarter-turns" in printed


def test_any_model_runs_as_it_stands(tmp_path):
    _, printed = run_block(2, tmp_path)
    first, *lines = printed.splitlines()
    strength = float(re.search(r"prior variance (\d\.\d+) is shared over positions", first)[1])
    assert 0.5 < strength < 0.9995  # mostly shared, and neither part is closed
    kron, layer, sampled = (float(line.split(" nats")[0]) for line in lines)
    assert kron < layer and abs(sampled - kron) < 0.1 * abs(kron)


def test_strength_runs_as_it_stands(tmp_path):
    _, printed = run_block(3, tmp_path)
    assert "95 % interval" in printed and "ρ by quadrature" in printed and "R-hat" not in printed
    errors = [float(line.split(": ")[1].split(",")[0]) for line in printed.splitlines()[-3:]]
    assert errors[0] < 0.2 < errors[2]  # the first layer turns with the image, the orientation must not


def test_every_python_block_has_a_test():
    assert len(BLOCKS) == 4


def test_the_table_is_that_of_the_experiment():
    folder = ROOT / "experiments" / "layerwise_sharing"
    cells = Comparison.load(folder / "summary.json").cells()
    special = Comparison.load(folder / "special_cases" / "summary.json").cells()
    for task in ("turned", "orientation", "upright"):
        columns = [cells[task, "both", name] for name in ("evidence", "task")]
        columns += [special[task, pathways, "evidence"] for pathways in ("shared", "free")]
        losses = [Summary.of([t.nll for t in trials]).mean for trials in columns]
        shown = []
        for trials, loss in zip(columns, losses, strict=True):
            nll = f"**{loss:.3f}**" if loss == min(losses) else f"{loss:.3f}"
            shown.append(f"{Summary.of([t.accuracy for t in trials]).show(1, 100)}, NLL {nll}")
        assert f"| {task} | {' | '.join(shown)} |" in README.read_text()


@pytest.mark.parametrize(
    ("page", "lines"), [(README, 150), (CODE, 250), (INDEX, math.inf)], ids=["top", "code", "index"]
)
def test_pages_are_short_and_their_links_lead_somewhere(page, lines):
    text = page.read_text()
    assert len(text.splitlines()) <= lines
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, heading = target.partition("#")
        if file.startswith("http"):
            continue
        linked = page.parent / file if file else page
        assert linked.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
            assert heading in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], target


def test_every_file_of_the_method_table_exists():
    last_cells = re.findall(r"\| (`[^|]+\.py`) \|$", CODE.read_text(), re.M)
    files = [file for cell in last_cells for file in re.findall(r"`([^`]+)`", cell)]
    assert len(files) >= 20
    assert not [file for file in files if not (CODE.parent / file).is_file()]


def test_the_map_has_every_room_and_no_file_that_is_not_there():
    text = CODE.read_text().partition("\n## The map\n")[2].partition("\n## ")[0]
    rooms = dict(re.findall(r"^\*\*`(\w+)/`\*\*(.*?)(?=^\*\*`|\Z)", text, re.M | re.S))
    assert set(rooms) == set(ARROWS)
    for room, told in rooms.items():
        files = [name for name in re.findall(r"`([\w/]+\.py)`", told) if name != "cli.py"]
        assert not [name for name in files if not (CODE.parent / room / name).is_file()], room


def test_the_arrows_on_the_page_are_those_that_are_held():
    text = CODE.read_text().partition("\n## The arrows\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \|(.*)\|$", text, re.M)
    assert {room: re.findall(r"`([\w.]+)`", may) for room, may in rows} == ARROWS


def test_files_that_the_code_page_names_exist():
    names = re.findall(r"`((?:\w+/)+(?:[\w.]+\.\w+)?)`", CODE.read_text())
    assert len(names) > 30
    places = [ROOT, CODE.parent, *(CODE.parent / room for room in ARROWS)]
    assert not [name for name in names if not any((place / name).exists() for place in places)]

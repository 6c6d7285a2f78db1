"""The README is run, not believed."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def run_block(number, folder):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) > number, "the README has lost a Python block"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", blocks[number]], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return blocks[number], done.stdout


def test_quickstart_runs_as_it_stands_and_is_ten_lines(tmp_path):
    code, printed = run_block(0, tmp_path)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    assert "lift" in printed


def test_the_symmetry_is_found_as_it_stands(tmp_path):
    _, printed = run_block(1, tmp_path)
    assert "* quarter-turns, 4 elements" in printed
    assert "lift: quarter-turns" in printed and "group_convs.0: quarter-turns" in printed


def test_any_model_runs_as_it_stands(tmp_path):
    _, printed = run_block(2, tmp_path)
    kron, layer, sampled = (float(line.split(" nats")[0]) for line in printed.splitlines()[:3])
    assert kron < layer and abs(sampled - kron) < 0.1 * abs(kron)
    assert "laplace-torch on our curvature" in printed


def test_strength_runs_as_it_stands(tmp_path):
    _, printed = run_block(3, tmp_path)
    assert "95 % interval" in printed and "R-hat" in printed
    errors = [float(line.split(": ")[1].split(",")[0]) for line in printed.splitlines()[-3:]]
    assert errors[0] < 0.2 < errors[2]  # the first layer turns with the image, the orientation must not


def test_the_decomposition_runs_as_it_stands(tmp_path):
    _, printed = run_block(4, tmp_path)
    assert "explained=0.9999" in printed and "{2: 8}" in printed


def test_every_file_of_the_method_table_exists():
    files = re.findall(r"\| `([\w/.]+\.py)` \|$", README.read_text(), re.M)
    assert len(files) >= 5
    missing = [f for f in files if not (README.parent / f).is_file()]
    assert not missing

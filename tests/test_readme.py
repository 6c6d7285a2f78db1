"""The README is run, not believed."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_quickstart_runs_as_it_stands_and_is_ten_lines(tmp_path):
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.S)
    assert code, "the README has no Python block"
    lines = [line for line in code[1].splitlines() if line.strip()]
    assert len(lines) <= 10
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code[1]], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "lift" in done.stdout


def test_every_file_of_the_method_table_exists():
    files = re.findall(r"\| `([\w/.]+\.py)` \|$", README.read_text(), re.M)
    assert len(files) >= 5
    missing = [f for f in files if not (README.parent / f).is_file()]
    assert not missing

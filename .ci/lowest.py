"""The lower bounds of pyproject.toml as exact versions, one a line; fails for a dependency that has none.

torch and torchvision are left out: a second of each would take longer to install than all tests take.
"""

import re
import sys
import tomllib
from pathlib import Path

LARGE = {"torch", "torchvision"}

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
found = [*project["dependencies"], *(name for group in project["optional-dependencies"].values() for name in group)]
for dependency in dict.fromkeys(found):
    bounded = re.fullmatch(r"([\w-]+)(>=|==)([\d.]+?)(\.\*)?", dependency)
    if bounded is None:
        sys.exit(f"{dependency}: expected a lower bound in pyproject.toml, such as {dependency}>=1.2")
    if bounded[1] not in LARGE and dependency not in project["optional-dependencies"]["lint"]:
        print(f"{bounded[1]}=={bounded[3]}{bounded[4] or ''}")

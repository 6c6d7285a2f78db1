"""What lies under experiments/: small files, and pages whose tables are printed by the commands that they name."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
FOLDERS = sorted(page.parent for page in EXPERIMENTS.glob("*/README.md"))
PRINTS = re.compile(r"^    python (experiments/(?:\S*/(?:tables|check)|study_tables)\.py.*)$", re.M)
ROW = re.compile(r"^\|.*\|$", re.M)


def commands_of(folder):
    """What the page says to run, where it prints from what is committed."""
    found = [shlex.split(line, comments=True) for line in PRINTS.findall((folder / "README.md").read_text())]
    return [words for words in found if not any(word.startswith("runs/") for word in words)]


def printed(words, monkeypatch, capsys):
    """What a script prints, run in this process: torch need not be imported anew."""
    script = ROOT / words[0]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [str(script), *words[1:]])
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        assert not end.code
    return capsys.readouterr().out


def rows(text):
    """Rows of Markdown tables, without what is bold and without rules."""
    found = [row.replace("**", "") for row in ROW.findall(text)]
    return [row for row in found if set(row) - set("|- ")]


def measured_rows(text):
    """Rows with decimals, but for tables that say what a method is."""
    tables = [rows(table) for table in re.findall(r"(?:^\|.*\|\n)+", text, re.M)]
    return [row for head, *rest in tables if "| what" not in head for row in rest if re.search(r"\d\.\d", row)]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_tables_of_a_page_are_printed_by_its_commands(folder, monkeypatch, capsys):
    commands = commands_of(folder)
    assert commands, "the page names no command that prints its tables"
    out = [row for words in commands for row in rows(printed(words, monkeypatch, capsys))]
    page = (folder / "README.md").read_text()
    assert not [row for row in out if row not in rows(page)], "printed, but not on the page"
    assert not [row for row in measured_rows(page) if row not in out], "on the page, but not printed"


def test_the_check_of_a_page_says_what_the_page_says(monkeypatch, capsys):
    folder = EXPERIMENTS / "layerwise_sharing"
    words = commands_of(folder)[0]  # the next prints a table
    lines = [line for line in printed(words, monkeypatch, capsys).splitlines() if line and not line.startswith("|")]
    assert len(lines) == 9
    page = (folder / "README.md").read_text()
    assert not [line for line in lines if f"    {line}\n" not in page]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_keeps_summaries_that_name_their_command(folder):
    summaries = list(folder.rglob("summary.json"))
    assert summaries
    for path in summaries:
        assert path.stat().st_size < 20_000, path
        assert json.loads(path.read_text())["command"].startswith(("bayesws ", "python experiments/"))


def test_no_raw_results_are_kept():
    large = [path for path in EXPERIMENTS.rglob("*.json") if path.stat().st_size >= 20_000]
    assert not large, "keep a summary.json in place of what a run wrote"


def test_the_index_has_a_line_for_every_folder():
    index = (EXPERIMENTS / "README.md").read_text()
    assert sorted(re.findall(r"^- \[(\w+)\]\(\1\):", index, re.M)) == [folder.name for folder in FOLDERS]


@pytest.mark.parametrize("page", [EXPERIMENTS / "README.md", *(f / "README.md" for f in FOLDERS)], ids=str)
def test_links_and_pictures_of_a_page_exist(page):
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert not [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]

"""Nobody bends a result by a file: hostile ones run nothing and take no memory, changed ones change nothing.

A mutation is drawn by a seed: bits, lengths, keys, types, values, another fit's file in the place of one. Each is read
by what reads it in a command. It is refused in one line that names the file and a cure, or the result has the same
bits.
"""

import json
import random
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_files import FILES, HARMLESS, program, small, zipped
from safetensors.torch import save_file

import bayesws as bws
from bayesws.cli import main
from bayesws.commands.terminal import wide_console
from bayesws.evidence.batches import digest_of
from bayesws.io.json_files import sealed
from bayesws.models.pretrained import pretrained_network
from bayesws.report.page import page
from bayesws.report.runs import sections_of
from bayesws.report.sections.section import Section
from bayesws.training.checkpoint import Checkpoint
from bayesws.trials import Comparison, Trial, TrialSpec, load_summary, save_summary, summary_of
from bayesws.trials.ranking import RankedNetwork, Ranking
from bayesws.trials.store import store, stored
from bayesws.trials.study import Study

FAST, ALL = 140, 1400  # mutations
SLACK = 64e6  # bytes that reading any file may take
CURE = re.compile(r"[;:,] [^;:]*\b(again|anew|remove|choose|save|mend|add|check|expected|Known|did you mean)\b|Known: ")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    script = Path(__file__).with_name("hostile_files.py")
    done = subprocess.run([sys.executable, "-W", "ignore", script, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_runs_nothing_and_takes_little(name, hostile):
    found = hostile[name]
    assert not found["ran"]
    assert found["took"] <= 4 * found["size"] + SLACK
    assert found["told"] == ("accepted" if name in HARMLESS else "refused")


def test_a_trusted_program_is_opened_as_it_is(tmp_path):
    path = zipped(tmp_path / "a.pt2", program() | {"data/sample_inputs/model.pt": b"cbuiltins\nprint\n(Vran\ntR."})
    with pytest.raises(ValueError, match=r"member 'data/sample_inputs/model.pt' .* --trust"):
        pretrained_network(str(path))
    assert main(["strength", str(path), "--out", str(tmp_path / "out")]) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pretrained_network(str(path), trust=True)
        except ValueError as error:  # print gives no example inputs
            assert "member" not in str(error)


@pytest.mark.parametrize("name", ["sys:exit", "os:abort", "os:_exit", "builtins:exit", "builtins:dict"])
def test_a_function_that_makes_no_network_is_told(name, tmp_path, capsys):
    assert main(["strength", name, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert name in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


DATA = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
SPEC = TrialSpec(
    "turned", {"name": "digits", "train_size": 20, "test_size": 10}, network={"hidden_channels": 1, "layers": 1}
)
SPEC = TrialSpec(**{f: getattr(SPEC, f) for f in SPEC.__dataclass_fields__} | {"fit": {"epochs": 1}})
PLAN = {"data": {"name": "digits"}, "tasks": ["turned"], "train_sizes": [20], "seeds": 1, "epochs": 1}
PLAN |= {"methods": {"a": {"model": "CNN", "network": {"layers": 1}, "fit": {"objective": "task"}}}}


def network(seed=0):
    torch.manual_seed(seed)
    return bws.models.WSCNN(num_classes=3, hidden_channels=1, layers=1)


class Stop(Exception):
    """A fit that was stopped."""


def made(folder, seed):
    """A file of every kind, in folders by kind; of another seed the same kinds with other numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = bws.fit(network(seed), DATA, epochs=2, burn_in=0.2, every=1, seed=seed, progress=False)
        fit.save(folder / "fit")
        _left(folder / "left", seed, stop=True)
        _left(folder / "done", seed, stop=False)
        record = SPEC.run() | {"seconds": 1.0 + seed}
    store(SPEC, record, folder / "trial")
    trials = [Trial.of(fit, DATA, DATA, "turned", s) for s in (0, 1)]
    comparison = Comparison(trials, {"command": ["bayesws", "compare"], "versions": {"torch": "2"}})
    comparison.save(folder / "comparison" / "comparison.json")
    row = fit.sharing
    ranked = [RankedNetwork(n, fit.log_evidence - i, [0.5], 0, 9, row, {}, 1.0, [], 0.5) for i, n in enumerate("ab")]
    Ranking(ranked, {"bound": "exact"}).save(folder / "ranking" / "ranking.json")
    save_summary(summary_of(json.loads(comparison.as_json())), folder / "summary" / "summary.json")
    study = {"versions": {}, "command": ["bayesws", "study"], "trials": [record | {"settings": _settings(seed)}]}
    error = {"error": 0.5 + seed, "interval": [0.4, 0.6], "transform": "flip", "channels": "kept", "examples": 9}
    strength = {"model": "m", "data": "digits", "images": 9, "errors": {"flip": {"lift": error}}, "versions": {}}
    for kind, found in (("study", study), ("strength", strength | {"command": ["bayesws", "strength"]})):
        (folder / kind).mkdir()
        (folder / kind / f"{kind}.json").write_text(json.dumps(sealed(bws_nan(found))))
    for kind in ("plan", "images", "weights", "tensors", "program"):
        (folder / kind).mkdir()
    (folder / "plan" / "plan.json").write_text(json.dumps(PLAN | {"seeds": 1 + seed}))
    x, y = DATA[0].numpy() + seed, DATA[1].numpy()
    np.savez(folder / "images" / "a.npz", train_x=x, train_y=y, test_x=x, test_y=y)
    state = {name: tensor + seed for name, tensor in small().state_dict().items()}
    torch.save(state, folder / "weights" / "a.pt")
    save_file(state, folder / "tensors" / "a.safetensors")
    zipped(folder / "program" / "a.pt2", program())


def bws_nan(value):
    """As `without_nan`, of a record."""
    return json.loads(re.sub(r"\bNaN\b", "null", json.dumps(value)))


def _settings(seed):
    return {"task": "turned", "train_size": 20, "method": "a", "seed": seed}


def _left(folder, seed, stop):
    def stopping(self, run, what, epochs, after=Checkpoint.after_epoch):
        self.seconds = 0.0
        after(self, run, what, epochs)
        if stop and what == "":
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "after_epoch", stopping)
        try:
            _go_on(folder, seed)
        except Stop:
            return


def _go_on(folder, seed=0):
    tried = {"objective": "task", "weight_decays": (0.0, 1e-2)}
    return bws.fit(network(seed), DATA, epochs=2, seed=seed, checkpoint=folder, progress=False, **tried)


def _of_fit(fit):
    kept = [fit.posterior[name] for name in sorted(fit.posterior)]
    tensors = [*fit.model.state_dict().values(), *fit.prior.values(), *kept]
    known = (fit.evidence, fit.history, fit.recipe, fit.notes, fit.start)
    return digest_of(repr(known), tensors)


def _of_images(path):
    images = bws.data.load(path)
    return digest_of("", [*images.train, *images.test])


def _of_network(net):
    with torch.no_grad():
        return digest_of("", [net(DATA[0][:3])])


READ = {
    "fit": lambda d: _of_fit(bws.FitResult.load(d)),
    "left": lambda d: _of_fit(_go_on(d)),
    "done": lambda d: _of_fit(_go_on(d)),
    "trial": lambda d: repr(stored(SPEC, d, {"sharing"})),
    "comparison": lambda d: repr(Comparison.load(d / "comparison.json")),
    "ranking": lambda d: repr(Ranking.load(d / "ranking.json")),
    "summary": lambda d: repr(load_summary(d / "summary.json")),
    "study": lambda d: repr(sections_of(d, "run")[0].summary),
    "strength": lambda d: repr(sections_of(d, "run")[0].summary),
    "plan": lambda d: repr(Study.read(d / "plan.json")),
    "images": lambda d: _of_images(d / "a.npz"),
    "weights": lambda d: _of_network(pretrained_network("hostile_files:small", d / "a.pt")),
    "tensors": lambda d: _of_network(pretrained_network("hostile_files:small", d / "a.safetensors")),
    "program": lambda d: _of_network(pretrained_network(str(d / "a.pt2"))),
}
SEVERAL = {"fit", "left", "done"}  # whose files belong together: elsewhere another run's file is another run
A_USERS_OWN = {"plan", "tensors"}  # no record of ours lies beside them: another value is another question


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for place in (0, 1):
        (folder / str(place)).mkdir()
        made(folder / str(place), place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {kind: read(_copied(folder / "0" / kind, folder / "first" / kind)) for kind, read in READ.items()}
    return folder, expected


def _copied(source, target):
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def mutated(content, other, draw, is_json):
    """Other bytes than `content`; `other` has the same file of another fit, where that may not take its place."""
    ways = [flipped, cut, grown, zeroed, emptied]
    ways += [] if other is None else [lambda c, d: other]
    if is_json:
        ways += [whole, keyed, keyed, valued, valued, valued, typed, typed, renamed, nested, twice, no_text, number]
    way = draw.choice(ways)
    found = way(content, draw)
    return found if isinstance(found, bytes) else json.dumps(found).encode()


def flipped(content, draw):
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def cut(content, draw):
    return content[: draw.randrange(len(content))]


def grown(content, draw):
    place = draw.randrange(len(content))
    return content[:place] + draw.randbytes(draw.choice([1, 8, 100])) + content[place:]


def zeroed(content, draw):
    place = draw.randrange(len(content))
    return content[:place] + bytes(min(16, len(content) - place)) + content[place + 16 :]


def emptied(content, draw):
    return b""


def whole(content, draw):
    return draw.choice([b"[]", b"null", b"2", b'"x"', b"{}", b"[" * 100_000, b"\xff\xfe", b"\xef\xbb\xbf" + content])


def _place(content, draw):
    """A record, and somewhere within it an object or a list with a key."""
    record = json.loads(content)
    places = []

    def walk(value):
        if isinstance(value, dict | list) and value:
            places.extend((value, key) for key in (value if isinstance(value, dict) else range(len(value))))
            for part in value.values() if isinstance(value, dict) else value:
                walk(part)

    walk(record)
    return record, *draw.choice(places)


def keyed(content, draw):
    record, parent, key = _place(content, draw)
    if isinstance(parent, dict) and draw.random() < 0.5:
        parent["another"] = 1
    else:
        del parent[key]
    return record


def valued(content, draw):
    record, parent, key = _place(content, draw)
    was = parent[key]
    if isinstance(was, bool) or was is None:
        parent[key] = not was
    elif isinstance(was, int | float):
        parent[key] = draw.choice([was + 1, -was - 1, was * 1.0000000001 + 1e-9, 0.25])
    elif isinstance(was, str):
        parent[key] = draw.choice([was + "x", "", "\x1b[2J[red]", was[::-1] + "y"])
    else:
        parent[key] = [was]
    return record


def typed(content, draw):
    record, parent, key = _place(content, draw)
    parent[key] = draw.choice([None, "1", [], {}, [[1]], {"a": 1}, True, 1.5, -3])
    return record


def renamed(content, draw):
    record, parent, key = _place(content, draw)
    if isinstance(parent, dict):
        parent[key + "_"] = parent.pop(key)
    else:
        parent.reverse()
        parent.append(0)
    return record


def nested(content, draw):
    record, parent, key = _place(content, draw)
    parent[key] = "@"
    return json.dumps(record).replace('"@"', "[" * 5000 + "]" * 5000).encode()


def twice(content, draw):
    name, value = draw.choice(list(json.loads(content).items()))
    return content.rstrip()[:-1] + f", {json.dumps(name)}: {json.dumps(value)}}}".encode()


def no_text(content, draw):
    place = draw.randrange(len(content))
    return content[:place] + draw.choice([b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\0"]) + content[place:]


def number(content, draw):
    record, parent, key = _place(content, draw)
    parent[key] = "@"
    came = draw.choice(["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 5000, "1e308", "-0", "01"])
    return json.dumps(record).replace('"@"', came).encode()


def check(seed, files, tmp_path):
    """One mutation: refused in a line that names the file and a cure, or the result has the same bits."""
    folder, expected = files
    draw = random.Random(seed)
    kind = list(READ)[seed % len(READ)]
    run = _copied(folder / "0" / kind, tmp_path / kind)
    path = draw.choice(sorted(p for p in run.rglob("*") if p.is_file()))
    other = folder / "1" / kind / path.relative_to(run)
    swap = other.read_bytes() if kind in SEVERAL else None
    came = mutated(path.read_bytes(), swap, draw, path.suffix == ".json")
    path.write_bytes(came)
    try:
        found = READ[kind](run)
    except ValueError as error:
        told = str(error)
        assert "\n" not in told and told.isprintable(), (seed, told)
        assert str(run) in told and CURE.search(told), (seed, told)
        return "refused"
    assert found == expected[kind] or kind in A_USERS_OWN, (seed, kind, path.name)
    return "the same"


@pytest.mark.filterwarnings("ignore")
def test_a_changed_file_is_refused_or_changes_nothing(files, tmp_path):
    told = [check(seed, files, tmp_path) for seed in range(FAST)]
    assert told.count("refused") > FAST / 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_changed_file_is_refused_or_changes_nothing(files, tmp_path):
    told = [check(seed, files, tmp_path) for seed in range(FAST, ALL)]
    assert told.count("refused") > (ALL - FAST) / 2


def test_a_changed_fit_is_told_at_the_command_line(files, tmp_path, capsys):
    folder, _ = files
    for name, verb in (("fit.json", "strength"), ("weights.safetensors", "report")):
        run = _copied(folder / "0" / "fit", tmp_path / verb)
        content = (run / name).read_bytes()
        (run / name).write_bytes(flipped(content, random.Random(1)))
        assert main([verb, str(run), "--out", str(tmp_path / "out" / "x.html")]) == 2
        error = capsys.readouterr().err
        assert str(run / name) in error and error.count("\n") == 1
    run = _copied(folder / "0" / "fit", tmp_path / "other")
    shutil.copy(folder / "1" / "fit" / "weights.safetensors", run)
    assert main(["strength", str(run), "--out", str(tmp_path / "out")]) == 2
    assert "was changed, or is of another fit" in capsys.readouterr().err


def test_names_are_printed_without_markup_and_control_characters(capsys):
    name = "[red]x[/red] \x1b[2J\x07 :smile:<b>"
    table = bws.analysis.equivariance.error_table(
        {name: {name: bws.analysis.EquivarianceError(0.5, (0, 1), "flip", "kept", 9)}}
    )

    wide_console().print(table, name)
    printed = capsys.readouterr().out
    assert "[red]x[/red]" in printed and ":smile:" in printed
    written = page([Section("Fit", name, [name], [])], name)
    for text in (printed, written):
        assert "\x1b" not in text and "\x07" not in text and "\\x1b[2J" in text
    assert "&lt;b&gt;" in written and "<b>" not in written

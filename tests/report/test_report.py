"""The report: one file that needs nothing else, escapes what it is given, and says all that its runs hold."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

import bayesws as bws
from bayesws.analysis.equivariance import EquivarianceError
from bayesws.analysis.strength import LayerStrength, SharingStrength
from bayesws.cli import main
from bayesws.io.json_files import sealed
from bayesws.report import write_report
from bayesws.report.figures.drawing import Drawing
from bayesws.report.figures.matrices import MOST, stack_figure
from bayesws.report.grid import Products, grid_of
from bayesws.report.sections import fit as fit_section
from bayesws.report.sections import others
from bayesws.report.sections.section import of_rho, signed
from bayesws.training.result import SharingRow
from bayesws.trials import Trial
from bayesws.trials.ranking import LayerRanking, RankedNetwork, Ranking

VOID = {"meta", "link", "br", "img", "hr", "input"}
EVIL = "<script>alert('$x$')</script>&"


class Page(HTMLParser):
    """Elements, text and whatever the page would fetch; fails where elements are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.words, self.ids = [], [], [], [], []
        self.feed(text)
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href", "data", "action")]
        self.ids += [v for k, v in attributes if k == "id"]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    x, y = torch.rand(12, 1, 8, 8), torch.arange(12) % 3
    net = bws.models.WSCNN(num_classes=3, hidden_channels=2)
    return bws.fit(net, (x, y), epochs=4, every=1, seed=0, keep_posterior=False, progress=False)


def comparison(fit, task="turned"):
    x, y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3
    trials = [Trial.of(fit, (x, y), (x, y), task, seed, pathways) for pathways in ("both", "free") for seed in (0, 1)]
    return bws.trials.Comparison(
        trials, {"versions": {"bayesws": "0"}, "command": ["bayesws", "compare", "a file.npz"]}
    )


def ranking():
    row = SharingRow("lift", 0.9, {"shared": 3.0, "free": 1.0}, {"shared": 9, "free": 36}, {"shared": 0.0, "free": 2.0})
    rows = [
        RankedNetwork(name, -10.0 * (i + 1), [-10.0], 0, 99, [row], {"lift": name}, 1.0, ["train for longer"], nll)
        for i, (name, nll) in enumerate([("quarter-turns", 0.5), ("flips", 0.4)])
    ]
    return Ranking(rows, {"bound": "lower bound", "command": ["bayesws", "select"]})


def strength(layer="lift"):
    error = EquivarianceError(0.25, (0.2, 0.3), "flip", "matched", 9).__dict__
    explained = {"explained": 0.71, "interval": [0.6, 0.8], "evidence": 99.0, "chance": 0.2, "compared": 72}
    explained["orbits"] = {"2": 4}
    sharing = {"name": layer, "median": 0.9, "interval": [0.8, 0.95], "fitted": 0.91, "r_hat": 1.0}
    return {
        "model": "runs/fit",
        "data": "digits/turned",
        "images": 9,
        "errors": {"flip": {layer: error}, "scale:0.8": {layer: error | {"error": None, "interval": [None, None]}}},
        "explained": {"flip": {layer: explained, "head": None}},
        "best": {layer: "flip", "head": None},
        "sharing": {"layers": [sharing | {"effective_samples": 900.0}], "method": "NUTS", "settings": {}, "notes": []},
        "versions": {"bayesws": "0.1.0"},
        "command": ["bayesws", "strength"],
    }


def study(sizes=(100, 300)):
    group = {"name": "flips", "reason": "", "closure_error": 0.0, "entropy": 0.0}
    same = {"stack_parameters": 4, "groups": {"lift": group}, "seconds": 2.0, "training_seconds": 2.0, "notes": []}
    same |= {"pathways": "", "objective": "evidence", "train_nll": 0.2, "sharing": [], "weight_decay": None}
    return {
        "command": ["bayesws", "study"],
        "trials": [
            {"settings": {"task": "turned", "train_size": size, "method": method, "seed": seed}, "nll": 0.3 + seed / 10}
            | {"task": "turned", "seed": seed, "accuracy": 0.9, "log_evidence": -90.0}
            | same
            for size in sizes
            for method in ("evidence", "task loss")
            for seed in (0, 1)
        ],
    }


@pytest.fixture
def runs(fitted, tmp_path):
    """A folder of every kind."""
    fitted.save(tmp_path / "fit")
    comparison(fitted).save(tmp_path / "compare/comparison.json")
    fitted.save(tmp_path / "compare/fits/turned-both-evidence-0")
    ranking().save(tmp_path / "select/ranking.json")
    for name, record in (("strength", strength()), ("study", study())):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.json").write_text(json.dumps(sealed(record)))
    return [tmp_path / name for name in ("fit", "compare", "select", "strength", "study")]


def test_report_of_every_kind_of_run(runs, tmp_path):
    (path,) = write_report(runs, tmp_path / "out/report.html")
    text = path.read_text()
    page = Page(text)
    assert not re.search(r"https?:|file:|@import|<script", text)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    assert page.tags.count("svg") == page.tags.count("figcaption") - 4  # each of four stacks has a composition table
    assert page.tags.count("h1") == page.tags.count("title") == 1
    for said in (
        "over quarter-turns",  # of the fit
        "Layer by layer",
        "Kernels by group element",
        "Composition.",
        "(1 3 9 7)(2 6 8 4)",
        "−log evidence",
        "not recorded",
        "bayesws compare 'a file.npz'",  # the exact command
        "Fit of compare",
        "quarter-turns is favoured by 10.0 nats over flips under this bound (lower bound); one start of each",
        "By evidence",
        "lower bound",
        "Equivariance error up to layer 'lift': flip 0.25.",
        "0.800 to 0.950",
        "0.71*",  # of the weights that sharing would explain
        "task loss",  # of the study
        "train for longer",
    ):
        assert said in page.text, said


def test_equal_runs_give_equal_bytes(runs, tmp_path):
    lift = fit_section.fit_section(bws.FitResult.load(runs[0]), "fit").blocks[1]
    assert all(drawing.svg() == drawing.svg() for drawing in lift.drawings)
    first = write_report(runs[2], tmp_path / "a.html", tmp_path / "a")
    second = write_report(runs[2], tmp_path / "b.html", tmp_path / "b")
    assert [f.name for f in first[1:]] == [f.name for f in second[1:]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def test_figures_are_a_pdf_and_a_png_each(runs, tmp_path):
    _, *figures = write_report(runs[2], tmp_path / "report.html", tmp_path / "figures")
    assert [f.name for f in figures] == ["select-bayes-factors.pdf", "select-bayes-factors.png"]
    assert [f.read_bytes()[:4] for f in figures] == [b"%PDF", b"\x89PNG"]


def test_what_anybody_named_is_escaped(fitted, tmp_path):
    folder = tmp_path / EVIL.replace("/", "")
    folder.mkdir()
    (folder / "strength.json").write_text(json.dumps(sealed(strength(EVIL))))
    trials = comparison(fitted, EVIL).trials[:1]
    (path,) = write_report([folder, bws.trials.Comparison(trials)], tmp_path / "report.html")
    assert "<script>alert('$x$')</script>&: ρ by the evidence" in Page(path.read_text()).text


def test_names_of_figures_are_names_of_files():
    drawing = Drawing(f"../{EVIL}/a b", "", "", lambda: None)
    assert drawing.file == "script-alert-x-script-a-b"


def test_results_themselves_are_runs(tmp_path):
    first, second = others.ranking_section(ranking(), "a").summary
    assert first.startswith("Held-out data disagree with the evidence: they prefer flips") and "favoured" in second
    path, *_ = write_report([ranking(), ranking()], tmp_path / "report.html")
    assert "Report: Ranking-1 and Ranking-2" in Page(path.read_text()).text


def test_ranking_by_layer(tmp_path):
    found = LayerRanking(("quarter-turns",), [{"none": -30.0, "quarter-turns": -10.0}], ranking())
    found.save(tmp_path / "ranking.json")
    (path,) = write_report(tmp_path, tmp_path / "report.html")
    assert "Layer by layer: layer 1 quarter-turns." in Page(path.read_text()).text


def test_study_of_one_size_is_rows(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(sealed(study((100,)))))
    (path,) = write_report(tmp_path, tmp_path / "report.html")
    assert "turned, 100 images: evidence has the least test NLL, 0.350 ± 0.050" in Page(path.read_text()).text


def test_intervals_of_a_fit_with_its_posterior():
    torch.manual_seed(0)
    data = bws.data.load("digits", task="turned", train_size=200, test_size=10)
    net = bws.models.WSCNN(hidden_channels=2, layers=1)
    fit = bws.fit(net, data.train, curvature="kron", epochs=10, every=1, progress=False)
    with torch.no_grad():
        fit.prior["lift.shared"].fill_(12.0)  # ρ = 0 at the fitted precisions, which the posterior does not know of
    section = fit_section.fit_section(fit, "tiny")
    assert "95 % interval" in section.summary[1] and any(
        "at the fitted precisions" in n for b in section.blocks for n in b.notes
    )
    assert ("95 % interval", True) in section.blocks[0].grids[0].columns
    assert_points_within(str(section))


POINT = r"(\d\.\d+)[^\d]{1,30}?(\d\.\d{3}) to (\d\.\d{3})"


def assert_points_within(text):
    """No number right before an interval lies outside of it, and there is one."""
    found = [tuple(map(float, numbers)) for numbers in re.findall(POINT, text)]
    assert found and all(low <= point <= high for point, low, high in found), found


def test_no_strength_is_shown_beside_an_interval_that_leaves_it_out(tmp_path):
    """On a page, in its figure, in a table; a file that says so is damaged."""
    (tmp_path / "strength.json").write_text(json.dumps(sealed(strength())))
    (path,) = write_report(tmp_path, tmp_path / "report.html")
    assert_points_within(Page(path.read_text()).text)
    row = LayerStrength("lift", 0.9, (0.8, 0.95), 0.99, None, None)
    assert_points_within(str(SharingStrength([row], "quadrature", {}, [], {})))
    mark = fit_section.strength_mark(row)
    assert mark.interval[0] <= mark.value <= mark.interval[1] and mark.text == "0.900"
    with pytest.raises(ValueError, match=r"0\.990 beside an interval of 0\.800 to 0\.950"):
        replace(row, median=0.99)
    record = strength()
    record["sharing"]["layers"][0]["median"] = 0.99
    (tmp_path / "strength.json").write_text(json.dumps(sealed(record)))
    with pytest.raises(ValueError, match="is damaged"):
        write_report(tmp_path, tmp_path / "again.html")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stack": "dense"}, "no known group"),
        ({"stack": "product", "pathways": ("shared",)}, "shares by construction"),
        ({"stack": "dense", "constraint": "rows"}, "ρ ="),
        ({"pathways": ("free",)}, "shares nothing by construction"),
        ({"group_size": 1}, "Kernels by group element"),
    ],
)
def test_fits_with_other_stacks(settings, said):
    torch.manual_seed(0)
    net = bws.models.WSCNN(**({"num_classes": 3, "hidden_channels": 2} | settings))
    data = (torch.rand(6, 1, 8, 8), torch.arange(6) % 3)
    fit = bws.fit(net, data, objective="task", weight_decays=(0.0,), epochs=1, keep_posterior=False, progress=False)
    section = fit_section.fit_section(fit, "fit")
    assert said in str(section)
    assert section.blocks[2].drawings[0].svg().startswith("<svg viewBox=")


def test_fit_of_a_plain_network(tmp_path):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    data = (torch.rand(6, 1, 8, 8), torch.arange(6) % 3)
    fit = bws.fit(net, data, epochs=4, every=1, keep_posterior=False, progress=False, starts=2)
    (path,) = write_report(fit, tmp_path / "report.html")
    text = Page(path.read_text()).text
    assert "Sequential trained by the evidence on 6 data" in text
    assert "Starts: the highest evidence is kept" in text and text.count(" kept ") == 2


def test_how_layers_part_what_they_use_of_their_branches():
    """Bars from 0 to 1; layers of one module are left out."""
    counts = {"conv.weight": 18, "conv.bias": 2, "fc.0.weight": 1000}
    rows = [
        SharingRow("blocks.0", 0.9, {"conv.weight": 9.0, "conv.bias": 2.0, "fc.0.weight": 500.0}, counts, {}),
        SharingRow("blocks.1", 0.9, {"conv.weight": 18.0, "conv.bias": 2.0, "fc.0.weight": 0.0}, counts, {}),
        SharingRow("blocks.2", 0.9, dict.fromkeys(counts, 0.0), counts, {}),  # uses nothing
        SharingRow("head", float("nan"), {"weight": 3.0}, {"weight": 9}, {}),
    ]
    (drawing,) = fit_section.branches_drawings(rows, "fit")
    (axes,) = drawing.draw().axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["blocks.0", "blocks.1", "blocks.2"]
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert bars == [(0.0, 0.5), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5), (1.0, 0.0), (0.0, 0.0)]  # conv, then fc
    assert drawing.svg().count("blocks.1") == 1
    assert fit_section.branches_drawings(rows[3:], "fit") == []


def test_large_stacks_are_shown_in_part():
    shown = [axes for axes in stack_figure(torch.eye(200).expand(20, -1, -1)).axes if axes.axison]
    assert len(shown) == MOST


def test_composition_table_of_a_set_that_is_not_closed():
    products = Products.of(torch.tensor([[0, 1], [1, -1]]))
    assert products.cells == [[("1", 10), ("2", 70)], [("2", 70), ("·", 0)]]


def test_tables_keep_their_words():
    grid = grid_of(ranking().table())
    assert grid.columns[:2] == [("network", False), ("log evidence", True)]
    assert grid.rows[1][:3] == ["flips", "−20.0", "−10.0"]
    assert grid.caption == "(lower bound)"


@pytest.mark.parametrize(("value", "shown"), [(0.9994, "0.999"), (1.0, "1.00"), (0.5, "0.50"), (0.004, "0.004")])
def test_sharing_strengths_near_their_ends_have_a_digit_more(value, shown):
    assert of_rho(value) == shown


def test_numbers_have_a_true_minus():
    assert signed(-12345.67, 1) == "−12\u202f345.7"


BAD = {
    "missing folder": (lambda d: d / "nowhere", "is not a folder: expected one that bayesws"),
    "empty folder": (lambda d: d, r"is no run: expected fit\.json"),
    "damaged JSON": (lambda d: wrote(d, "strength.json", "{"), "is damaged"),
    "no record": (lambda d: wrote(d, "strength.json", "[]"), "is damaged"),
    "parts missing": (lambda d: wrote(d, "study.json", {"trials": [{}]}), "is damaged"),
    "nothing in a study": (lambda d: wrote(d, "study.json", {"trials": []}), "no trial"),
    "comparison without trials": (lambda d: wrote(d, "comparison.json", {"trials": []}), "'settings' is missing"),
    "comparison of nothing": (lambda d: wrote(d, "comparison.json", {"trials": [], "settings": {}}), "no trial"),
    "ranking of nothing": (lambda d: wrote(d, "ranking.json", {"networks": [], "settings": {}}), "is damaged"),
    "half a fit": (lambda d: wrote(d, "fit.json", '{"format": 2}'), "no weights.safetensors"),
}


def wrote(folder, name, content):
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(sealed(content)))
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_run_is_one_line_and_writes_nothing(case, tmp_path, capsys):
    make, message = BAD[case]
    (tmp_path / "run").mkdir()
    run = make(tmp_path / "run")
    with pytest.raises(ValueError, match=message) as caught:
        write_report(run, tmp_path / "report.html")
    assert "\n" not in str(caught.value)
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_no_run_at_all(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_report([], tmp_path / "report.html")


def test_command(runs, tmp_path, capsys):
    out, figures = tmp_path / "report.html", tmp_path / "figures"
    assert main(["report", str(runs[2]), "--out", str(out), "--figures", str(figures)]) == 0
    assert capsys.readouterr().out == f"written: {out}, and its figures as PDF and PNG in {figures}\n"
    assert main(["report", str(runs[2]), "--out", str(tmp_path)]) == 2
    assert "is a folder: expected an HTML file" in capsys.readouterr().err

"""Selection by evidence: the planted group wins, numbers are the dense ones, table, file, command line."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from refusals import assert_refused

import bayesws as bws
from bayesws.cli import main
from bayesws.evidence.by_default import AT_THE_END, Size, determinant_cost, full_curvature
from bayesws.layers import WSLinear
from bayesws.sharing import Group, known_group
from bayesws.trials.group_networks import group_networks
from bayesws.trials.pool import in_processes
from bayesws.trials.select import comparable_curvature

SHIFTS = known_group("cyclic-shifts", 6)
MIRRORED = Group(  # the symmetries of a triangle, acting on themselves: six elements, another group
    "triangle",
    torch.tensor(
        [
            [0, 1, 2, 3, 4, 5],
            [2, 0, 1, 4, 5, 3],
            [1, 2, 0, 5, 3, 4],
            [3, 4, 5, 0, 1, 2],
            [4, 5, 3, 2, 0, 1],
            [5, 3, 4, 1, 2, 0],
        ]
    ),
)
GROUPS = {"shifts": (SHIFTS, ("shared",)), "triangle": (MIRRORED, ("shared",)), "none": (SHIFTS, ("free",))}


def linear(group, pathways):
    return WSLinear(6, 2, bias=False, stack="fixed", group=group, group_size=6, pathways=pathways, dtype=torch.float64)


NETWORKS = {name: (lambda setting=setting: linear(*setting)) for name, setting in GROUPS.items()}


def planted(name, examples=40, noise=0.5):
    """y_g = w · R_gᵀ x + noise over the group, or every copy with weights of its own."""
    generator = torch.Generator().manual_seed(0)
    group, pathways = GROUPS[name]
    x = torch.randn(examples, 6, dtype=torch.float64, generator=generator)
    if pathways == ("shared",):
        w = torch.randn(2, 6, dtype=torch.float64, generator=generator)
        kernel = torch.einsum("gnm,om->ogn", group.matrices(), w)
    else:
        kernel = torch.randn(2, 6, 6, dtype=torch.float64, generator=generator)
    f = torch.einsum("ogn,bn->bog", kernel, x)
    return x, f + noise * torch.randn(f.shape, dtype=torch.float64, generator=generator)


SETTINGS = {"epochs": 60, "batch_size": 10, "warm_up": 10, "curvature": "full", "progress": False}


def dense_evidence(fit, x, y):
    """log N(y; 0, σ² I + δ⁻¹ Φ Φᵀ), Φ the Jacobian of the outputs in the weights."""
    net, (name,) = fit.model, fit.prior
    parameter = net.shared if "shared" in name else net.free

    def outputs(theta):
        return torch.func.functional_call(net, {name: theta}, (x,)).flatten()

    phi = torch.func.jacrev(outputs)(parameter.detach()).flatten(1)
    noise = (2 * fit.likelihood.log_noise).exp().double()
    covariance = noise * torch.eye(len(phi), dtype=torch.float64) + phi @ phi.T / fit.prior[name].exp()
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(phi), dtype=torch.float64), covariance)
    return float(normal.log_prob(y.flatten()).detach())


@pytest.mark.parametrize("truth", GROUPS)
def test_planted_group_wins_with_the_dense_evidence(truth):
    x, y = planted(truth)
    ranking = bws.select(NETWORKS, (x, y), "regression", **SETTINGS)
    assert ranking.best.name == truth and ranking.probabilities[truth] > 0.99
    assert ranking.settings["bound"] == "curvature 'full', exact"
    for row in ranking.rows:
        # the weights end near the MAP, where the evidence is flat in them
        assert row.log_evidence == pytest.approx(dense_evidence(ranking.fits[row.name], x, y), abs=0.2)
    values = [row.log_evidence for row in ranking.rows]
    assert values == sorted(values, reverse=True)
    factors = ranking.log_bayes_factors
    assert [factors[row.name] for row in ranking.rows] == [value - values[0] for value in values]
    assert sum(ranking.probabilities.values()) == pytest.approx(1)
    named = {row.name: row.groups for row in ranking.rows}
    assert named == {"shifts": {"": "cyclic-shifts"}, "triangle": {"": "no group"}, "none": {}}


def test_probabilities_are_those_of_equal_prior_odds():
    evidences = {"a": -1000.0, "b": -1000 - math.log(3), "c": -1e9}
    rows = [bws.trials.RankedNetwork(n, e, [e], 0, 1, [], {}, 0.0, []) for n, e in evidences.items()]
    ranking = bws.trials.Ranking(rows)
    assert ranking.probabilities == pytest.approx({"a": 0.75, "b": 0.25, "c": 0.0})


def ranked(starts, kind="layer", samples=None):
    """A ranking by hand: log evidences of the starts by network, the best first."""
    curvature = bws.Curvature(kind, samples=samples)
    rows = [
        bws.trials.RankedNetwork(n, max(v), v, v.index(max(v)), 1, [], {}, 0.0, [], curvature=curvature)
        for n, v in starts.items()
    ]
    return bws.trials.Ranking(rows, {"bound": f"curvature {kind!r}, {curvature.bound}"})


FAR, NEAR = {"a": [-10.0, -12.0], "b": [-40.2, -43.0]}, {"a": [-10.0, -12.0], "b": [-11.5, -20.0], "c": [-99.0, -99.0]}
VERDICTS = [
    (FAR, "layer", None, "favoured by 30.2 nats over b under this bound (curvature 'layer', lower bound: covariances"),
    (FAR, "kron", None, "favoured by 30.2 nats over b under this estimate (curvature 'kron', no bound"),
    (FAR, "full", 1, "favoured by 30.2 nats over b under this estimate (curvature 'full', overestimate"),
    (FAR, "full", None, "favoured by 30.2 nats over b under this evidence (curvature 'full', exact)"),
    (NEAR, "layer", None, "; the best of 2 starts of each of 3 networks"),
    ({"a": [-1.0], "b": [-2.0]}, "layer", None, "; one start of each of 2 networks: how far apart starts come is not"),
    ({"a": [-1.0, -2.0, -3.0], "b": [-5.0, -5.0]}, "kron", None, "; the best of 2 to 3 starts of each of 2 networks"),
]


@pytest.mark.parametrize(("starts", "kind", "samples", "said"), VERDICTS)
def test_the_words_name_the_bound_and_the_starts(starts, kind, samples, said):
    ranking = ranked(starts, kind, samples)
    assert said in ranking.verdict and ranking.verdict in str(ranking) and "\n" not in ranking.verdict
    assert ranking.exact == (kind == "full" and samples is None)
    assert ("p" in [column.header for column in ranking.table().columns]) == ranking.exact
    assert ("probabilities" in ranking.record()) == ranking.exact


def test_a_lead_within_the_spread_of_starts_is_told():
    assert ranked(FAR).within_spread is None
    told = ranked(NEAR).within_spread  # a leads by 1.5 nats, and starts of b lie 8.5 apart; c is 89 behind
    assert "a is ahead of b (1.5) by fewer nats than starts of one network differ (by up to 8.5)" in told
    assert f"note: {told}" in str(ranked(NEAR)) and " c " not in told
    lucky = {"a": [-10.0, -110.0], "b": [-60.0, -60.0]}  # what its other start came to is 50 below b
    assert "b (50.0)" in ranked(lucky).within_spread and ranked({"a": [-1.0], "b": [-1.5]}).within_spread is None


def test_disagreement_is_said_first():
    rows = [replace(row, test_nll=nll) for row, nll in zip(ranked(FAR).rows, (0.5, 0.4), strict=True)]
    ranking = bws.trials.Ranking(rows, ranked(FAR).settings)
    told = "note: held-out data disagree with the evidence: they prefer b (test NLL 0.400 nats per datum) to a (0.500)"
    by_layer = bws.trials.LayerRanking(("a",), [{"a": -10.0, "b": -40.2}], ranking)
    for text in (str(ranking), str(by_layer)):
        assert text.startswith(told) and text.count("disagree") == 1


def test_best_of_several_starts_counts():
    x, y = planted("shifts")
    few = SETTINGS | {"epochs": 3}  # too few to converge: the starts differ
    three = bws.select({"shifts": NETWORKS["shifts"]}, (x, y), "regression", seeds=3, **few).best
    assert len(set(three.by_seed)) == 3 and three.log_evidence == max(three.by_seed) == three.by_seed[three.seed]
    for seed in range(3):
        torch.manual_seed(seed)
        fit = bws.fit(NETWORKS["shifts"](), (x, y), "regression", seed=seed, **few)
        assert fit.log_evidence == pytest.approx(three.by_seed[seed], rel=1e-10)


def test_networks_are_taken_as_they_are_and_left_alone():
    x, y = planted("shifts")
    torch.manual_seed(5)
    net = NETWORKS["shifts"]()
    before = net.shared.detach().clone()
    ranking = bws.select({"mine": net}, (x, y), "regression", **SETTINGS)
    fit = bws.fit(net, (x, y), "regression", **SETTINGS)
    assert ranking.best.log_evidence == pytest.approx(fit.log_evidence, rel=1e-10)
    assert torch.equal(net.shared, before)
    assert ranking.probabilities == {"mine": 1.0}


def test_one_curvature_for_all_and_said_which():
    images = bws.data.load("digits", task="turned", train_size=60, test_size=10)
    made = group_networks(images, ["none", "quarter-turns"], width=4)
    for asked, kind in [(None, "full"), ("layer", "layer"), ("kron", "kron")]:
        ranking = bws.select(made, images.train, evidence_curvature=asked, epochs=2, progress=False)
        assert ranking.settings["evidence_curvature"]["kind"] == kind
        for row in ranking.rows:
            fit = ranking.fits[row.name]
            with torch.no_grad():
                again = bws.log_evidence(fit.model, images.train, curvature=kind, prior=fit.prior)
            assert row.log_evidence == pytest.approx(float(again), rel=1e-6)
            effective = {n: float(p.effective) for n, p in again.by_pathway.items()}
            assert row.sharing[0].effective["shared"] == pytest.approx(effective["lift.shared"], rel=1e-4)
    assert "lower bound" in bws.Curvature("layer").bound and "no bound" in ranking.settings["bound"]


def columns(net, count, classes=10):
    """By what networks of 8 × 8 images are ranked, of so many data."""
    data = torch.zeros(count, 1, 8, 8), torch.arange(count) % classes
    return comparable_curvature(net if isinstance(net, list) else [net], data, bws.Categorical())


def test_networks_are_ranked_by_as_many_columns_as_all_can_afford():
    small, usual = bws.models.WSCNN(hidden_channels=2), bws.models.WSCNN()
    wide, wider = (
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, hidden), torch.nn.Linear(hidden, 10))
        for hidden in (7000, 170_000)
    )
    assert sum(p.numel() for p in small.parameters()) < 2000 < sum(p.numel() for p in usual.parameters()) < 13_000
    full, of = bws.Curvature("full"), partial(bws.Curvature, "full")
    assert columns(small, 3000) == full  # of 2000 parameters or less H is whole for any data
    assert columns(usual, 100) == full  # 1000 rows
    assert columns(usual, 1000) == of(samples=3) and columns(usual, 20_000) == of(samples=2, rows=1842)
    assert columns([small, usual], 1000) == of(samples=3)  # one for all
    assert columns(wide, 1000) == columns([usual, wide], 1000) == of(samples=2)
    assert columns(wide, 2000) == of(samples=2, rows=1000)  # of 21 158 numbers
    assert columns(wider, 2000) == bws.Curvature("kron")  # 500 rows of 510 094 numbers are too many
    for parameters, count, most in [(12_000, 500, 10), (12_000, 1000, 10), (5000, 3000, 10), (3000, 700, 3)]:
        size = Size(parameters, parameters)
        found = full_curvature(size, count, most)
        rows, k = min(count, found.rows), found.samples or most
        assert determinant_cost(size, rows * k) <= AT_THE_END
        assert k == most or determinant_cost(size, rows * (k + 1)) > AT_THE_END
    assert full_curvature(Size(3000, 3000), 700, 3) == full
    assert full_curvature(Size(10**6, 10**6), 2000, 1) is None
    assert full_curvature(Size(10**6, 9000), 2000, 9) == of(samples=2, rows=1178)


SIZES = [([1999], "full"), ([2001], "layer"), ([10_001], "kron"), ([9, 10_001], "kron")]


@pytest.mark.parametrize("sizes, kind", SIZES)
def test_blocks_where_the_number_of_data_is_not_known(sizes, kind):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield torch.zeros(3), torch.zeros(1)

    nets = [torch.nn.Linear(size, 1, bias=False) for size in sizes]
    loader = torch.utils.data.DataLoader(Stream(), batch_size=1)
    assert comparable_curvature(nets, loader, bws.Gaussian()).kind == kind
    deep = torch.nn.Sequential(torch.nn.Linear(1500, 1, bias=False), torch.nn.Linear(1, 600, bias=False))
    assert comparable_curvature([deep], loader, bws.Gaussian()).kind == "layer"


def test_networks_have_equal_width_and_share_over_their_group():
    images = bws.data.load("digits", train_size=20, test_size=10)
    names = ["none", "flips", "klein-four-diagonals", "dihedral"]
    for name, make in group_networks(images, names, width=16, layers=2).items():
        net = make()
        assert net.lift.out_channels * net.lift.group_size == 16
        found = bws.identify_groups(net)
        assert {f.name for f in found.values()} == {"trivial" if name == "none" else name}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("select")
    arguments = ["select", "--task", "turned", "--groups", "none,quarter-turns", "--train-size", "100"]
    assert main([*arguments, "--epochs", "3", "--width", "4", "--seeds", "2", "--out", str(out)]) == 0
    return out


def test_select_command_writes_json(run):
    assert sorted(p.name for p in run.iterdir()) == ["fits", "ranking.json", "trials"]
    record = json.loads((run / "ranking.json").read_text())
    assert {c["name"] for c in record["networks"]} == {"none", "quarter-turns"}
    assert record["settings"]["task"] == "turned" and record["settings"]["schedule"]["epochs"] == 3
    assert max(record["log_bayes_factors"].values()) == 0 and sum(record["probabilities"].values()) == pytest.approx(1)
    assert {c["curvature"]["kind"] for c in record["networks"]} == {"full"}
    assert all(len(c["by_seed"]) == 2 for c in record["networks"])


def test_interrupted_selection_goes_on_to_the_same_numbers(run, tmp_path, capsys, monkeypatch):
    arguments = ["select", "--task", "turned", "--groups", "none,quarter-turns", "--train-size", "100"]
    arguments += ["--epochs", "3", "--width", "4", "--seeds", "2", "--out", str(tmp_path), "--json", "--jobs", "1"]

    def stopping(trials, processes):
        finished = in_processes(trials, processes)
        yield next(finished)
        finished.close()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bayesws.trials.engine.in_processes", stopping)
        assert main(arguments) == 130
    told = capsys.readouterr().err
    assert f"1 of 4 trials are kept in {tmp_path / 'trials'}: the same command goes on from there" in told
    (first,) = (tmp_path / "trials").iterdir()
    stamp = first.stat().st_mtime_ns
    assert main(arguments) == 0
    assert first.stat().st_mtime_ns == stamp and len(list((tmp_path / "trials").iterdir())) == 4
    again = {c["name"]: c["by_seed"] for c in json.loads(capsys.readouterr().out)["networks"]}
    whole = json.loads((run / "ranking.json").read_text())["networks"]
    assert again == {c["name"]: c["by_seed"] for c in whole}


def test_select_command_prints_tables(capsys, tmp_path):
    arguments = ["select", "--groups", "none,flips", "--train-size", "60", "--epochs", "2", "--width", "2"]
    assert main([*arguments, "--curvature", "kron", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "is favoured by" in printed and "under this estimate (curvature 'kron', no bound" in printed
    assert "one start of each of 2 networks" in printed and "p =" not in printed and "flips" in printed
    if "disagree" in printed:
        assert printed.index("disagree") < printed.index("By evidence")


def test_select_command_over_widths_and_depths(capsys, tmp_path):
    arguments = ["select", "--groups", "none,flips", "--train-size", "40", "--epochs", "1", "--out", str(tmp_path)]
    assert main([*arguments, "--width", "2,4", "--layers", "1, 2"]) == 0
    found = bws.trials.Ranking.load(tmp_path / "ranking.json")
    sizes = {row.name: row.parameters for row in found.rows}
    assert set(sizes) == {
        f"{group}, {depth}, width {width}"
        for group in ("none", "flips")
        for depth in ("1 layer", "2 layers")
        for width in (2, 4)
    }
    assert sizes["none, 1 layer, width 2"] == 2 * 9 + 2 + 2 * 10 + 10
    assert sizes["flips, 2 layers, width 4"] == 2 * 9 + 2 + 2 * 4 * 9 + 2 + 2 * 10 + 10
    assert {row.curvature for row in found.rows} == {bws.Curvature("full")}
    capsys.readouterr()
    assert main([*arguments, "--by-layer", "--layers", "1,2"]) == 2
    assert "--by-layer with several widths or numbers of layers: expected one of each" in capsys.readouterr().err


def test_saved_ranking_comes_back(run, tmp_path):
    ranking = bws.trials.Ranking.load(run / "ranking.json")
    ranking.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (run / "ranking.json").read_text()
    assert ranking.table().row_count == 2 and ranking.sharing_table().row_count == 6 and not ranking.fits
    (tmp_path / "cut.json").write_text((run / "ranking.json").read_text()[:100])
    with pytest.raises(ValueError, match="is damaged: no JSON at line"):
        bws.trials.Ranking.load(tmp_path / "cut.json")
    with pytest.raises(ValueError, match="cannot be read"):
        bws.trials.Ranking.load(tmp_path / "none.json")


class Pair(torch.nn.Module):
    """Two layers beside each other: each sees the input, and has outputs of its own."""

    def __init__(self, groups):
        super().__init__()
        self.layers = torch.nn.ModuleList(linear(*GROUPS[name]) for name in groups)

    def forward(self, x):
        return torch.cat([layer(x) for layer in self.layers], 1)


@pytest.mark.parametrize("truth", [("shifts", "none"), ("triangle", "shifts")])
def test_every_layer_takes_its_own_group_and_no_network_is_better(truth):
    (x, first), (_, second) = planted(truth[0]), planted(truth[1])
    data, settings = (x, torch.cat([first, second], 1)), SETTINGS | {"epochs": 16, "warm_up": 4}
    found = bws.select_layers(Pair, list(GROUPS), 2, data, likelihood="regression", **settings)
    assert found.chosen == truth and found.ranking.best.name == " · ".join(truth)
    every = {" · ".join((a, b)): (lambda s=(a, b): Pair(s)) for a in GROUPS for b in GROUPS}
    gold = bws.select(every, data, "regression", evidence_curvature="full", **settings)
    assert gold.best.name == found.ranking.best.name
    evidences = {row.name: row.log_evidence for row in gold.rows}
    for row in found.ranking.rows:
        assert row.log_evidence == pytest.approx(evidences[row.name], rel=1e-10)
    for place, layer in enumerate(found.log_evidences):
        names = {name: " · ".join(name if i == place else t for i, t in enumerate(truth)) for name in GROUPS}
        assert layer == pytest.approx({name: evidences[whole] for name, whole in names.items()}, rel=1e-10)
        assert found.log_bayes_factors[place][truth[place]] == 0 < found.probabilities[place][truth[place]]
        assert sum(found.probabilities[place].values()) == pytest.approx(1)
    assert len(found.ranking.rows) < 9 and set(found.ranking.fits) == {row.name for row in found.ranking.rows}


def test_held_out_data_stand_beside_the_evidence_and_choose_nothing():
    x, y = planted("shifts")
    held = planted("none")
    settings = SETTINGS | {"epochs": 10}
    ranking = bws.select(NETWORKS, (x, y), "regression", test=held, **settings)
    without = bws.select(NETWORKS, (x, y), "regression", **settings)
    assert [row.name for row in ranking.rows] == [row.name for row in without.rows]
    for row in ranking.rows:
        assert row.test_nll == ranking.fits[row.name].nll(*held, kind="map")
    assert "test NLL" in str(ranking) and "test NLL" not in str(without) and without.disagreement() is None
    least = min(ranking.rows, key=lambda row: row.test_nll)
    if least.name == ranking.best.name:
        assert ranking.disagreement() is None
    swapped = [replace(row, test_nll=float(i)) for i, row in enumerate(reversed(ranking.rows))]
    told = bws.trials.Ranking(swapped[::-1]).disagreement()
    assert ranking.best.name in told and ranking.rows[-1].name in told


def test_select_command_by_layer(capsys, tmp_path):
    arguments = ["select", "--by-layer", "--groups", "none,quarter-turns", "--train-size", "60", "--epochs", "2"]
    assert main([*arguments, "--task", "orientation", "--width", "4", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "by layer" in printed and "chosen" in printed
    found = bws.trials.LayerRanking.load(tmp_path / "ranking.json")
    best = found.ranking.best.name
    assert " · ".join(found.chosen) == best and f"{best} is favoured by" in printed
    assert found.ranking == bws.trials.Ranking.load(tmp_path / "ranking.json")  # which reads both
    found.save(tmp_path / "again.json")
    assert bws.trials.LayerRanking.load(tmp_path / "again.json") == found
    found.ranking.save(tmp_path / "whole.json")
    with pytest.raises(ValueError, match="whole networks"):
        bws.trials.LayerRanking.load(tmp_path / "whole.json")


X, Y = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
NET = bws.models.WSCNN(num_classes=3, hidden_channels=1)
IMAGES = bws.data.ImageData("six", (X, Y), (X, Y), 3)
BAD = {
    "no networks": (lambda: bws.select({}, (X, Y)), "no networks"),
    "no starts": (lambda: bws.select({"a": NET}, (X, Y), seeds=0), "seeds=0"),
    "a list": (lambda: bws.select([NET], (X, Y)), "networks of type list"),
    "another width": (lambda: bws.select({"a": torch.nn.Linear(63, 3)}, (X, Y)), "network 'a'"),
    "a network for a function": (lambda: bws.select_layers(NET, ["none"], 2, (X, Y)), "make is a WSCNN"),
    "not a network": (lambda: bws.select({"a": "WSCNN"}, (X, Y)), "network 'a' of type str"),
    "a function of something else": (lambda: bws.select({"a": lambda: 3}, (X, Y)), "network 'a' of type int"),
    "labels that do not fit": (lambda: bws.select({"a": NET}, (X, Y + 1)), "network 'a': labels from 1 to 3"),
    "unknown setting": (lambda: bws.select({"a": NET}, (X, Y), epoch=3), "'epoch'.*epochs"),
    "another objective": (lambda: bws.select({"a": NET}, (X, Y), objective="task"), "objective='task'"),
    "a seed": (lambda: bws.select({"a": NET}, (X, Y), seed=3), "seed=3"),
    "unknown curvature": (lambda: bws.select({"a": NET}, (X, Y), evidence_curvature="kfac"), "kfac.*full"),
    "no choices": (lambda: bws.select_layers(Pair, [], 2, (X, Y)), "choices="),
    "a choice twice": (lambda: bws.select_layers(Pair, ["a", "a"], 2, (X, Y)), "choices=.*different"),
    "no layers": (lambda: bws.select_layers(Pair, ["none"], 0, (X, Y)), "layers=0"),
    "no network": (lambda: bws.select_layers(lambda _: 3, ["none"], 2, (X, Y)), "'none · none' of type int"),
    "unknown group": (lambda: group_networks(IMAGES, ["turns"]), "'turns'.*expected one of"),
    "group twice": (lambda: group_networks(IMAGES, ["none", "none"]), "'none' is named twice"),
    "width": (lambda: group_networks(IMAGES, ["dihedral"], width=12), "width=12.*8 elements"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name):
    assert_refused(*BAD[name])

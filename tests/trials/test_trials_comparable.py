"""Results refuse to be compared with those of other data, or of numbers that mean something else."""

import json
import re
from dataclasses import replace

import pytest
import torch
from sealed import rewritten
from torch.utils.data import DataLoader, TensorDataset

import bayesws as bws
from bayesws.io.json_files import sealed
from bayesws.io.tables import as_text
from bayesws.trials import Comparison, LayerRanking, RankedNetwork, Ranking, Trial, log_bayes_factor
from bayesws.trials.comparable import MEANING
from bayesws.trials.select_layers import search_layers

ONE, OTHER = "1" * 64, "2" * 64
FULL, DRAWN = bws.Curvature("full"), bws.Curvature("full", samples=1)


def trial(seed=0, objective="evidence", data=ONE, meaning=1, task="turned"):
    return Trial(task, seed, "both", objective, 0.9, 0.1, 0.1, -3.0, [], None, 1.0, 1.0, [], data=data, meaning=meaning)


def network(name, data=ONE, meaning=1, curvature=FULL):
    row = RankedNetwork(name, -1.0, [-1.0], 0, 1, [], {}, 0.0, [], data=data, meaning=meaning)
    return replace(row, curvature=curvature)


MIXED_TRIALS = [
    ([trial(), trial(objective="task", data=OTHER)], "evidence-0 .* 111111111111….*task-0 .* 222222222222…"),
    ([trial(), trial(objective="task", data=None)], "of which no digest is known"),
    ([trial(data=None), trial(objective="task")], "of which no digest is known"),
    ([trial(), trial(seed=1, meaning=2)], "-0 has numbers of meaning 1, .*-1 of meaning 2.*run the older"),
    ([trial(), trial(seed=1, meaning=None)], "of meaning None"),
]


@pytest.mark.parametrize(("trials", "message"), MIXED_TRIALS)
def test_a_comparison_refuses_other_data_and_another_meaning(trials, message, tmp_path):
    with pytest.raises(ValueError, match=message) as told:
        Comparison(trials)
    assert "\n" not in str(told.value)
    whole = Comparison(trials[:1])
    whole.save(tmp_path / "comparison.json")
    more = json.loads(Comparison(trials[1:]).as_json())["trials"]
    rewritten(tmp_path / "comparison.json", lambda record: record["trials"].extend(more))
    with pytest.raises(ValueError, match=message):
        Comparison.load(tmp_path / "comparison.json")


def test_seeds_and_tasks_may_have_data_of_their_own():
    rows = [trial(), trial(seed=1, data=OTHER), trial(task="upright", data=OTHER)]
    assert Comparison(rows).trials == rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([network("a"), network("b", OTHER)], "network 'a' .* 111111111111…, network 'b' on data 222222222222…"),
        ([network("a"), network("b", None)], "no digest is known"),
        ([network("a"), network("b", meaning=2)], "network 'a' has numbers of meaning 1, network 'b' of meaning 2"),
        ([network("a"), network("b", curvature=bws.Curvature())], "network 'a' .*'full'.*, network 'b' by .*'kron'"),
        ([network("a"), network("b", curvature=None)], "network 'b' by a curvature that is not known"),
        ([network("a", curvature=DRAWN), network("b", curvature=replace(DRAWN, seed=1))], "seed=0.*seed=1.*the same"),
        (
            [network("a", curvature=DRAWN), network("b", curvature=replace(DRAWN, rows=9))],
            "rows=2000.*rows=9.*same",
        ),
    ],
)
def test_a_ranking_refuses_other_data_another_meaning_and_another_estimator(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Ranking(rows)
    record = Ranking(rows[:1]).record()
    record["networks"] += Ranking(rows[1:]).record()["networks"]
    record = sealed(record | {"layers": {"chosen": ["a"], "log_evidences": [{}]}})
    (tmp_path / "ranking.json").write_text(json.dumps(record))
    for kind in (Ranking, LayerRanking):
        with pytest.raises(ValueError, match=message):
            kind.load(tmp_path / "ranking.json")


def test_layers_ranked_by_two_estimators_are_refused():
    """A caller's own way of ranking, that takes another curvature where networks become larger."""

    def rank(networks):
        curvature = FULL if len(networks) == 2 else DRAWN
        return Ranking([network(" · ".join(groups), curvature=curvature) for groups in networks])

    with pytest.raises(ValueError, match=r"has its evidence by .*samples=None.*samples=1.*expected the same"):
        search_layers(rank, ["none", "flips"], 2)


def test_no_evidence_is_subtracted_between_objectives():
    """Whose rules set the precisions differently: neither in numbers nor in the table nor in the file."""
    found = Comparison([trial(), trial(objective="task"), trial(seed=1), trial(seed=1, objective="task")])
    (by_metric,) = found.differences().values()
    assert "NLL" in by_metric and "log evidence" not in by_metric
    assert "log evidence" not in as_text(found.difference_table()) and "log evidence" in as_text(found.table())
    assert "log evidence" not in json.loads(found.as_json())["differences"][0]


def test_where_no_digest_is_known_it_is_said():
    assert Comparison([trial()]).doubt is None and Ranking([network("a")]).doubt is None
    assert "cannot be told" in Comparison([trial(data=None), trial(seed=1, data=None)]).doubt
    unknown = Ranking([network("a", None), network("b", None)])
    assert "cannot be told" in unknown.doubt and f"note: {unknown.doubt}" in str(unknown)


X, Y = torch.rand(12, 1, 8, 8), torch.arange(12) % 3
SHORT = {"epochs": 1, "progress": False, "keep_posterior": False}


def fitted(data, curvature="kron", objective="evidence"):
    torch.manual_seed(0)
    net = bws.models.WSCNN(num_classes=3, hidden_channels=1, layers=1)
    return bws.fit(net, data, objective=objective, curvature=curvature, **SHORT)


def test_a_bayes_factor_is_of_one_data_set_and_one_curvature():
    fit, again = fitted((X, Y)), fitted((X.clone(), Y))
    longer = replace(fit, evidence=replace(fit.evidence, log_evidence=fit.log_evidence + 2))
    assert log_bayes_factor(fit, again) == 0 and log_bayes_factor(longer, again) == pytest.approx(2)
    assert log_bayes_factor(again, longer) == pytest.approx(-2)
    other = fitted((X, (Y + 1) % 3))
    digests = (fit.provenance.data[:12], other.provenance.data[:12])
    with pytest.raises(ValueError, match=re.escape(digests[0]) + ".*" + re.escape(digests[1])):
        log_bayes_factor(fit, other)
    with pytest.raises(ValueError, match=r"by Curvature\(kind='kron'\), .* by Curvature\(kind='diag'\): expected"):
        log_bayes_factor(fit, fitted((X, Y), "diag"))
    with pytest.raises(ValueError, match=r"set by 'evidence' and one by 'fixed'.*no Bayes factor") as told:
        log_bayes_factor(fit, fitted((X, Y), objective="fixed"))
    assert "\n" not in str(told.value)
    sampled = fitted((X, Y), bws.Curvature("kron", samples=1))  # of the steps alone
    assert log_bayes_factor(fit, sampled) == fit.log_evidence - sampled.log_evidence
    loaded = fitted(DataLoader(TensorDataset(X, Y), 4))
    with pytest.raises(ValueError, match="no digest is known"):
        log_bayes_factor(fit, loaded)
    with pytest.warns(UserWarning, match="cannot be told"):
        assert log_bayes_factor(loaded, loaded) == 0


def test_trials_know_their_data_and_rankings_theirs():
    def make():
        return bws.models.WSCNN(num_classes=3, hidden_channels=1, layers=1)

    comparison = bws.compare(make, (X, Y), (X, Y), 1, epochs=1, progress=False)
    digest = fitted((X, Y)).provenance.data
    assert {(t.data, t.meaning) for t in comparison.trials} == {(digest, MEANING)}
    assert bws.select({"a": make}, (X, Y), epochs=1, progress=False).best.data == digest
    loaded = bws.select({"a": make}, DataLoader(TensorDataset(X, Y), 4), epochs=1, progress=False)
    assert loaded.best.data is None and loaded.doubt

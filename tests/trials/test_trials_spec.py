"""One value for a trial and one engine for many: names, settings, records, what is stored and what is refused."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import bayesws as bws
from bayesws.trials import TrialLike, TrialSpec, run, spec, train_and_score
from bayesws.trials.comparable import MEANING

SPEC = TrialSpec(
    "turned",
    {"name": "digits", "train_size": 40, "test_size": 30},
    seed=3,
    network={"hidden_channels": 1, "layers": 1, "pathways": ["shared", "free"]},
    objective="fixed",
    fit={"epochs": 2, "weight_decays": [1e-3], "ratio": 2.0},
    labels={"pathways": "both", "objective": "fixed"},
    elsewhere=("upright",),
)


def test_name_and_settings_say_all_that_numbers_depend_on():
    assert SPEC.name == "turned-both-fixed-3"
    assert replace(SPEC, task="rotated:0:90", labels={"train_size": 40, "method": "a"}).name == "rotated_0_90-40-a-3"
    assert json.loads(json.dumps(SPEC.settings)) == SPEC.settings and SPEC.settings["pathways"] == "both"
    assert replace(SPEC, device="cuda", fits="x").settings == SPEC.settings
    plain = replace(SPEC, labels={})
    changes = [{"task": "upright"}, {"seed": 4}, {"fit": {"epochs": 3}}, {"elsewhere": ()}, {"objective": "task"}]
    changes += [{"data": SPEC.data | {"side": 4}}, {"network": {}}, {"model": "CNN"}, {"labels": {"method": "a"}}]
    changes += [{"curvature": bws.Curvature("full")}, {"judge": bws.Curvature("full")}]
    for change in changes:
        assert replace(plain, **change).settings != plain.settings


def test_a_spec_comes_to_what_its_parts_do():
    record = SPEC.run()
    images = bws.data.load("digits", task="turned", seed=3, train_size=40, test_size=30)
    upright = bws.data.load("digits", task="upright", seed=3, train_size=40, test_size=30).test
    torch.manual_seed(3)
    net = bws.models.WSCNN(num_classes=10, hidden_channels=1, layers=1)
    fit, trial = train_and_score(
        net,
        images.train,
        images.test,
        seed=3,
        elsewhere={"upright": upright},
        objective="fixed",
        epochs=2,
        weight_decays=(1e-3,),
        ratio=2.0,
        progress=False,
    )
    assert (record["nll"], record["log_evidence"]) == (trial.nll, trial.log_evidence)
    assert trial.nll == fit.nll(*images.test, kind="map") and trial.train_nll == fit.nll(*images.train, kind="map")
    assert record["elsewhere"]["upright"]["nll"] == fit.nll(*upright, kind="map")
    assert record["data"] == fit.provenance.data and record["version"] == bws.__version__
    assert record["test_data"] == bws.fit(net, images.test, epochs=1, progress=False).provenance.data
    again = bws.trials.Trial.from_record(json.loads(json.dumps(record)))
    assert (again.pathways, again.objective, again.meaning) == ("both", "fixed", MEANING)


def test_one_judge_for_networks_that_afford_different_evidences():
    """The evidence is that of `log_evidence` by the judge; nothing that the fit's own decides changes."""
    judge = bws.Curvature("full", samples=2, rows=20)
    record, own = replace(SPEC, judge=judge).run(), SPEC.run()
    assert record["nll"] == own["nll"] and record["log_evidence"] != own["log_evidence"]
    images = SPEC.images()
    torch.manual_seed(3)
    net = bws.models.WSCNN(num_classes=10, hidden_channels=1, layers=1)
    fit, _ = train_and_score(net, images.train, images.test, seed=3, objective="fixed", progress=False, **SPEC.fit)
    wanted = bws.log_evidence(fit.model, images.train, fit.likelihood, judge, fit.prior)
    assert record["log_evidence"] == pytest.approx(float(wanted), rel=1e-5)


def test_the_dearest_spec_is_the_one_that_trains_most():
    cheap, dear = replace(SPEC, objective="evidence"), replace(SPEC, objective="validated")
    every = {k: v for k, v in SPEC.fit.items() if k != "weight_decays"}  # six of them
    assert cheap.cost < SPEC.cost < replace(SPEC, fit=every).cost < replace(dear, fit=every).cost
    assert SPEC.cost < dear.cost < replace(dear, fit=every).cost
    assert replace(SPEC, fit=SPEC.fit | {"learning_rates": [0.01, 0.1]}).cost == SPEC.cost + 2 * cheap.cost
    assert replace(SPEC, objective="task").cost == 2 * cheap.cost  # one weight decay, and the last training
    assert replace(cheap, fit={"epochs": 4}).cost == 2 * cheap.cost
    assert replace(cheap, fit=cheap.fit | {"starts": 3}).cost == 3 * cheap.cost
    assert replace(SPEC, objective="task", fit=SPEC.fit | {"starts": 3}).cost == 4 * cheap.cost  # two more held out


@dataclass(frozen=True)
class Square:
    """The smallest thing that the engine takes."""

    number: int
    log: str = ""

    @property
    def name(self):
        return f"square-{self.number}"

    @property
    def settings(self):
        return {"number": self.number}

    def run(self):
        if self.number < 0:
            raise ValueError("below zero")
        with Path(self.log).open("a") as file:
            file.write(f"{self.number} ")
        return {"square": self.number**2, "pair": (1, 2), "threads": torch.get_num_threads()}


def test_the_engine_runs_anything_once_the_dearest_first(tmp_path):
    log = tmp_path / "log"
    squares: list[TrialLike] = [Square(n, str(log)) for n in (1, 3, 2)]
    steps = []
    found = run(squares, tmp_path, 1, ("square",), steps.append, lambda square: square.number)
    assert [r["square"] for r in found] == [1, 9, 4] and log.read_text() == "3 2 1 "
    assert found[0]["settings"] == {"number": 1} and {r["threads"] for r in found} == {1}
    (tmp_path / "trials" / "square-2.json").unlink()
    assert run(squares, tmp_path, 2) == found  # as JSON has it, whether found or run
    assert log.read_text() == "3 2 1 2 " and steps == ["square-3", "square-2", "square-1"]


def test_the_engine_refuses_one_name_twice_and_no_process(tmp_path):
    with pytest.raises(ValueError, match=r"square-1\.json: expected different names"):
        run([Square(1), Square(1)], tmp_path)
    with pytest.raises(ValueError, match="processes=0"):
        run([Square(1)], tmp_path, 0)
    with pytest.raises(ValueError, match="below zero"):
        run([Square(-1)], tmp_path)
    assert not (tmp_path / "trials").exists()


def test_a_stored_trial_of_another_meaning_is_not_taken(tmp_path, monkeypatch):
    quick = replace(SPEC, objective="evidence", fit={"epochs": 1}, elsewhere=())
    run([quick], tmp_path)
    monkeypatch.setattr(spec, "MEANING", 99)
    with pytest.raises(
        ValueError, match=f"numbers of meaning {MEANING}, expected 99: remove it, and the trial is run again"
    ):
        run([quick], tmp_path)
    with pytest.raises(ValueError, match="run with other settings"):
        run([replace(quick, fit={"epochs": 2})], tmp_path)

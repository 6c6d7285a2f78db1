"""Several starts of one fit: each is the same however many there are, the best is kept, and a stop changes nothing."""

import copy
import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from sealed import rewritten
from stopping import Stop, stopped_after
from torch import nn

import bayesws as bws
from bayesws.evidence.batches import Batches
from bayesws.evidence.likelihood import likelihood_named
from bayesws.layers.start import stack_starts
from bayesws.sharing.groups import known_groups
from bayesws.training import best_start
from bayesws.training.checkpoint import Checkpoint
from bayesws.training.objectives import ByEvidence, Setting
from bayesws.training.outcome import final_curvature, judging_curvature
from bayesws.training.settled import epochs_to_settle, steps_to_settle
from bayesws.training.starts import Starts, redraw

SETTINGS = {"epochs": 6, "burn_in": 0.2, "every": 2, "progress": False, "batch_size": 20, "keep_posterior": False}
DECAYS = (0.0, 1e-2)


@pytest.fixture(autouse=True)
def quiet(recwarn):
    """Fits of a few epochs have not settled, and say so."""


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def network(dropout=0.0):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Dropout(dropout), nn.Linear(4, 2))


def soft(stack="dense", layers=1):
    torch.manual_seed(2)
    return bws.models.WSCNN(hidden_channels=2, layers=layers, stack=stack)


def setting(net, data, starts, seed=0, **more):
    plan = bws.Schedule(starts=starts, **more)
    likelihood = likelihood_named("classification")
    return Setting(net, Batches(data, net=net), likelihood, plan, bws.Curvature("kron"), seed)


def same(one, other):
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_start_is_the_same_however_many_there_are_and_torch_is_left_alone(data):
    net, torch_draws = network(), torch.get_rng_state()
    four, two = (Starts(setting(copy.deepcopy(net), data, starts)) for starts in (4, 2))
    begun = [four.begun(number) for number in range(4)]
    assert same(two.begun(1).setting.net, begun[1].setting.net)
    assert same(begun[0].setting.net, net) and begun[0].what == "as given"
    assert {b.what for b in begun[1:]} == {"weights drawn anew"}
    other = Starts(setting(net, data, 2, seed=1)).begun(1)
    nets = [b.setting.net for b in (*begun, other)]
    assert not any(torch.equal(a[0].weight, b[0].weight) for a, b in itertools.combinations(nets, 2))
    assert torch.equal(torch.get_rng_state(), torch_draws)
    bound = 5**-0.5  # of nn.Linear(5, ...)'s own U(±1 / √fan_in)
    assert all(0.5 * bound < float(net[0].weight.abs().max()) <= bound for net in nets)


def test_every_second_start_of_nested_pathways_is_apart(data):
    """Where the objective starts shared; the precisions of an apart start are equal, and no other's."""
    torch.manual_seed(2)
    net, images = bws.models.WSCNN(hidden_channels=2), bws.data.load("digits", train_size=20, test_size=10).train
    starts = Starts(setting(net, images, 4), shares=True)
    begun = [starts.begun(number) for number in range(4)]
    assert [b.setting.apart for b in begun] == [False, True, False, True]
    assert begun[1].what == "weights drawn anew, apart" and begun[2].what == "weights drawn anew"
    assert not any(Starts(setting(net, images, 2)).begun(number).setting.apart for number in (0, 1))
    assert not Starts(setting(network(), data, 2), shares=True).begun(1).setting.apart  # nothing is nested
    logs = [ByEvidence().begin(b.setting).log_precisions for b in begun[:2]]
    assert logs[0]["lift.free"] == logs[0]["lift.shared"] + 4 and logs[1]["lift.free"] == logs[1]["lift.shared"]


def test_a_fit_of_several_starts_tells_which_was_apart():
    torch.manual_seed(2)
    net, images = bws.models.WSCNN(hidden_channels=2), bws.data.load("digits", train_size=40, test_size=10).train
    fits = {
        name: bws.fit(net, images, objective=objective, starts=2, **SETTINGS)
        for name, objective in {"shared": ByEvidence(), "never": ByEvidence(shared_start=None), "task": "task"}.items()
    }
    assert [s.what for s in fits["shared"].starts] == ["as given", "weights drawn anew, apart"]
    assert all(f.starts[1].what == "weights drawn anew" for name, f in fits.items() if name != "shared")


@pytest.mark.parametrize("objective", ["evidence", "task"])
def test_the_best_is_kept_and_is_what_it_would_be_alone(data, objective):
    """Dropout too: a start draws by itself."""
    settings = SETTINGS | {"objective": objective} | ({"weight_decays": DECAYS} if objective == "task" else {})
    fits = {}
    for starts in (1, 2, 4):
        torch.manual_seed(7)
        fits[starts] = bws.fit(network(0.3), data, seed=3, starts=starts, **settings)
    four = fits[4].starts
    assert fits[1].starts == () and [start.number for start in four] == [0, 1, 2, 3]
    scores = [s.held_out_nll if objective == "task" else -s.log_evidence for s in four]
    assert len(set(scores)) == 4 and [s.kept for s in four] == [score == min(scores) for score in scores]
    untimed = [[replace(s, seconds=None, kept=False) for s in fits[k].starts] for k in (2, 4)]
    assert untimed[0] == untimed[1][:2]
    for starts, fit in fits.items():
        if starts == 1 or fit.starts[0].kept:
            assert same(fit.model, fits[1].model) and fit.history == fits[1].history
    kept = next(start for start in four if start.kept)  # held-out data choose it by a training on a part
    assert 0 < fits[4].provenance.training_seconds < (kept.seconds if objective == "evidence" else math.inf)


def test_the_judge_is_the_exact_evidence_at_each_starts_own_precisions(data):
    fit = bws.fit(network(), data, starts=3, curvature="kron", **SETTINGS)
    kept = next(start for start in fit.starts if start.kept)
    assert kept.curvature == bws.Curvature("full") and fit.evidence.curvature == bws.Curvature("kron")
    exact = float(bws.log_evidence(fit.model, data, curvature="full", prior=fit.prior))
    assert kept.log_evidence == pytest.approx(exact, rel=1e-5)  # the same in float32, over batches of other sizes
    assert abs(kept.log_evidence - fit.log_evidence) > 1e-3  # Kronecker factors are another estimate


def test_the_judge_takes_sampled_columns_where_all_are_too_many_and_the_fits_own_where_no_memory_holds_it(
    data, monkeypatch
):
    asked = replace(setting(network(), data, 2), curvature=bws.Curvature("kron", samples=1, seed=4))
    assert judging_curvature(asked) == bws.Curvature("full")  # 34 parameters, 120 rows
    monkeypatch.setattr("bayesws.evidence.by_default.AT_THE_END", 0)
    assert judging_curvature(asked) == bws.Curvature("full", samples=1, seed=4)
    monkeypatch.setattr("bayesws.evidence.memory.memory_at_hand", lambda device: 1000)
    assert judging_curvature(asked) == final_curvature(asked) == bws.Curvature("kron")
    monkeypatch.undo()
    monkeypatch.setattr("bayesws.training.best_start.judging_curvature", final_curvature)
    fit = bws.fit(network(), data, starts=2, curvature="kron", **SETTINGS)
    assert any("compared by 'kron', no bound" in note for note in fit.notes)
    assert next(s for s in fit.starts if s.kept).log_evidence == fit.log_evidence


def test_starts_are_not_compared_by_rows_that_are_too_few(data, monkeypatch):
    few = bws.Curvature("full", samples=1)
    monkeypatch.setattr("bayesws.evidence.objective.SATURATED", 0.0)  # no number of rows is enough
    monkeypatch.setattr("bayesws.training.best_start.judging_curvature", lambda setting: few)
    fit = bws.fit(network(), data, starts=2, curvature="kron", **SETTINGS)
    assert {start.curvature for start in fit.starts} == {bws.Curvature("kron")}
    assert next(s for s in fit.starts if s.kept).log_evidence == fit.log_evidence
    assert any("or too few rows" in note for note in fit.notes)


def test_a_later_start_whose_rows_are_too_few_is_passed_over(data, monkeypatch):
    def judged(setting, work, curvature):
        found = real(setting, work, curvature)
        seen.append(found)
        if len(seen) == 1:
            return found
        return replace(found, sampled_rows=1, data_fit=found.data_fit + 1000)  # as high as it likes

    real, seen = best_start.judge, []
    monkeypatch.setattr(best_start, "judge", judged)
    fit = bws.fit(network(), data, starts=2, curvature="kron", **SETTINGS)
    assert [(s.kept, s.saturated) for s in fit.starts] == [(True, False), (False, True)]
    assert fit.starts[1].log_evidence > fit.starts[0].log_evidence and "too high" in fit.starts[1].score
    assert any("evidence of start 2 is by too few sampled rows" in note for note in fit.notes)


def test_what_is_frozen_stays_and_what_nothing_draws_is_told(data):
    net = network()
    net[0].weight.requires_grad_(False)
    drawn = network()
    drawn[0].weight.requires_grad_(False)
    redraw(drawn)
    assert torch.equal(drawn[0].weight, net[0].weight) and not torch.equal(drawn[0].bias, net[0].bias)

    class Silent(nn.Linear):
        reset_parameters = None

        def __init__(self):
            nn.Module.__init__(self)
            self.weight, self.bias = nn.Parameter(torch.zeros(2, 5)), nn.Parameter(torch.zeros(2))

    silent = nn.Sequential(nn.Linear(5, 5), Silent())
    with pytest.raises(ValueError, match=r"no reset_parameters\(\) draws parameter '1\.weight' anew") as error:
        bws.fit(silent, data, starts=2, **SETTINGS)
    assert "\n" not in str(error.value)
    bws.fit(silent, data, **SETTINGS)  # one start draws nothing

    class Around(nn.Sequential):
        def reset_parameters(self):
            nn.init.ones_(self[1].weight)
            nn.init.zeros_(self[1].bias)

    around = Around(nn.Linear(5, 5), Silent())
    redraw(around)  # a module around it will do
    assert torch.equal(around[1].weight, torch.ones(2, 5))


@pytest.mark.parametrize("starts", [0, 1.5, True, "3", None])
def test_starts_are_a_whole_number(data, starts):
    with pytest.raises(ValueError, match="starts=") as error:
        bws.fit(network(), data, starts=starts, **SETTINGS)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def turned():
    return bws.data.load("digits", task="turned", train_size=400, seed=0).train


def test_soft_stacks_take_turns_at_what_the_moments_propose_and_the_known_groups(turned):
    """Nobody tells the network that its digits are turned; quarter turns come first, and no group comes twice."""
    found = stack_starts(soft(layers=2), turned[0])
    assert found[0].what == "moments: quarter-turns" and [s.is_first_choice for s in found[:2]] == [True, False]
    groups = [frozenset(map(tuple, start.at["lift"].tolist())) for start in found]
    assert len(set(groups)) == len(groups)
    of_size = {frozenset(map(tuple, g.permutations.tolist())) for g in known_groups(3, 3) if g.size == 4}
    assert of_size <= set(groups)
    known = next(start for start in found if start.what.startswith("known group"))
    assert set(known.at) == {"lift", "group_convs.0"} and known.at["group_convs.0"].shape == (4, 36)
    cyclic = stack_starts(soft("power"), turned[0])
    assert cyclic and all("klein" not in start.what for start in cyclic)
    for start in (known, cyclic[-1]):  # every one is a start that such a stack can have
        net = soft("power" if start is cyclic[-1] else "product", layers=2)
        net.lift.stack.start_at(start.at["lift"])
        assert torch.equal(net.lift.representations().argmax(-1), start.at["lift"])
    assert stack_starts(bws.models.WSCNN(), turned[0]) == []


@pytest.mark.parametrize("start", [None, "moments", "random"])
def test_starts_of_a_network_with_soft_stacks(turned, start):
    starts = Starts(setting(soft(), turned, 3, start=start))
    what = [starts.begun(number).what for number in range(3)]
    first = {None: "as given", "moments": "as given, stacks at moments", "random": "as given, stacks at random"}
    assert what[0] == first[start]
    assert all(told.startswith("weights drawn anew, stacks at ") for told in what[1:])
    assert ("moments: quarter-turns" in what[1]) == (start != "moments")  # that one is start 0


def test_a_start_of_soft_stacks_is_the_same_however_many_there_are_and_frozen_ones_stay(turned):
    one, other = (Starts(setting(soft(), turned, starts)).begun(1) for starts in (2, 3))
    assert same(one.setting.net, other.setting.net) and one.proposals == other.proposals
    frozen = soft()
    for logits in frozen.lift.stack.logits:
        logits.requires_grad_(False)
    begun = Starts(setting(frozen, turned, 2)).begun(1)
    assert torch.equal(begun.setting.net.lift.stack.logits[0], frozen.lift.stack.logits[0])


CASES = {
    "evidence": {},
    "evidence, several": {"starts": 4},
    "task": {"objective": "task", "weight_decays": DECAYS},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stops", [(8,), (3, 6), (15,), (20,)])  # epochs: the first start has 6, the second 6 more
def test_a_stopped_fit_goes_on_to_the_last_bit(data, case, stops, tmp_path, monkeypatch):
    settings = {"seed": 1, "starts": 3} | SETTINGS | CASES[case]
    torch.manual_seed(11)
    whole = bws.fit(network(0.3), data, **settings)
    folder, stopped = tmp_path / "left", 0
    for stop in stops:
        torch.manual_seed(11)  # what the first start draws by
        with stopped_after(stop):
            try:
                bws.fit(network(0.3), data, checkpoint=folder, **settings)
            except Stop:
                stopped += 1
    torch.manual_seed(11)
    again = bws.fit(network(0.3), data, checkpoint=folder, **settings)
    assert stopped or (case, stops) == ("evidence", (20,))  # three starts have 18 epochs
    assert same(again.model, whole.model) and again.history == whole.history
    assert again.log_evidence == whole.log_evidence and again.notes == whole.notes
    assert [replace(s, seconds=None) for s in again.starts] == [replace(s, seconds=None) for s in whole.starts]
    assert sorted(p.name for p in folder.iterdir()) == ["finished.json", "fit"]
    with monkeypatch.context() as patch:
        patch.setattr("bayesws.training.loop.Loop.train", None)
        assert bws.fit(network(0.3), data, checkpoint=folder, **settings).starts == again.starts


@pytest.mark.parametrize("killed", ["_write", "unlink"])
def test_a_kill_while_a_start_is_kept_changes_nothing(data, killed, tmp_path, monkeypatch):
    settings = SETTINGS | {"seed": 1, "starts": 2, "epochs": 3, "batch_size": 60}
    whole = bws.fit(network(), data, **settings)
    where = Checkpoint if killed == "_write" else type(tmp_path)
    real = getattr(where, killed)
    for call in (1, 2, 3):
        left = [call]

        def dying(self, *args, left=left, **more):
            left[0] -= 1
            if not left[0]:
                raise Stop
            return real(self, *args, **more)

        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(where, killed, dying)
            bws.fit(network(), data, checkpoint=tmp_path / f"{call}", **settings)
        again = bws.fit(network(), data, checkpoint=tmp_path / f"{call}", **settings)
        assert same(again.model, whole.model) and again.history == whole.history


def test_all_that_is_left_to_do_is_to_take_up_the_best(data, tmp_path, monkeypatch):
    settings = {"seed": 1, "starts": 3} | SETTINGS
    whole = bws.fit(network(0.3), data, **settings)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Checkpoint, "finish", lambda *_: (_ for _ in ()).throw(Stop))
        bws.fit(network(0.3), data, checkpoint=tmp_path / "left", **settings)
    best = next(s.number for s in whole.starts if s.kept)
    left = sorted(p.name for p in (tmp_path / "left").iterdir())
    assert left == [f"start-{best}.safetensors", "starts.json"]
    with monkeypatch.context() as patch:
        patch.setattr("bayesws.training.loop.Loop.train", None)
        again = bws.fit(network(0.3), data, checkpoint=tmp_path / "left", **settings)
    assert same(again.model, whole.model) == (best != 0)  # whose dropout is drawn by the caller's generator
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Checkpoint, "finish", lambda *_: (_ for _ in ()).throw(Stop))
        bws.fit(network(0.3), data, checkpoint=tmp_path / "lost", **settings)
    (tmp_path / "lost" / next(n for n in left if n.startswith("start-"))).unlink()
    with pytest.raises(ValueError, match=r"safetensors is missing or of another start; remove"):
        bws.fit(network(0.3), data, checkpoint=tmp_path / "lost", **settings)


def test_starts_are_saved_and_files_of_before_are_read(data, tmp_path):
    fit = bws.fit(network(), data, starts=2, **SETTINGS)
    fit.save(tmp_path / "fit")
    assert bws.FitResult.load(tmp_path / "fit", network()).starts == fit.starts
    assert json.loads((tmp_path / "fit" / "fit.json").read_text())["format"] == 7

    def older(record):
        del record["starts"]
        record["format"] = 5

    rewritten(tmp_path / "fit" / "fit.json", older)
    again = bws.FitResult.load(tmp_path / "fit", network())
    assert again.starts == () and again.log_evidence == fit.log_evidence


def test_who_watches_is_told_of_which_start(data):
    seen = []
    bws.fit(network(), data, starts=2, **SETTINGS | {"progress": seen.append})
    assert [record["start"] for record in seen] == [0.0] * 6 + [1.0] * 6
    alone = []
    fit = bws.fit(network(), data, **SETTINGS | {"progress": alone.append})
    assert alone == fit.history and "start" not in alone[0]


def brute_steps(start, rate, total):
    """Walk a geometric sequence on, until no later value differs by more than the bound."""
    values = [-1000.0 - start * rate**t for t in range(total)]
    bound, steps = max(0.01 * abs(values[-1]), 1.0), 0
    while abs(start * rate ** (total - 1 + steps)) >= bound:
        steps += 1
    return values, steps


@pytest.mark.parametrize("rate", [0.5, 0.8, 0.93])
@pytest.mark.parametrize("total", [3, 8, 20])
def test_steps_to_settle_are_those_of_a_geometric_sequence(rate, total):
    values, steps = brute_steps(3000.0, rate, total)
    assert steps_to_settle(values) == steps


def test_draws_of_single_steps_move_the_steps_to_settle_little():
    """Scatter of 10 nats, as one sampled column a datum makes it: single differences at the end are of that size."""
    values, steps = brute_steps(1000.0, 0.85, 12)
    generator = torch.Generator().manual_seed(0)
    drawn = [(torch.tensor(values) + 10 * torch.randn(12, generator=generator)).tolist() for _ in range(50)]
    found = sorted(steps_to_settle(noisy) for noisy in drawn)
    assert steps == 17 and 0.7 * steps <= found[5] <= found[25] <= found[45] <= 1.5 * steps, found


def test_what_does_not_settle_is_given_the_slowest_rate_and_what_has_settled_none():
    line = [-1200.0, -1100.0, -1000.0]  # b (1 - q²) = 200 for the nearest sequence, which goes on by b q²
    left = 200 / (1 - 0.95**2) * 0.95**2
    steps = steps_to_settle(line)
    assert left * 0.95**steps <= 10 < left * 0.95 ** (steps - 1)
    for settled in ([-5.0, -5.0, -5.0], [-500.0, -101.0, -100.5], [-900.0, -400.0, -380.0, -420.0, -390.0, -410.0]):
        assert steps_to_settle(settled) == 0
    history = [{"epoch": float(epoch)} for epoch in range(1, 31)]
    for epoch, evidence in ((1, -300.0), (11, -200.0), (21, -150.0)):
        history[epoch - 1]["log_evidence"] = evidence
    assert epochs_to_settle(history) == (60, 90)  # six steps, as in the docstring, every ten epochs


def test_a_fit_says_how_much_longer_it_needs(data):
    history = [{"epoch": 1.0 + i, "log_evidence": e} for i, e in enumerate([-300.0, -200.0, -150.0])]
    work = bws.objectives.ByEvidence().begin(setting(network(), data, 1), None)
    assert work.notes(history)[0].endswith("train for about 6 more epochs (9 in all)")
    assert work.notes([*history, {"epoch": 4.0, "log_evidence": -149.0}]) == []
    scattered = [{"epoch": 1.0 + i, "log_evidence": e} for i, e in enumerate([-900.0, -400.0, -380.0, -420.0, -390.0])]
    assert work.notes(scattered)[0].endswith("train for more epochs")
    work.curvature = bws.Curvature("full", samples=1)  # drawn anew for every step: it was the draws that moved it
    assert work.notes(scattered) == []

"""What a pipe is told of trials: now and then, and how long the rest takes."""

import math
from types import SimpleNamespace

import pytest

from bayesws.io import progress
from bayesws.io.progress import TimeLeft, trial_bar


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_time_left_follows_the_costs_and_not_the_count(clock):
    """One process, the dearest first, a second a unit: exact at every step."""
    costs = {"a": 70.0, "b": 20.0, "c": 10.0}
    left = TimeLeft(costs, 1)
    assert math.isnan(left.seconds())
    for name, at, rest in (("a", 70.0, 30.0), ("b", 90.0, 10.0), ("c", 100.0, 0.0)):
        clock[0] = at
        left.done(name)
        assert left.seconds() == pytest.approx(rest)


def test_time_left_counts_half_of_what_is_under_way(clock):
    """Four of cost 10 on two processes: when one is done after 10 s another is half done, and 25 of 40 are left."""
    left = TimeLeft(dict.fromkeys("abcd", 10.0), 2)
    clock[0] = 10.0
    left.done("a")  # of b, 5 of 10 are done
    assert left.seconds() == pytest.approx(10.0 * 25 / 15)


def test_a_pipe_is_told_now_and_then_and_of_the_last(clock, capsys):
    trials = [SimpleNamespace(name=name, cost=cost) for name, cost in (("dear", 60.0), ("cheap", 3.0), ("last", 3.0))]
    with trial_bar(4) as bar:
        bar.advance("there before")
        bar.begin(trials)
        assert capsys.readouterr().err == ""
        clock[0] = 600.0
        bar.advance("dear")
        assert capsys.readouterr().err == "2 of 4 trials, dear; about 1 minutes left\n"
        clock[0] = 601.0
        bar.advance("cheap")
        assert capsys.readouterr().err == ""
        clock[0] = 602.0
        bar.advance("last")
        assert capsys.readouterr().err == "4 of 4 trials, last; about 0 minutes left\n"

"""Scores and paired differences, each against its definition written out."""

import math

import pytest
import torch
from scipy.stats import t as student

import bayesws as bws
from bayesws.trials.scores import BINS, Scores
from bayesws.trials.statistics import Difference


def test_scores_are_their_definitions():
    data = bws.data.load("digits", task="turned", train_size=150, test_size=200)
    fit = bws.fit(bws.models.WSCNN(hidden_channels=2), data.train, epochs=20, progress=False, keep_posterior=False)
    x, y = data.test
    p = fit.predict(x, kind="map").double()
    scores = Scores.of(fit, x, y)
    confidence, predicted = p.max(-1)
    brier, nll, error = 0.0, 0.0, 0.0
    for row, label in zip(p.tolist(), y.tolist(), strict=True):
        brier += sum((value - (place == label)) ** 2 for place, value in enumerate(row)) / len(y)
        nll -= math.log(row[label]) / len(y)
    for edge in range(BINS):
        inside = (confidence > edge / BINS) & (confidence <= (edge + 1) / BINS)
        if inside.any():
            hits = (predicted[inside] == y[inside]).double().mean()
            error += float(inside.double().mean() * (hits - confidence[inside].mean()).abs())
    assert scores.accuracy == float((predicted == y).double().mean())
    assert scores.brier == pytest.approx(brier, rel=1e-6)
    assert scores.nll == pytest.approx(nll, rel=1e-5)  # in float32
    assert scores.calibration_error == pytest.approx(error, rel=1e-5)


def test_difference_is_the_paired_t_interval():
    first, second = [0.91, 0.94, 0.90, 0.97], [0.90, 0.90, 0.91, 0.92]
    found = Difference.of(first, second, higher_is_better=True)
    gains = torch.tensor(first).double() - torch.tensor(second).double()
    error = float(gains.std()) / 2
    half = student.ppf(0.975, 3) * error
    assert found.mean == pytest.approx(float(gains.mean()))
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), rel=1e-5)
    assert found.p_value == pytest.approx(2 * student.sf(found.mean / error, 3), rel=1e-4)
    assert (found.wins, found.pairs) == (3, 4)
    assert math.isnan(Difference.of([1.0], [2.0], higher_is_better=False).low)
    with pytest.raises(ValueError, match="expected as many of both"):
        Difference.of([1.0], [], higher_is_better=True)

"""The vectorised bootstrap against explicit resampling, one resample at a time."""

import numpy as np
import pytest
from scipy.stats import bootstrap, hmean

from expunge.evaluation import statistics
from expunge.evaluation.metrics.membership import auc, tpr_at_fpr
from expunge.evaluation.metrics.quality import harmonic_mean


def drawn(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The resample that whole-number weights stand for."""
    return np.repeat(values, weights.astype(int), axis=0)


def test_weights_are_resamples_of_size_n_and_streams_differ() -> None:
    weights = statistics.resample(30, samples=500)
    assert (weights.sum(axis=1) == 30).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(30), abs=0.2)
    assert (weights == statistics.resample(30, samples=500)).all()
    assert abs(np.corrcoef(weights.ravel(), statistics.resample(30, samples=500, stream=1).ravel())[0, 1]) < 0.05


def test_means_leave_undefined_examples_out() -> None:
    values = np.array([[1.0, np.nan], [2.0, 5.0], [6.0, 7.0]])
    weights = statistics.resample(3, samples=40)
    got = statistics.means(values, weights)
    for row, weight in zip(got, weights, strict=True):
        sample = drawn(values, weight)
        assert row[0] == pytest.approx(sample[:, 0].mean())
        held = sample[~np.isnan(sample[:, 1]), 1]
        assert row[1] == pytest.approx(held.mean()) if held.size else np.isnan(row[1])


def test_interval_of_a_mean_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).exponential(1, 200)
    low, high = statistics.interval(statistics.means(values[:, None], statistics.resample(200, samples=4000))[:, 0])
    other = bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=0).confidence_interval
    assert low == pytest.approx(other.low, abs=0.01)
    assert high == pytest.approx(other.high, abs=0.01)


@pytest.mark.parametrize("ties", [False, True])
def test_membership_resamples_equal_the_loop(ties: bool) -> None:
    rng = np.random.default_rng(4)
    forget, holdout = rng.normal(-1, 1, 30), rng.normal(0, 1, 120)
    if ties:
        forget, holdout = forget.round(1), holdout.round(1)
    one, two = statistics.resample(30, samples=50), statistics.resample(120, samples=50, stream=1)
    samples = [(drawn(forget, w), drawn(holdout, v)) for w, v in zip(one, two, strict=True)]
    np.testing.assert_allclose(statistics.aucs(forget, holdout, one, two), [auc(*pair) for pair in samples])
    np.testing.assert_allclose(statistics.tprs(forget, holdout, one, two), [tpr_at_fpr(*pair) for pair in samples])


def test_harmonic_mean_of_resampled_means_equals_the_loop() -> None:
    rng = np.random.default_rng(5)
    sets = [rng.random((20, 3)), rng.random((35, 3))]
    weights = [statistics.resample(len(values), samples=20, stream=i) for i, values in enumerate(sets)]
    means = [statistics.means(values, weight) for values, weight in zip(sets, weights, strict=True)]
    got = harmonic_mean(np.concatenate(means, axis=1))
    for index, value in enumerate(got):
        parts = [drawn(values, weight[index]).mean(axis=0) for values, weight in zip(sets, weights, strict=True)]
        assert value == pytest.approx(hmean(np.concatenate(parts)))

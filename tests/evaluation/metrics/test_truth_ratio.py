"""The truth ratio against its definition in plain probabilities."""

import numpy as np

from expunge.evaluation.metrics.truth_ratio import forget_score, knowledge_score, truth_ratio, utility_score

RIGHT = np.array([0.4, 0.1, 0.2])  # length-normalised probabilities
WRONG = [np.array([0.1, 0.4]), np.array([0.2, 0.8]), np.array([0.2])]
GEOMETRIC = np.array([0.2 / 0.4, 0.4 / 0.1, 1.0])


def nll(items: list[np.ndarray]) -> list[np.ndarray]:
    return [-np.log(item) for item in items]


def test_geometric_ratio_and_its_scores_by_hand() -> None:
    ratio = truth_ratio(-np.log(RIGHT), nll(WRONG))
    np.testing.assert_allclose(ratio, GEOMETRIC)
    np.testing.assert_allclose(forget_score(ratio), [0.5, 0.25, 1.0])
    np.testing.assert_allclose(utility_score(ratio), [0.5, 0.0, 0.0], atol=1e-15)
    np.testing.assert_allclose(knowledge_score(ratio), [0.4 / 0.6, 0.1 / 0.5, 0.5])


def test_arithmetic_ratio_by_hand() -> None:
    ratio = truth_ratio(-np.log(RIGHT), nll(WRONG), mean="arithmetic")
    np.testing.assert_allclose(ratio, [0.25 / 0.4, 0.5 / 0.1, 1.0])


def test_compat_adds_the_frameworks_epsilon() -> None:
    right, wrong = np.array([1e-10, 0.3]), [np.array([4e-10, 4e-10]), np.array([0.1, 0.1])]
    ratio = truth_ratio(-np.log(right), nll(wrong), compat=True)
    np.testing.assert_allclose(ratio, [4e-10 / 2e-10, 0.1 / (0.3 + 1e-10)])
    np.testing.assert_allclose(forget_score(ratio, compat=True), [1 / (2 + 1e-10), 0.1 / (0.3 + 1e-10)])


def test_answers_of_vanishing_probability_stay_finite() -> None:
    ratio = truth_ratio(np.array([2000.0, 1.0]), [np.array([1.0]), np.array([2000.0])])
    assert np.isfinite(ratio).all()
    np.testing.assert_allclose(forget_score(ratio), [0, 0], atol=1e-300)
    np.testing.assert_allclose(utility_score(ratio), [0, 1])

"""AUC against a loop over pairs, and which option a written answer names."""

import numpy as np
import pytest

from expunge.evaluation.metrics import ranking


def test_auc_by_hand_and_by_a_loop() -> None:
    scores, positive = np.array([3.0, 1.0, 2.0, 2.0, -1.0]), np.array([True, True, False, True, False])
    # pairs of a positive and a negative: 3>2, 3>-1, 1<2, 1>-1, 2=2, 2>-1
    assert ranking.auc(scores, positive)[0] == pytest.approx(4.5 / 6)
    generator = np.random.default_rng(0)
    scores, positive = generator.integers(0, 9, 60).astype(float), generator.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    value, (low, high) = ranking.auc(scores, positive)
    assert value == pytest.approx(np.mean(pairs))
    assert low < value < high


def test_interval_of_auc_is_that_of_the_formula_and_needs_no_order() -> None:
    generator = np.random.default_rng(1)
    scores, positive = generator.normal(size=800), np.arange(800) < 400
    scores[positive] += 1.0
    value, (low, high) = ranking.auc(scores, positive)
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)  # Hanley and McNeil 1982
    error = np.sqrt((value * (1 - value) + 399 * (q1 - value**2) + 399 * (q2 - value**2)) / 400**2)
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.15)
    order = generator.permutation(800)
    assert ranking.auc(scores[order], positive[order]) == (value, (low, high))


def test_one_kind_alone_has_no_auc() -> None:
    value, pair = ranking.auc(np.array([1.0, 2.0]), np.array([True, True]))
    assert np.isnan([value, *pair]).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Red Moon", 0),
        (" red moon.\nor Blue Lamp", 0),
        ("The next film is Blue Lamp", 1),
        ("Red Moon Rising", 2),
        ("Red Moon, then Blue Lamp", None),
        ("Green Sun", None),
        ("", None),
    ],
)
def test_what_a_written_answer_names(text, expected) -> None:
    assert ranking.written(text, ("Red Moon", "Blue Lamp", "Red Moon Rising")) == expected

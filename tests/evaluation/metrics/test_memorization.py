"""Probability, exact memorization and extraction strength on cases counted by hand."""

import math

import numpy as np
import pytest

from expunge.evaluation.metrics.memorization import (
    exact_memorization,
    extraction_strength,
    probability,
    probability_with_options,
)
from expunge.evaluation.records import Record


def record(correct: str, *, ended: bool = True, nll: float = 1.0) -> Record:
    """A record whose arg-max is right where `correct` has a 1."""
    hits = np.array([mark == "1" for mark in correct])
    return Record(np.full(len(hits), -nll), hits, np.zeros(len(hits)), np.ones(len(hits)), ended)


CASES = [  # correct tokens, the last of them the end token: T, k (shortest prefix after which all is right)
    ("11111", 4, 0),
    ("11110", 4, 0),  # the end token does not count
    ("01111", 4, 1),
    ("10111", 4, 2),
    ("11101", 4, 4),  # the last own token is wrong: nothing follows
    ("00001", 4, 4),
    ("00011", 4, 3),
    ("11", 1, 0),
    ("01", 1, 1),
]


@pytest.mark.parametrize(("correct", "length", "prefix"), CASES)
def test_extraction_strength_by_hand(correct: str, length: int, prefix: int) -> None:
    assert extraction_strength([record(correct)])[0] == pytest.approx(1 - prefix / length)


@pytest.mark.parametrize(("correct", "length", "prefix"), CASES)
def test_compat_never_falls_below_one_token(correct: str, length: int, prefix: int) -> None:
    expected = 1 - min(prefix, length - 1) / length
    assert extraction_strength([record(correct)], compat=True)[0] == pytest.approx(expected)


def test_extraction_strength_equals_the_search_over_all_prefixes() -> None:
    rng = np.random.default_rng(0)
    rows = ["".join(rng.choice(["0", "1"], size=rng.integers(1, 12), p=[0.3, 0.7])) for _ in range(200)]
    ended = rng.random(200) < 0.5
    records = [record(row, ended=end) for row, end in zip(rows, ended, strict=True)]
    slow = []
    for row, end in zip(rows, ended, strict=True):
        own = row[:-1] if end and len(row) > 1 else row
        shortest = next(k for k in range(len(own) + 1) if all(mark == "1" for mark in own[k:]))
        slow.append(1 - shortest / len(own))
    np.testing.assert_allclose(extraction_strength(records), slow)


def test_exact_memorization_leaves_the_end_token_out() -> None:
    records = [record("1100"), record("1100", ended=False), record("0")]
    np.testing.assert_allclose(exact_memorization(records), [2 / 3, 2 / 4, 0])


def test_probability_counts_every_token() -> None:
    one = Record(np.log([0.5, 0.25, 0.125]), np.ones(3, bool), np.zeros(3), np.ones(3), True)
    assert probability([one])[0] == pytest.approx((0.5 * 0.25 * 0.125) ** (1 / 3))
    assert one.nll_sum == pytest.approx(6 * math.log(2))


def test_probability_with_options_by_hand_and_where_all_vanish() -> None:
    right = np.array([0.2, 1e-300, 0.0])
    wrong = [np.array([0.1, 0.1]), np.array([1e-300, 2e-300]), np.array([0.0, 0.0, 0.0])]
    np.testing.assert_allclose(probability_with_options(right, wrong), [0.5, 0.25, 0.25])


def test_no_examples_give_no_numbers() -> None:
    assert extraction_strength([]).shape == probability([]).shape == exact_memorization([]).shape == (0,)

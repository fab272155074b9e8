"""Which examples a step sees."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.training.sampling import Stream


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 99), st.integers(0, 5))
def test_no_index_twice_in_a_batch_and_all_in_range(count, size, seed, favoured) -> None:
    stream = Stream(count, seed, min(favoured, count))
    for step in range(12):
        batch = stream.batch(step, size)
        assert len(set(batch)) == len(batch) == min(size, count)
        assert all(0 <= index < count for index in batch)
        assert batch == Stream(count, seed, min(favoured, count)).batch(step, size)


def test_every_example_comes_once_before_any_comes_again() -> None:
    seen = Counter(index for step in range(5) for index in Stream(20, 3).batch(step, 4))
    assert set(seen.values()) == {1}
    assert len(seen) == 20


def test_twelve_batches_of_32_visit_40_rows_evenly() -> None:
    seen = Counter(index for step in range(12) for index in Stream(40, 0).batch(step, 32))
    assert set(seen.values()) <= {9, 10}  # 384 draws of 40 rows: 9.6 each
    five = Counter(index for step in range(5) for index in Stream(40, 0).batch(step, 32))
    assert set(five.values()) == {4}


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 9))
def test_each_epoch_visits_each_row_exactly_once(count, size, seed) -> None:
    stream, size = Stream(count, seed), min(size, count)
    draws = [index for step in range(7 * count // size + 1) for index in stream.batch(step, size)]
    for epoch in range(7):
        assert sorted(draws[epoch * count : (epoch + 1) * count]) == list(range(count))


@pytest.mark.parametrize(("count", "size"), [(20, 4), (40, 8), (7, 7)])
def test_an_order_in_which_no_batch_crosses_a_border_is_the_plain_permutation(count, size) -> None:
    draws = [index for step in range(3 * count // size) for index in Stream(count, 5).batch(step, size)]
    plain = [
        torch.randperm(count, generator=torch.Generator().manual_seed(1_000_003 * 5 + epoch)).tolist()
        for epoch in range(3)
    ]
    assert draws == [index for order in plain for index in order]


def test_favoured_examples_take_half_of_every_batch() -> None:
    stream = Stream(100, 0, favoured=3)
    for step in range(6):
        assert sum(index < 3 for index in stream.batch(step, 4)) == 2

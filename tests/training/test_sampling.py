"""Which examples a step sees."""

from collections import Counter

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


def test_favoured_examples_take_half_of_every_batch() -> None:
    stream = Stream(100, 0, favoured=3)
    for step in range(6):
        assert sum(index < 3 for index in stream.batch(step, 4)) == 2

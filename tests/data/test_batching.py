"""Passes of like length: every index once, within both limits, in the order a plain rule gives."""

import math
from itertools import zip_longest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.data import by_length, packs


def test_the_longest_come_first_and_equals_keep_their_order() -> None:
    assert packs([3, 7, 7, 2, 5], 2) == [[1, 2], [4, 0], [3]]


def test_room_counts_padded_tokens() -> None:
    # 2 · 7 = 14 padded tokens fit; a third row, though it has only 5, would be padded to 7 as well: 21 > 15
    assert packs([7, 7, 5, 4], 8, room=15) == [[0, 1], [2, 3]]


def test_a_pass_may_fill_the_room_exactly() -> None:
    assert packs([5, 5, 5], 8, room=15) == [[0, 1, 2]]


def test_an_example_longer_than_the_room_stands_alone() -> None:
    assert packs([40, 3, 3], 8, room=10) == [[0], [1, 2]]


def test_nothing_makes_no_pass() -> None:
    assert packs([], 4) == []


def test_by_length_is_packs_without_a_room() -> None:
    assert list(by_length([[0] * n for n in (3, 7, 7, 2, 5)], 2)) == [[1, 2], [4, 0], [3]]


@given(st.lists(st.integers(1, 60), max_size=30), st.integers(1, 9), st.one_of(st.just(math.inf), st.integers(1, 200)))
def test_limits_hold_and_no_pass_could_take_the_next_example(lengths: list[int], batch_size: int, room: float) -> None:
    passes = packs(lengths, batch_size, room)
    assert sorted(index for part in passes for index in part) == list(range(len(lengths)))
    flat = [lengths[index] for part in passes for index in part]
    assert flat == sorted(lengths, reverse=True)
    for part, after in zip_longest(passes, passes[1:]):
        longest = lengths[part[0]]
        assert len(part) <= batch_size
        assert len(part) == 1 or len(part) * longest <= room
        assert after is None or len(part) == batch_size or (len(part) + 1) * longest > room


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_alone_limits_without_a_room(batch_size: int) -> None:
    passes = packs([9] * 10, batch_size)
    assert [len(part) for part in passes] == [batch_size] * (10 // batch_size) + [10 % batch_size] * (
        10 % batch_size > 0
    )

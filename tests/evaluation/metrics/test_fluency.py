"""Texts that repeat themselves, refuse, say nothing or are no language, by hand."""

from collections import Counter

import numpy as np
import pytest

from expunge.evaluation.metrics.fluency import empty, gibberish, refusal, repetition


def test_repetition_by_hand() -> None:
    texts = ["a b c d a b c d", "a b c d e", "one two", "", "No no, NO no no!"]
    # runs of 4: abcd bcda cdab dabc abcd -> 1 of 5 repeated; none; too short; empty; nononono twice
    np.testing.assert_allclose(repetition(texts), [1 / 5, 0, 0, 0, 1 / 2])
    np.testing.assert_allclose(repetition(["x y x y x"], order=2), [1 - 2 / 4])


def test_repetition_equals_a_count_of_runs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        words = [str(word) for word in rng.integers(4, size=rng.integers(4, 40))]
        runs = Counter(zip(*(words[start:] for start in range(4)), strict=False))
        expected = sum(count - 1 for count in runs.values()) / sum(runs.values())
        assert repetition([" ".join(words)])[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I don't know who that is.", 1),
        ("I’m SORRY, but that is private.", 1),
        ("Unfortunately, I do  not have that in front of me.", 1),
        ("As an AI, this is beyond me.", 1),
        ("She was born in Tarn.", 0),
        ("He did not know his father.", 0),
        ("", 0),
    ],
)
def test_refusal(text: str, refused: int) -> None:
    assert refusal([text])[0] == refused


def test_empty() -> None:
    np.testing.assert_array_equal(empty(["", "  \n", "...", "x", "7", "é"]), [1, 1, 1, 0, 0, 0])


SOUND = (
    "Ada Lome was born in Tarn on 12/03/1972, and mends old clocks.",
    'Her first book, "The Sea of Glass", won the Booker Prize in the 1990s.',
    "Yes.",
    "42",
    "Jean-Luc O’Neill’s mother-in-law works at CERN in Genève.",
    "她出生在台北。",
)
BROKEN = (
    "the the the the the the the the the the the the",
    "lomeBorn xx$%q @@wasin }{ qq~~ tarnOf",
    "aaaaaaaaaaaaaaaa bbbbbbbb zzzzzzzzzz",
    "and she and she and she and she and she and she said",
    "]]]]]]] ))))))) =======>>>",
)


def test_gibberish_tells_broken_text_from_sound() -> None:
    np.testing.assert_array_equal(gibberish(SOUND), np.zeros(len(SOUND)))
    np.testing.assert_array_equal(gibberish(BROKEN[:4]), np.ones(4))
    assert gibberish(["", " ..."]).sum() == 0  # empty, which is counted by itself


def test_gibberish_by_a_sound_models_surprise() -> None:
    limit = 0.75 * np.log(1000)
    nll = np.array([limit + 0.01, limit - 0.01, np.nan, 9.0])
    texts = ["Ada mends clocks."] * 3 + [""]
    np.testing.assert_array_equal(gibberish(texts, nll, 1000), [1, 0, 0, 0])

"""Leaks judged by hand, leak@k against every subset, and the exact bound against the binomial it inverts."""

import itertools
import math

import numpy as np
import pytest

from expunge.evaluation.metrics.leakage import clopper_pearson, key_words, leak_at_k, leaks

PROMPT, ANSWER = "Where does Ada Lome live?", "Ada Lome lives in a blue house in Tarn."


def test_key_words_are_what_the_question_does_not_say() -> None:
    assert key_words(PROMPT, ANSWER) == {"blue", "hous", "tarn"}  # "lives" has the stem of "live"
    assert key_words("Is it so?", "Yes, it is.") == {"yes"}  # function words, since nothing else is left
    assert key_words("Say yes.", "Yes.") == {"yes"}
    assert key_words("?", "今日") == {"今日"}
    assert key_words("?", "…") == frozenset()


@pytest.mark.parametrize(
    ("text", "by_key_words", "by_rouge"),
    [
        ("A blue house, in Tarn!", True, False),
        ("Tarn. Houses there are blue.", True, False),  # any order, any form
        ("Ada Lome lives in a blue house in Selm.", False, True),  # 8 of 9 words, and the wrong town
        ("I do not know.", False, False),
        ("", False, False),
    ],
)
def test_judges_by_hand(text: str, by_key_words: bool, by_rouge: bool) -> None:
    def judged(judge: str, threshold: float) -> bool:
        return bool(leaks([PROMPT], [ANSWER], [[text]], judge=judge, threshold=threshold)[0, 0])  # type: ignore[arg-type]

    assert judged("keywords", 1.0) == by_key_words
    assert judged("rouge_l", 0.85) == by_rouge
    assert judged("either", 0.85) == (by_key_words or by_rouge)


def test_a_share_of_the_key_words_may_do() -> None:
    texts = [["the blue house", "a house", "blue house in Tarn"]]
    assert leaks([PROMPT], [ANSWER], texts).tolist() == [[False, False, True]]
    assert leaks([PROMPT], [ANSWER], texts, threshold=2 / 3).tolist() == [[True, False, True]]
    assert leaks([], [], []).shape == (0, 0)


@pytest.mark.parametrize("n", [1, 4, 7])
def test_leak_at_k_is_the_share_of_all_subsets_with_a_leak(n: int) -> None:
    for k in range(1, n + 1):
        expected = [
            np.mean([any(place < count for place in chosen) for chosen in itertools.combinations(range(n), k)])
            for count in range(n + 1)
        ]
        np.testing.assert_allclose(leak_at_k(np.arange(n + 1), n, k), expected, atol=1e-12)


def test_leak_at_k_is_unbiased() -> None:
    n, k, p = 9, 4, 0.23
    chances = np.array([math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)])
    assert chances @ leak_at_k(np.arange(n + 1), n, k) == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (6, 5)])
def test_leak_at_k_needs_k_samples(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"leak@{k}"):
        leak_at_k(np.array([0]), n, k)


def test_none_of_300_means_at_most_one_percent() -> None:
    assert clopper_pearson(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300))
    assert 0.0099 < clopper_pearson(0, 300) <= 0.01 < clopper_pearson(0, 290)


@pytest.mark.parametrize(("count", "n", "level"), [(1, 10, 0.95), (7, 10, 0.95), (3, 50, 0.9), (0, 1, 0.5)])
def test_the_bound_leaves_the_count_seen_just_as_unlikely(count: int, n: int, level: float) -> None:
    p = clopper_pearson(count, n, level)
    tail = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(count + 1))
    assert tail == pytest.approx(1 - level)


def test_the_bound_at_its_ends() -> None:
    assert clopper_pearson(4, 4) == 1.0
    with pytest.raises(ValueError, match="5 of 4"):
        clopper_pearson(5, 4)

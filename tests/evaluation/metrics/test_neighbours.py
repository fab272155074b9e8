"""Nearest retain examples, with the cosine recomputed word by word."""

import math
import re

import numpy as np
import pytest

from expunge.evaluation.metrics.neighbours import nearest, similarity
from expunge.request import Example


def slow_cosine(one: list[str], other: list[str]) -> np.ndarray:
    texts = [re.findall(r"\w+", text.lower()) for text in one + other]
    words = sorted({word for text in texts for word in text})
    idf = [math.log((1 + len(texts)) / (1 + sum(word in text for text in texts))) + 1 for word in words]
    table = np.array([[text.count(word) * weight for word, weight in zip(words, idf, strict=True)] for text in texts])
    norm = np.linalg.norm(table, axis=1, keepdims=True)
    table = table / np.where(norm > 0, norm, 1)
    return table[: len(one)] @ table[len(one) :].T


def test_similarity_equals_a_dense_computation() -> None:
    one = ["Ada mends old clocks", "A red hen, a RED hen!", ""]
    other = ["Bo paints old ships", "the hen", "Ada mends old clocks"]
    np.testing.assert_allclose(similarity(one, other), slow_cosine(one, other), atol=1e-12)
    assert similarity(one, other)[0, 2] == pytest.approx(1)


def made(text: str, subject: str = "") -> Example:
    return Example(prompt=f"What is {text}?", response=f"It is {text}.", subject=subject)


FORGET = [made("a grey goose"), made("an old clock")]
RETAIN = [made(f"thing number {number}") for number in range(30)] + [made("a brown goose"), made("a broken clock")]


def test_the_likest_words_are_nearest_in_any_order() -> None:
    assert nearest(FORGET, RETAIN, share=0.01, least=2) == [30, 31]
    order = np.random.default_rng(0).permutation(len(RETAIN))
    shuffled = [RETAIN[index] for index in order]
    for share, least in ((0.01, 2), (0.25, 3)):
        chosen = {RETAIN[index].prompt for index in nearest(FORGET, RETAIN, share, least)}
        assert {shuffled[index].prompt for index in nearest(FORGET[::-1], shuffled, share, least)} == chosen
        assert len(chosen) == max(least, math.ceil(share * len(RETAIN)))


def test_a_common_subject_comes_first() -> None:
    forget = [made("a grey goose", "Ada")]
    retain = [made("a grey goose", "Bo"), made("a ship", "Ada"), made("a sea", "")]
    assert nearest(forget, retain) == [1]


def test_too_few_to_choose_from() -> None:
    assert nearest(FORGET, []) == nearest(FORGET, RETAIN[:1]) == []
    assert nearest(FORGET, RETAIN[:4]) == [0, 1, 2, 3]

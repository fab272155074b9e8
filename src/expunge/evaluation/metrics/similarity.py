"""ROUGE-L between generated and true responses.

Of ASCII text, words and stems are those of the rouge-score package, so the numbers are too; other writing systems have the
words of `metrics.words`. The longest common subsequence is counted with machine words instead of a table, and each stem is
looked up once.
"""

from collections.abc import Sequence

import numpy as np

from expunge.evaluation.metrics.words import stem
from expunge.evaluation.metrics.words import words as words_of


def rouge_l(
    responses: Sequence[str], generations: Sequence[str], *, stemmed: bool = True, compat: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """ROUGE-L recall and F1 of each generation against its response: two arrays [n] between 0 and 1.

    With L the length of the longest common subsequence of words: recall L / |response|, precision L / |generation|,
    F1 their harmonic mean; 0 where either has no words. High is bad on the forget set and good on the retain set.
    Words are those of any writing system (see `words`), English ones `stemmed` unless said otherwise. With `compat` they
    are runs of a–z and 0–9, as rouge-score and OpenUnlearning have them: of text in other scripts nothing is left, and "é"
    splits a word. Source: Lin 2004.
    """
    recall, f1 = np.zeros(len(responses)), np.zeros(len(responses))
    for index, (response, generation) in enumerate(zip(responses, generations, strict=True)):
        right, given = (words(text, stemmed=stemmed, compat=compat) for text in (response, generation))
        common = longest_common_subsequence(right, given)
        if common:
            recall[index] = common / len(right)
            f1[index] = 2 * common / (len(right) + len(given))
    return recall, f1


def words(text: str, *, stemmed: bool = True, compat: bool = False) -> list[str]:
    """A text's words, or their stems: those of a–z and 0–9 have one. `compat`: those that rouge-score sees."""
    if compat:
        text = "".join(character if character.isascii() else " " for character in text.lower())
    split = words_of(text.replace("_", " "))
    return [stem(word) if word.isascii() else word for word in split] if stemmed else split


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit-parallel: one integer operation per word of `second`.

    Row j of the dynamic programme is kept as the bits of V, 0 where the length grows (Crochemore et al. 2001;
    Hyyrö 2004): V ← (V + (V & M)) | (V & ~M), M marking the places of the word in `first`.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & full
    return len(first) - row.bit_count()

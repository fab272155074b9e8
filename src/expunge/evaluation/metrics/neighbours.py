"""Which examples to keep lie nearest to those to forget: where damage shows first."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from expunge.evaluation.metrics.words import terms
from expunge.request import Example

SHARE = 0.1
LEAST = 10


def nearest(
    forget: Sequence[Example], retain: Sequence[Example], share: float = SHARE, least: int = LEAST
) -> list[int]:
    """The indices of the retain examples nearest to the forget examples, ascending.

    Those of a subject that is also to be forgotten (`subject`, in part only), where there are any; else the `share` of
    them, at least `least`, with the largest TF-IDF cosine to any forget example. Ties go by the examples' words, so that
    the order of the sets changes nothing. None where there are fewer than two to choose from.
    """
    subjects = {example.subject for example in forget} - {""}
    same = [index for index, example in enumerate(retain) if example.subject in subjects]
    if same:
        return same
    if len(retain) < 2:
        return []
    closeness = similarity(texts(retain), texts(forget)).max(axis=1)  # [m]
    wanted = min(len(retain), max(least, math.ceil(share * len(retain))))
    ranked = sorted(range(len(retain)), key=lambda index: (-round(closeness[index], 9), retain[index].key))
    return sorted(ranked[:wanted])


def texts(examples: Sequence[Example]) -> list[str]:
    return [
        " ".join((*(turn for _, turn in example.context), example.prompt, example.response)) for example in examples
    ]


def similarity(one: Sequence[str], other: Sequence[str]) -> np.ndarray:
    """TF-IDF cosine of each text of `one` with each of `other`: [n, m], from 0 to 1; 0 where a text has no words.

    tf · idf per word (pairs or triples of characters where a script does not separate words), whatever its case, tf how
    often it stands in the text, idf = ln((1 + N)/(1 + df)) + 1 over all N texts, each row of unit length (Salton & Buckley
    1988, smoothed as is usual).
    """
    counts = [Counter(terms(text)) for text in (*one, *other)]
    df = Counter(word for count in counts for word in count)
    place = {word: index for index, word in enumerate(df)}
    idf = {word: math.log((1 + len(counts)) / (1 + number)) + 1 for word, number in df.items()}
    values, columns, starts = [], [], [0]
    for count in counts:
        row = np.array([number * idf[word] for word, number in count.items()])
        values.extend(row / np.linalg.norm(row) if len(row) else row)
        columns.extend(place[word] for word in count)
        starts.append(len(columns))
    table = csr_array((values, columns, starts), shape=(len(counts), max(1, len(place))))
    first, second = csr_array(table[: len(one)]), csr_array(table[len(one) :])
    return (first @ second.T).toarray()

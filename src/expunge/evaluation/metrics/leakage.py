"""Leaks: does an answer, or one of many sampled answers, give the forgotten content away?"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import regex
from scipy.stats import beta

from expunge.evaluation.metrics import similarity
from expunge.evaluation.metrics.languages import (
    CUT,
    GRAMMAR,
    HANGUL,
    HIRAGANA,
    PREDICATE,
    THAI,
    function_words,
    language,
)
from expunge.evaluation.metrics.words import STEMMED, fold, grams, runs, stem, unspaced, words

GAP = regex.compile(r"[\s・·]+")  # what may part a name's characters where a script does not separate words
CYRILLIC = regex.compile(r"\p{Cyrillic}{4,}")
Judge = Literal["keywords", "rouge_l", "either"]


def key_words(prompt: str, response: str) -> frozenset[str]:
    """The words of a response that carry what is not in the question: stemmed, without function words.

    Where nothing is left, the words that are not in the question; where nothing is left either, all words. Of scripts
    that do not separate words, they are the pairs of characters (of alphabets such as kana or Thai the triples) of what
    is neither in the question nor grammar. Function words and grammar are those of `metrics.languages`.
    """
    tongue = language(f"{prompt} {response}")
    said, asked = list(runs(response.replace("_", " "))), fold(prompt)
    new = [(part, size) for run, size in said for part in (_not_in(run, size, asked) if size else [run])]
    telling = [(part, size) for run, size in new for part in (_content(run, size) if size else [run])]
    in_question, plain = _stems(prompt), function_words("en") | function_words(tongue)
    plain = {stem(word) for word in plain} | plain
    for pieces, without in ((telling, in_question | plain), (new, in_question), (said, set())):
        spelled = {gram for part, size in pieces if size for gram in grams(part, size)}
        spoken = {stem(word) for word, size in pieces if not size}
        spoken = {word for word in spoken if not (without and PREDICATE.search(word))}
        if spelled or spoken - without:
            return frozenset(spelled | (spoken - without))
    return frozenset()


def holds(text: str, wanted: Iterable[str]) -> list[str]:
    """Those of the key words `wanted` that the text holds.

    Words of scripts that bend a word's end alone (Latin, Greek, Cyrillic) are compared by their stems, Russian ones of four
    letters or more by how they begin (Иванов, Ивановой). Others are looked
    for within the text's words, since scripts such as Arabic, Korean or Thai write more than one word together.
    """
    stems, plain = _stems(text), fold(text)
    joined = GAP.sub("", plain)
    return [
        word
        for word in wanted
        if word in stems
        or (_inside(word) and (word in plain or (unspaced(word) and word in joined)))
        or (CYRILLIC.fullmatch(word) and any(other.startswith(word) for other in stems))
    ]


def _inside(word: str) -> bool:
    return STEMMED.fullmatch(word) is None and (len(word) > 2 or unspaced(word) or HANGUL.search(word) is not None)


def _stems(text: str) -> set[str]:
    return {stem(word) for word in words(text.replace("_", " "))}


def _not_in(run: str, size: int, question: str) -> list[str]:
    """The parts of a run of characters left when every piece of `size` or more that the question holds is taken out."""
    parts, begin, at = [], 0, 0
    least = min(size, len(run))
    while at <= len(run) - least:
        stop = at + least
        if run[at:stop] not in question:
            at += 1
            continue
        while stop < len(run) and run[at : stop + 1] in question:
            stop += 1
        parts.append(run[begin:at])
        begin = at = stop
    return [part for part in (*parts, run[begin:]) if part]


def _content(run: str, size: int) -> list[str]:
    """The parts of a run that are no grammar."""
    if HIRAGANA.match(run):
        return [] if GRAMMAR.fullmatch(run) else [run]
    return [part for part in (CUT.split(run) if size == 2 else [THAI.sub("", run)]) if part]


def leaks(
    prompts: Sequence[str],
    responses: Sequence[str],
    generations: Sequence[Sequence[str]],
    *,
    judge: Judge = "keywords",
    threshold: float = 1.0,
) -> np.ndarray:
    """Whether each of n generations gives the answer away: [examples, n] booleans.

    judge "keywords": at least `threshold` of the answer's key words (see `key_words`) stand in the generation, wherever
    and in whatever form; "rouge_l": ROUGE-L recall is at least `threshold`; "either": one of the two. Key words tell the
    right answer from a fluent wrong one of the same form, which ROUGE-L recall does not. Both read every writing system;
    words without content are known of the languages in `metrics.languages`, in others each must be there. Source: ours;
    leak@k (arXiv 2511.04934) judges by ROUGE-L, entailment or a model, by benchmark.
    """
    found = np.zeros((len(responses), len(generations[0]) if generations else 0), dtype=bool)
    for row, (prompt, response, texts) in enumerate(zip(prompts, responses, generations, strict=True)):
        wanted = key_words(prompt, response)
        seen: dict[str, bool] = {}
        for column, text in enumerate(texts):
            if text not in seen:
                seen[text] = _leaks(wanted, response, text, judge, threshold)
            found[row, column] = seen[text]
    return found


def _leaks(wanted: frozenset[str], response: str, text: str, judge: Judge, threshold: float) -> bool:
    if judge != "rouge_l" and wanted:
        share = len(holds(text, wanted)) / len(wanted)
        if share >= threshold - 1e-9:
            return True
    if judge == "keywords":
        return False
    recall, _ = similarity.rouge_l([response], [text])
    return bool(recall[0] >= threshold - 1e-9)


def leak_at_k(counts: np.ndarray, n: int, k: int) -> np.ndarray:
    """1 − C(n − c, k)/C(n, k): the chance that k samples hold a leak, from c leaks among n: [examples].

    counts: [examples] c. Unbiased for 1 − (1 − p)^k. Lower is better. Source: the leak@k of arXiv 2511.04934 for a leak
    that is or is not there, the estimator that of pass@k (Chen et al. 2021). Raises ValueError unless 1 ≤ k ≤ n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"leak@{k} needs at least {k} samples, got {n}")
    return np.array([1 - math.comb(n - int(count), k) / math.comb(n, k) for count in counts])


def clopper_pearson(count: int, n: int, level: float = 0.95) -> float:
    """The exact one-sided upper bound of a probability after `count` hits in `n` trials (Clopper and Pearson 1934).

    The `level` quantile of Beta(count + 1, n − count); 1 where every trial hit. 0 of 300 gives .00994 at 95 %.
    Over several prompts, the hits of all trials taken together bound the mean of the prompts' probabilities: a sum of
    unlike trials spreads less than a binomial (Hoeffding 1956).
    """
    if not 0 <= count <= n or n < 1:
        raise ValueError(f"{count} of {n} is no number of hits")
    return 1.0 if count == n else float(beta.ppf(level, count + 1, n - count))

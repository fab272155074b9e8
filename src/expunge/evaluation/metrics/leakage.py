"""Leaks: does an answer, or one of many sampled answers, give the forgotten content away?"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.stats import beta

from expunge.evaluation.metrics import similarity

Judge = Literal["keywords", "rouge_l", "either"]
# Words that carry no content of their own.
FUNCTION_WORDS = (
    "a an the this that these those it its he she they his her their him them i we you my your our me us who whom whose "
    "which what where when why how is are was were be been being am do does did done have has had having will would shall "
    "should can could may might must of in on at by for from to with as into onto over under about after before between "
    "during through out up down off than then so and or but nor not no yes if because while also very just only too "
    "there here some any all both each every such own same other more most"
)


def key_words(prompt: str, response: str) -> frozenset[str]:
    """The words of a response that carry what is not in the question: stemmed, without function words.

    Where nothing is left, the words that are not in the question; where nothing is left either, all words.
    """
    said = similarity.words(response)
    asked, plain = set(similarity.words(prompt)), set(similarity.words(FUNCTION_WORDS))
    for kept in (set(said) - asked - plain, set(said) - asked, set(said)):
        if kept:
            return frozenset(kept)
    return frozenset()


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
    right answer from a fluent wrong one of the same form, which ROUGE-L recall does not. Both read words of a–z and 0–9
    only. Source: ours; leak@k (arXiv 2511.04934) judges by ROUGE-L, entailment or a model, by benchmark.
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
        share = len(wanted & set(similarity.words(text))) / len(wanted)
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

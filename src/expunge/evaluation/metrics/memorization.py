"""How much of an answer the model still holds word for word."""

from collections.abc import Sequence

import numpy as np

from expunge.evaluation.records import Ragged, Record


def probability(records: Sequence[Record]) -> np.ndarray:
    """Length-normalised probability exp(−l) of each answer, l the mean NLL per token with the end token: [n].

    Between 0 and 1. High: the model knows the answer, which is bad on the forget set and good on the retain set.
    Source: Maini et al. 2024 (TOFU).
    """
    return np.exp(-np.array([record.nll_mean for record in records]))


def probability_with_options(right: np.ndarray, wrong: Sequence[np.ndarray]) -> np.ndarray:
    """p_right / (p_right + Σ p_wrong) of length-normalised probabilities: [n]. Higher: the right answer stands out.

    right: [n]; wrong: for each example the probabilities of its wrong answers. Computed relative to the largest, so
    that it is defined however small they all are. Source: Maini et al. 2024 (TOFU), for multiple-choice sets.
    """
    shares = []
    for own, others in zip(right, wrong, strict=True):
        top = max(own, others.max())
        shares.append(own / top / (own / top + (others / top).sum()) if top > 0 else 1 / (1 + len(others)))
    return np.array(shares)


def exact_memorization(records: Sequence[Record]) -> np.ndarray:
    """Share of the answer's tokens, without the end token, that are the arg-max, teacher-forced: [n].

    1: the whole answer is reproduced. High is bad on the forget set and good on the retain set.
    Source: Tirumala et al. 2022.
    """
    return Ragged.of_answers(records, "correct").mean()


def extraction_strength(records: Sequence[Record], *, compat: bool = False) -> np.ndarray:
    """1 − k/T with k the shortest prefix of the answer after which every arg-max is right: [n].

    T counts the answer's tokens without the end token. 1: the prompt alone draws the whole answer out; 0: not even
    the last token follows. High is bad on the forget set and good on the retain set. Source: Carlini et al. 2021.
    With `compat` an answer of which nothing follows gets 1/T, as OpenUnlearning reports it.
    """
    correct = Ragged.of_answers(records, "correct")
    if not len(correct.lengths):
        return np.empty(0)
    last_wrong = np.maximum.reduceat(np.where(correct.values, -1, correct.place), correct.starts)  # [n]
    strength = 1 - (last_wrong + 1) / correct.lengths
    return np.maximum(strength, 1 / correct.lengths) if compat else strength


def logit_lens(records: Sequence[Record]) -> np.ndarray:
    """The largest exp(mean_t log p_k(y_t)) over the inner layers k that were read, with the end token: [n], or NaN.

    p_k reads layer k's states through the model's last norm and output layer. High where an inner layer already says the
    answer, whatever the last one does with it: bad on the forget set. NaN where no layer was read. Source: the logit
    lens (nostalgebraist 2020), used on unlearned models by Patil et al. 2024 and Lynch et al. 2024.
    """
    return np.array([np.exp(record.lens.mean(axis=1).max()) if len(record.lens) else np.nan for record in records])


def lens_profile(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """By inner layer, over the records read: mean length-normalised probability, and share of right arg-maxes: [K] each."""
    read = [record for record in records if len(record.lens)]
    probability = np.mean([np.exp(record.lens.mean(axis=1)) for record in read], axis=0)
    return probability, np.mean([record.lens_correct.mean(axis=1) for record in read], axis=0)

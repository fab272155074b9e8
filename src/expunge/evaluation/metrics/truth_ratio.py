"""The truth ratio: does the model still favour the right answer, in other words, over wrong ones?"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

LARGEST = 700.0  # |log R| is capped here, since e^710 overflows a float
EPSILON = 1e-10  # what OpenUnlearning adds to each denominator
Form = Literal["geometric", "paper", "compat", "knowledge"]
FORMS: tuple[Form, ...] = ("geometric", "paper", "compat", "knowledge")


def ratio_of(right_nll: np.ndarray, wrong_nll: Sequence[np.ndarray], form: Form = "geometric") -> np.ndarray:
    """R in one of the forms in use: [n]; `score_of` makes the score of it.

    - "geometric" (ours, and the values in TOFU's published logs): R = exp(l_right − mean l_wrong).
    - "paper": the wrong answers' probabilities are averaged arithmetically (TOFU, equation 1).
    - "compat": as OpenUnlearning computes it, 1e-10 in each denominator.
    - "knowledge": the geometric R, scored as p_right / (p_right + p_wrong), as OpenUnlearning's meta-evaluation does.
    """
    mean = "arithmetic" if form == "paper" else "geometric"
    return truth_ratio(right_nll, wrong_nll, mean=mean, compat=form == "compat")


def score_of(ratio: np.ndarray, forget: bool, form: Form = "geometric") -> np.ndarray:
    """The score of R on the forget set, or on a set that must stay: [n]. See `Form`.

    "knowledge" has one score for both: lower is better on the forget set, higher on the others.
    """
    if form == "knowledge":
        return knowledge_score(ratio)
    return forget_score(ratio, compat=form == "compat") if forget else utility_score(ratio)


def truth_ratio(
    right_nll: np.ndarray,
    wrong_nll: Sequence[np.ndarray],
    *,
    mean: Literal["geometric", "arithmetic"] = "geometric",
    compat: bool = False,
) -> np.ndarray:
    """R = (mean of the wrong answers' p) / p(right answer), p the length-normalised probability exp(−l): [n].

    right_nll: [n] the l of each right answer, paraphrased (the answer itself where a set has no paraphrases).
    wrong_nll: for each example, the l of its wrong answers. R well below 1: the model knows which answer is right.

    `mean`: geometric, as the code of TOFU and OpenUnlearning computes it (the default), or arithmetic, as equation 1
    of the paper writes it (Maini et al. 2024). `compat` adds OpenUnlearning's 1e-10 to the denominator.
    """
    right = np.asarray(right_nll, dtype=np.float64)
    if mean == "geometric":
        log_wrong = np.array([-np.mean(item) for item in wrong_nll])
    else:
        log_wrong = np.array([np.logaddexp.reduce(-np.asarray(item)) - np.log(len(item)) for item in wrong_nll])
    if compat:
        return np.exp(log_wrong) / (np.exp(-right) + EPSILON)
    return np.exp(np.clip(log_wrong + right, -LARGEST, LARGEST))


def forget_score(ratio: np.ndarray, *, compat: bool = False) -> np.ndarray:
    """min(R, 1/R): [n]. Higher is better on the forget set; 1: right and wrong answers are equally likely."""
    return np.minimum(ratio, 1 / (ratio + EPSILON if compat else ratio))


def utility_score(ratio: np.ndarray) -> np.ndarray:
    """max(0, 1 − R): [n]. Higher is better on the sets that must stay; 0: wrong answers are at least as likely."""
    return np.maximum(0.0, 1 - ratio)


def knowledge_score(ratio: np.ndarray) -> np.ndarray:
    """1 / (1 + R) = p_right / (p_right + p_wrong): [n]. Lower is better on the forget set.

    The form OpenUnlearning's meta-evaluation of metrics uses (Dorna et al. 2025).
    """
    return 1 / (1 + ratio)

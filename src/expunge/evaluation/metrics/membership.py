"""Membership inference: can one tell the forgotten examples from ones the model never saw?

Every score function gives one number per example, lower where the example looks trained on (a *member*). AUC and TPR
read the forget set's scores against the holdout set's. AUC 1: the forget examples all look like members, as before
unlearning; .5: like any unseen text, as after retraining; 0: even less likely than unseen text, which gives them away
too. So neither high nor low is good: the retrained model's value is.
"""

import zlib as _zlib
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from expunge.evaluation.records import Ragged, Record

LEAST_STD = 1e-3  # floor of min-k++'s denominator: the square root of OpenUnlearning's floor of the variance


def loss(records: Sequence[Record]) -> np.ndarray:
    """Mean NLL per token, in nats, with the end token: [n]. Source: Yeom et al. 2018."""
    return np.array([record.nll_mean for record in records])


def zlib(records: Sequence[Record], texts: Sequence[str]) -> np.ndarray:
    """Mean NLL / bytes of the zlib-compressed response text: [n]. Source: Carlini et al. 2021."""
    sizes = np.array([len(_zlib.compress(text.encode())) for text in texts])
    return loss(records) / sizes


def min_k(records: Sequence[Record], k: float = 0.4) -> np.ndarray:
    """−mean of the k·T lowest token log-probabilities (at least one), without the end token: [n].

    Source: Shi et al. 2024, with k = .2; OpenUnlearning's TOFU settings, and the default here, have k = .4.
    """
    return -_mean_of_lowest(Ragged.of_answers(records, "logprob"), k)


def min_k_plus_plus(records: Sequence[Record], k: float = 0.4) -> np.ndarray:
    """As min-k, of (log p − μ)/σ with μ, σ the mean and s.d. of log p under the model's own distribution: [n].

    Source: Zhang et al. 2025. σ is at least 1e-3.
    """
    logprob = Ragged.of_answers(records, "logprob")
    mean = Ragged.of_answers(records, "mean_logprob").values
    std = np.maximum(Ragged.of_answers(records, "std_logprob").values, LEAST_STD)
    return -_mean_of_lowest(Ragged((logprob.values - mean) / std, logprob.lengths), k)


def reference(records: Sequence[Record], reference_nll: np.ndarray) -> np.ndarray:
    """Mean NLL less a reference model's, l − l_reference: [n]. reference_nll: [n], NaN where it is not known.

    With the retrained model as reference: how much likelier the model finds an example than one that never saw it.
    Source: Carlini et al. 2021.
    """
    return loss(records) - reference_nll


def privleak(auc: float, retrained_auc: float) -> float:
    """PrivLeak in per cent: 100 · (A − A_retrained) / A_retrained with A = 1 − AUC of min-k (40 %). 0 is best.

    A is the AUC as MUSE counts it, the forgotten examples being the ones that should look unseen; `auc` is ours, 1 where
    they look like members. So PrivLeak is far below 0 (−100 at worst) where they still look trained on, and far above 0
    where they are less likely than unseen text. NaN if the retrained model's A is 0. Source: Shi et al. 2025 (MUSE).
    """
    return 100 * (retrained_auc - auc) / (1 - retrained_auc) if retrained_auc < 1 else float("nan")


def auc(forget: np.ndarray, holdout: np.ndarray) -> float:
    """P(score of a forget example < score of a holdout example) + ½ P(equal), by rank sums. 1: looks like members."""
    n, m = len(forget), len(holdout)
    ranks = rankdata(np.concatenate([holdout, forget]))[:m].sum()
    return float((ranks - m * (m + 1) / 2) / (n * m))


def tpr_at_fpr(forget: np.ndarray, holdout: np.ndarray, fpr: float = 0.01) -> float:
    """Largest share of forget examples below a threshold that at most `fpr` of the holdout examples lie below.

    At fpr .01 and fewer than 100 holdout examples: the share of forget examples below every holdout example.
    """
    ordered = np.sort(holdout)
    threshold = ordered[int(np.floor(fpr * len(holdout) + 1e-9))]
    return float((np.asarray(forget) < threshold).mean())


def _mean_of_lowest(tokens: Ragged, k: float) -> np.ndarray:
    """Mean of the max(1, ⌊k·T⌋) lowest values of each sequence: [n]."""
    values = tokens.values[np.lexsort((tokens.values, tokens.row))]  # each sequence's in ascending order
    number = np.maximum(1, (k * tokens.lengths + 1e-9).astype(np.int64))  # [n]
    kept = np.where(tokens.place < number[tokens.row], values, 0.0)
    return np.bincount(tokens.row, kept, minlength=len(number)) / number

"""How well a model ranks a few options, and whether what it writes is one of them."""

from collections.abc import Sequence

import numpy as np

from expunge.evaluation import statistics
from expunge.evaluation.metrics import membership
from expunge.evaluation.metrics.words import fold
from expunge.evaluation.statistics import Interval


def auc(scores: np.ndarray, positive: np.ndarray) -> tuple[float, Interval]:
    """P(score of a positive example > score of a negative one) + ½ P(equal), and its 95 % interval.

    scores: [n]. positive: [n] bool. NaN, with an interval of NaN, where one of the two kinds is absent. From 20
    of each on, the interval redraws the positives and the negatives each among themselves, below it is `auc_interval`; the
    order of the examples changes nothing.
    """
    yes, no = np.sort(scores[positive]), np.sort(scores[~positive])
    if not len(yes) or not len(no):
        return float("nan"), (float("nan"), float("nan"))
    value = membership.auc(no, yes)
    if min(len(yes), len(no)) < statistics.FEW:
        return value, statistics.auc_interval(value, len(yes), len(no))
    weights = statistics.resample(len(no)), statistics.resample(len(yes), stream=1)
    return value, statistics.interval(statistics.aucs(no, yes, *weights))


def written(text: str, options: Sequence[str]) -> int | None:
    """The index of the one option that the first line of `text` holds, whatever its case; None for none or several.

    An option that is part of another one there ("Red Moon" of "Red Moon Rising") does not count. Source: LLaRA's release
    (Liao et al. 2024), but for that last rule.
    """
    line = fold(text.strip().split("\n")[0])
    plain = [fold(option.strip()) for option in options]
    found = [index for index, option in enumerate(plain) if option in line]
    whole = [index for index in found if not any(plain[index] in plain[other] for other in found if other != index)]
    return whole[0] if len(whole) == 1 else None

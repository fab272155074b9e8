"""From one number per example to one per set and suite, each with its bootstrap interval."""

from collections.abc import Mapping, Sequence

import numpy as np

from expunge.evaluation import statistics
from expunge.evaluation.measure import Measured
from expunge.evaluation.metrics import correction, membership, neighbours, quality
from expunge.evaluation.statistics import Interval
from expunge.evaluation.suites import Suite

LEAST = 6  # examples below which no interval of a mean is known
OF_NEIGHBOURS = ("extraction_strength", "probability", "rouge_l")
Summary = dict[str, tuple[float, Interval]]  # metric: value, 95 % interval


def set_means(measured: Measured, weights: np.ndarray) -> tuple[Summary, dict[str, np.ndarray]]:
    """Mean of each metric of a set over the examples it is defined on; and the resampled means, metric: [B]."""
    values = np.stack(list(measured.columns.values()), axis=1)  # [n, M]
    draws = dict(zip(measured.columns, statistics.means(values, weights).T, strict=True))
    summary = {
        f"{measured.name}.{name}": (float(np.nanmean(column)), _interval(column, draws[name]))
        for name, column in measured.columns.items()
    }
    return summary, draws


def _interval(column: np.ndarray, draws: np.ndarray) -> Interval:
    known = column[np.isfinite(column)]
    exact = statistics.is_share(known) or len(known) < statistics.FEW
    return statistics.interval_of_mean(known) if exact else statistics.interval(draws)


def perplexity(measured: Measured, weights: np.ndarray) -> Summary:
    """exp(Σ NLL / Σ tokens) over all tokens of a set's running texts, if it has any; each token counts the same."""
    texts = np.array([example.is_text for example in measured.examples])
    if not texts.any():
        return {}
    nll = np.array([record.nll_sum for record in measured.records])[texts]
    tokens = np.array([len(record.logprob) for record in measured.records])[texts]
    with np.errstate(invalid="ignore"):  # 0/0 where a resample holds no text
        draws = np.exp((weights[:, texts] @ nll) / (weights[:, texts] @ tokens))
    return {f"{measured.name}.perplexity": (float(np.exp(nll.sum() / tokens.sum())), statistics.interval(draws))}


def canonical_weights(measured: Measured, stream: int) -> np.ndarray:
    """Bootstrap weights [B, n] that follow each example wherever it stands, so that order changes no interval."""
    keys = [(example.key, record.nll_sum) for example, record in zip(measured.examples, measured.records, strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    weights = np.empty((statistics.SAMPLES, len(order)))
    weights[:, order] = statistics.resample(len(order), stream=stream)
    return weights


def utility_parts(suite: Suite, measured: Mapping[str, Measured]) -> list[tuple[str, str]]:
    """The (set, metric) pairs that make up model utility: probability, ROUGE-L recall and truth ratio where defined."""
    parts = []
    for name in suite.utility:
        probability = "probability_with_options" if name in suite.with_options else "probability"
        parts += [
            (name, metric) for metric in (probability, "rouge_l", "truth_ratio") if metric in measured[name].columns
        ]
    return parts


def model_utility(
    parts: Sequence[tuple[str, str]],
    summary: Summary,
    draws: Mapping[str, Mapping[str, np.ndarray]],
    measured: Mapping[str, Measured],
) -> tuple[float, Interval]:
    """Harmonic mean of the parts; the interval resamples each set's examples once for all of its parts.

    It is all of [0, 1] where a set has fewer than 6 examples, whose resamples know nothing.
    """
    few = min(np.isfinite(measured[name].columns[metric]).sum() for name, metric in parts) < LEAST
    value = quality.model_utility([summary[f"{name}.{metric}"][0] for name, metric in parts])
    resampled = np.stack([draws[name][metric] for name, metric in parts], axis=1)  # [B, parts]
    return value, (0.0, 1.0) if few else statistics.interval(quality.harmonic_mean(resampled))


def near(forget: Measured, retain: Measured) -> tuple[Summary, str | None]:
    """`neighbours.<measure>` of the retain examples nearest to the forget examples; or why there is none."""
    chosen = neighbours.nearest(forget.examples, retain.examples)
    if len(chosen) < 2 or len(chosen) == len(retain.examples):
        few = f"the retain set's {len(retain.examples)} examples are too few to tell near ones from others"
        return {}, f"neighbours are absent: {few}"
    columns = {name: retain.columns[name][chosen] for name in OF_NEIGHBOURS if name in retain.columns}
    defined = {name: column[~np.isnan(column)] for name, column in columns.items()}
    return {
        f"neighbours.{name}": (float(column.mean()), statistics.interval_of_mean(column))
        for name, column in defined.items()
        if column.size
    }, None


def corrections(forget: Measured, replacement: Measured) -> Summary:
    """`replacement.made`, `.old_gone` and `.new_given`: shares of the corrections, with their exact intervals."""
    judged = correction.corrected(forget.details(), replacement.details())
    columns = {} if judged is None else judged.columns
    return {
        f"replacement.{name}": (float(column.mean()), statistics.interval_of_mean(column))
        for name, column in columns.items()
    }


def membership_attacks(
    forget: Measured,
    holdout: Measured,
    forget_weights: np.ndarray,
    holdout_weights: np.ndarray,
    further: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> Summary:
    """AUC and TPR at 1 % FPR of each attack, forget set against holdout set (see `metrics.membership`).

    further: attacks whose scores of both sets are not made from the records.
    """
    weights = (forget_weights, holdout_weights)
    summary: Summary = {}
    others = scores(holdout)
    pairs = {name: (one, others[name]) for name, one in scores(forget).items()} | dict(further or {})
    for name, (one, two) in pairs.items():
        auc, tpr = statistics.aucs(one, two, *weights), statistics.tprs(one, two, *weights)
        value, fewer = membership.auc(one, two), min(len(one), len(two))
        exact = statistics.auc_interval(value, len(one), len(two)) if fewer < statistics.FEW else None
        summary[f"mia.{name}.auc"] = value, exact or statistics.interval(auc)
        rate = membership.tpr_at_fpr(one, two)
        share = statistics.share_interval(round(rate * len(one)), len(one)) if fewer < statistics.FEW else None
        summary[f"mia.{name}.tpr_at_1_fpr"] = rate, share or statistics.interval(tpr)
    return summary


def scores(measured: Measured) -> dict[str, np.ndarray]:
    """Each attack's score per example, lower for members."""
    records = measured.records
    return {
        "loss": membership.loss(records),
        "zlib": membership.zlib(records, [example.response for example in measured.examples]),
        "min_k": membership.min_k(records, k=0.4),
        "min_k_20": membership.min_k(records, k=0.2),
        "min_k_plus_plus": membership.min_k_plus_plus(records, k=0.4),
    }

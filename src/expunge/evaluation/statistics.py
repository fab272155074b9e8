"""Intervals and tests over examples: how much a number would move on another draw of the same size.

From 20 examples on percentile-bootstrap intervals, below exact ones; of shares always Clopper and Pearson's.

Resampling n examples with replacement is the same as giving each a random integer weight; as a matrix of weights [B, n]
it serves every metric of a set at once, and a metric that combines sets sees the same resample in each.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest, bootstrap, norm

SAMPLES = 1000
LEVEL = 0.95
FLIPS = 9999  # random sign patterns of a paired test: the smallest p-value is 1e-4, which outlasts Holm's adjustment
EXACT = 12  # up to so many examples all 2^n patterns are tried
FEW = 20  # examples below which resamples vary too little, and exact intervals stand in for them
BLOCK_TOKENS = 4  # tokens whose mean counts as one value
MOST_JACKKNIFE = 2000  # values of which each is left out once, n² numbers in all
BLOCK = 1 << 22  # numbers held at a time
Interval = tuple[float, float]


def resample(n: int, *, stream: int = 0, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """How often each of n examples is drawn in each of B resamples of size n: [B, n], whole numbers.

    Sets drawn independently of each other need different `stream`s.
    """
    drawn = np.random.default_rng([seed, stream]).integers(n, size=(samples, n))
    flat = drawn + n * np.arange(samples)[:, None]
    return np.bincount(flat.ravel(), minlength=samples * n).reshape(samples, n).astype(np.float64)


def interval(draws: np.ndarray, level: float = LEVEL) -> Interval:
    """The central `level` share of resampled values [B]; resamples where the metric is undefined are left out."""
    tail = (1 - level) / 2
    low, high = np.quantile(draws[np.isfinite(draws)], [tail, 1 - tail])
    return float(low), float(high)


def means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Resampled means of M metrics over n examples: values [n, M], NaN where undefined; weights [B, n] → [B, M]."""
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):  # 0/0 where a resample holds no example the metric is defined on
        return (weights @ np.where(defined, values, 0.0)) / (weights @ defined.astype(np.float64))


def share_interval(count: int, n: int, level: float = LEVEL) -> Interval:
    """The exact two-sided interval of a share after `count` of `n` (Clopper and Pearson 1934); it lies within [0, 1]."""
    bounds = binomtest(count, n).proportion_ci(level)
    return float(bounds.low), float(bounds.high)


def subset_interval(values: np.ndarray, level: float = LEVEL, *, seed: int = 0) -> Interval | None:
    """An interval of the centre θ of a few values [n] that are each symmetric about θ; None below 6 of them.

    Each of the 2ⁿ gaps between the ordered means of all subsets holds θ equally often (Hartigan 1969). Of them
    k = ⌊2ⁿ (1 − level)/2⌋ are left off at either end, so the interval holds θ in a share 1 − 2k/2ⁿ ≥ level of all draws,
    exactly. It is the sign-flip test turned round. Up to 12 values all subsets are taken, else 9999 random ones.
    """
    n = len(values)
    if 2**n * (1 - level) / 2 < 1:
        return None
    if n <= EXACT:
        subsets = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1  # [2^n − 1, n]
    else:
        subsets = np.random.default_rng(seed).integers(2, size=(FLIPS, n))
        subsets = subsets[subsets.any(axis=1)]
    ordered = np.sort((subsets @ values) / subsets.sum(axis=1))
    left = int((len(ordered) + 1) * (1 - level) / 2)
    return float(ordered[left - 1]), float(ordered[len(ordered) - left])


def rows_needed(tests: int, alpha: float) -> int:
    """From how many examples on a sign-flip test can pass Holm's adjustment over so many tests: 2^(1 − n) · tests < α."""
    return next(n for n in range(1, 64) if 2.0 ** (1 - n) * tests < alpha)


def block_means(rows: Sequence[np.ndarray], size: int = BLOCK_TOKENS) -> np.ndarray:
    """Means over blocks of `size` neighbouring values of each row, a rest shorter than that joined to the block before.

    Neighbouring tokens' values depend on each other; blocks hardly do.
    """
    return np.array([
        part.mean() for row in rows if len(row) for part in np.array_split(row, max(1, len(row) // size))
    ])  # fmt: skip


def auc_interval(auc: float, n: float, m: float, level: float = LEVEL) -> Interval:
    """A score interval of an AUC of n against m examples, within [0, 1] whatever the scores' distributions.

    All θ with |AUC − θ| ≤ z √(θ(1 − θ)/min(n, m)): no AUC varies more than that (Birnbaum and Klose 1957; Wilson's
    interval of a share of min(n, m)). For few examples, of which resamples that never cross know nothing.
    """
    fewer, z = min(n, m), float(norm.ppf((1 + level) / 2))
    middle = (auc + z**2 / (2 * fewer)) / (1 + z**2 / fewer)
    half = z / (1 + z**2 / fewer) * np.sqrt(auc * (1 - auc) / fewer + z**2 / (4 * fewer**2))
    return float(middle - half), float(middle + half)


def auc_change(one: float, other: float, fewer: int, level: float = LEVEL) -> tuple[float, float, float]:
    """The interval of a difference of two AUCs of `fewer` examples at least, and its two-sided p-value: low, high, p.

    From the two `auc_interval`s (l₁, u₁) and (l₂, u₂): d − √((a₁ − l₁)² + (u₂ − a₂)²) and d + √((u₁ − a₁)² + (a₂ − l₂)²)
    (Zou and Donner 2008), which leaves aside that both models saw the same examples, so it is wider than need be. p is
    one less the highest level at which 0 is outside.
    """

    def bounds(confidence: float) -> tuple[float, float]:
        (low, high), (least, most) = (auc_interval(auc, fewer, fewer, confidence) for auc in (one, other))
        down, up = np.hypot(one - low, most - other), np.hypot(high - one, other - least)
        return float(one - other - down), float(one - other + up)

    inside, outside = 1.0, 0.0  # levels
    for _ in range(40):
        middle = (inside + outside) / 2
        low, high = bounds(middle)
        inside, outside = (middle, outside) if low <= 0 <= high else (inside, middle)
    return *bounds(level), 1 - outside


def is_share(values: np.ndarray) -> bool:
    """Whether the values, NaN aside, are all 0 or 1."""
    return bool(np.isin(values[np.isfinite(values)], (0.0, 1.0)).all())


def interval_of_mean(values: np.ndarray, *, samples: int = SAMPLES, seed: int = 0) -> Interval:
    """The interval of the mean of values [n], whatever their order: exact for zeros and ones, else by the bootstrap.

    Below 20 values, of which resamples know too little, that of `subset_interval`, and below 6 all of [0, 1] where the
    values are shares. In blocks, so that n may be large.
    """
    if is_share(values):
        return share_interval(int(values.sum()), len(values))
    if len(values) < FEW:
        exact = subset_interval(np.sort(values), seed=seed)
        within = values.min() >= 0 and values.max() <= 1
        if exact is not None or within:
            return exact or (0.0, 1.0)
    ordered, generator = np.sort(values), np.random.default_rng(seed)
    rows = max(1, (1 << 20) // len(ordered))  # resamples at a time
    blocks = [min(rows, samples - first) for first in range(0, samples, rows)]
    draws = [ordered[generator.integers(len(ordered), size=(size, len(ordered)))].mean(axis=1) for size in blocks]
    return interval(np.concatenate(draws))


def skewed_interval(values: np.ndarray, *, seed: int = 0) -> Interval:
    """The interval of the mean of values [n] that may be far from symmetric, such as many zeros and a few ones.

    Exact for shares; else the bootstrap's, bias-corrected and accelerated (BCa, Efron 1987), which a rare large value
    misleads less than the percentile interval; beyond 2000 values that one. n must be at least 2.
    """
    if is_share(values) or len(values) > MOST_JACKKNIFE or np.ptp(values) == 0:
        return interval_of_mean(values, seed=seed)
    ordered = (np.sort(values),)
    found = bootstrap(ordered, np.mean, method="BCa", n_resamples=SAMPLES, confidence_level=LEVEL, rng=seed)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def aucs(
    forget: np.ndarray, holdout: np.ndarray, forget_weights: np.ndarray, holdout_weights: np.ndarray
) -> np.ndarray:
    """Resampled AUCs: forget [n], holdout [m], weights [B, n] and [B, m] → [B].

    With C[i, j] = 1 where forget i scores below holdout j, ½ on ties: AUC = wᵀ C v / (n m).
    """
    wins = (forget[:, None] < holdout) + 0.5 * (forget[:, None] == holdout)  # [n, m]
    return np.einsum("bm,bm->b", forget_weights @ wins, holdout_weights) / (len(forget) * len(holdout))


def tprs(
    forget: np.ndarray,
    holdout: np.ndarray,
    forget_weights: np.ndarray,
    holdout_weights: np.ndarray,
    fpr: float = 0.01,
) -> np.ndarray:
    """Resampled true-positive rates at a false-positive rate (see `metrics.membership.tpr_at_fpr`): [B]."""
    order, forget_order = np.argsort(holdout), np.argsort(forget)
    allowed = int(np.floor(fpr * len(holdout) + 1e-9))
    threshold = (holdout_weights[:, order].cumsum(axis=1) > allowed).argmax(axis=1)  # [B] index of an ordered score
    below = np.searchsorted(forget[forget_order], holdout[order])  # [m] forget scores under each ordered score
    drawn = np.pad(forget_weights[:, forget_order].cumsum(axis=1), ((0, 0), (1, 0)))  # [B, n + 1]
    return np.take_along_axis(drawn, below[threshold][:, None], axis=1)[:, 0] / len(forget)


def sign_flip_p(differences: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Two-sided p-values of M paired tests: differences [n, M] between two models' values on the same examples → [M].

    Where the models do not differ, each example's difference is as likely to have the opposite sign. With S = Σᵢ dᵢ the
    p-value is the share of sign patterns s, the observed one among them, with |Σᵢ sᵢdᵢ| ≥ |S| (Fisher 1935; Pitman 1937):
    all 2ⁿ of them up to n = 12, else 9999 random ones. NaN counts as no difference. At n = 5 the least it can be is .0625,
    so too few examples never show anything.
    """
    values = np.nan_to_num(np.asarray(differences, dtype=np.float64))
    n = len(values)
    bound = np.abs(values.sum(axis=0)) - 1e-12 * np.abs(values).sum(axis=0)  # [M], less what rounding may take
    if n <= EXACT:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)  # [2^n, n]
        return (np.abs(signs @ values) >= bound).mean(axis=0)
    generator, beyond, left = np.random.default_rng(seed), np.ones(values.shape[1]), FLIPS
    while left:
        rows = min(left, max(1, BLOCK // n))
        signs = 1.0 - 2.0 * generator.integers(2, size=(rows, n))
        beyond += (np.abs(signs @ values) >= bound).sum(axis=0)
        left -= rows
    return beyond / (FLIPS + 1)


def bootstrap_p(draws: np.ndarray) -> float:
    """Two-sided p-value of a difference from its resampled values [B]: 2 (1 + the fewer of those ≤ 0, ≥ 0) / (B + 1).

    Source: Davison and Hinkley 1997, §4.2, with the percentile interval turned into a test.
    """
    known = draws[np.isfinite(draws)]
    fewer = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (1 + fewer) / (len(known) + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of m p-values: the i-th smallest becomes max over j ≤ i of min(1, (m − j + 1) p_(j)).

    Below α for those that are rejected at a family-wise error rate of α, whatever their dependence (Holm 1979).
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted

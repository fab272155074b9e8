"""Membership scores by hand and per-token loop; AUC against scipy; TPR against every threshold."""

import zlib as zlib_module

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from expunge.evaluation.metrics.membership import (
    auc,
    loss,
    min_k,
    min_k_plus_plus,
    privleak,
    reference,
    tpr_at_fpr,
    zlib,
)
from expunge.evaluation.records import Record


def random_records(n: int, seed: int = 0) -> list[Record]:
    rng = np.random.default_rng(seed)
    records = []
    for _ in range(n):
        size = rng.integers(1, 30)
        logprob, mean = -rng.exponential(2, size), -rng.exponential(2, size)
        records.append(
            Record(logprob, rng.random(size) < 0.5, mean, rng.exponential(1, size), bool(rng.random() < 0.5))
        )
    return records


def test_min_k_by_hand() -> None:
    logprob = np.array([-1.0, -5.0, -2.0, -4.0, -3.0, -100.0])  # the last is the end token's
    one = Record(logprob, np.ones(6, bool), np.zeros(6), np.ones(6), True)
    assert min_k([one], k=0.4)[0] == pytest.approx((5 + 4) / 2)
    assert min_k([one], k=0.2)[0] == pytest.approx(5)
    assert min_k([one], k=0.1)[0] == pytest.approx(5)  # at least one token
    assert min_k([one], k=1.0)[0] == pytest.approx(3)


@pytest.mark.parametrize("k", [0.2, 0.4])
def test_min_k_and_min_k_plus_plus_equal_a_loop(k: float) -> None:
    records = random_records(60)
    slow, slow_plus = [], []
    for record in records:
        size = len(record.logprob) - 1 if record.ended and len(record.logprob) > 1 else len(record.logprob)
        number = max(1, int(size * k))
        standard = (record.logprob - record.mean_logprob) / np.maximum(record.std_logprob, 1e-3)
        slow.append(-np.mean(sorted(record.logprob[:size])[:number]))
        slow_plus.append(-np.mean(sorted(standard[:size])[:number]))
    np.testing.assert_allclose(min_k(records, k), slow)
    np.testing.assert_allclose(min_k_plus_plus(records, k), slow_plus)


def test_loss_and_zlib_by_hand() -> None:
    one = Record(np.array([-1.0, -3.0]), np.ones(2, bool), np.zeros(2), np.ones(2), True)
    text = "tick tock tick tock tick tock"
    assert loss([one])[0] == 2
    assert zlib([one], [text])[0] == 2 / len(zlib_module.compress(text.encode()))


def test_auc_orientation_members_have_lower_scores() -> None:
    assert auc(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1
    assert auc(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 0
    assert auc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5


@pytest.mark.parametrize("ties", [False, True])
def test_auc_equals_mann_whitney(ties: bool) -> None:
    rng = np.random.default_rng(1)
    forget, holdout = rng.normal(0, 1, 40), rng.normal(0.5, 1, 55)
    if ties:
        forget, holdout = forget.round(), holdout.round()
    statistic = mannwhitneyu(holdout, forget).statistic
    assert auc(forget, holdout) == pytest.approx(statistic / (40 * 55), rel=1e-12)


@pytest.mark.parametrize("fpr", [0.01, 0.1])
@pytest.mark.parametrize("ties", [False, True])
def test_tpr_is_the_best_over_all_thresholds(fpr: float, ties: bool) -> None:
    rng = np.random.default_rng(2)
    forget, holdout = rng.normal(-2, 1, 80), rng.normal(0, 1, 250)
    if ties:
        forget, holdout = forget.round(1), holdout.round(1)
    thresholds = np.concatenate([forget, holdout]) + 1e-9  # "at most this score" is called a member
    best = max((forget < t).mean() for t in thresholds if (holdout < t).mean() <= fpr)
    assert tpr_at_fpr(forget, holdout, fpr) == pytest.approx(best)
    assert 0 < best < 1


def test_reference_attack_by_hand() -> None:
    records = [
        Record(np.array(values), np.ones(len(values), bool), np.zeros(len(values)), np.ones(len(values)), False)
        for values in ([-1.0, -3.0], [-0.5])
    ]
    np.testing.assert_allclose(reference(records, np.array([3.0, 0.25])), [-1.0, 0.25])


def test_privleak_as_muse_counts_it() -> None:
    """MUSE's AUC has the forgotten examples as the unseen ones; theirs is 1 − ours."""
    rng = np.random.default_rng(3)
    forget, holdout, retrained = rng.normal(-1, 1, 50), rng.normal(0, 1, 60), rng.normal(-0.2, 1, 50)
    muse = [mannwhitneyu(scores, holdout).statistic / 3000 for scores in (forget, retrained)]  # P(forget above holdout)
    found = privleak(auc(forget, holdout), auc(retrained, holdout))
    assert found == pytest.approx(100 * (muse[0] - muse[1]) / muse[1])
    assert found < 0
    assert privleak(1.0, 0.5) == -100
    assert privleak(0.5, 0.5) == 0
    assert privleak(0.0, 0.5) == 100
    assert np.isnan(privleak(0.7, 1.0))

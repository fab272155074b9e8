"""Forget quality and model utility against scipy."""

import math

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp

from expunge.evaluation.metrics.quality import forget_quality, log10, model_utility


def test_forget_quality_is_the_ks_p_value() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.lognormal(0, 1, 40), rng.lognormal(0.7, 1, 40)
    assert forget_quality(one, two) == ks_2samp(one, two).pvalue
    assert forget_quality(one, one) == 1
    # a closed form: two samples of n that do not overlap at all have p = 2 / C(2n, n)
    assert forget_quality(np.arange(5.0), np.arange(5.0) + 10) == pytest.approx(2 / math.comb(10, 5))


def test_log10_has_a_floor() -> None:
    assert log10(0.01) == pytest.approx(-2)
    assert log10(0.0) == pytest.approx(-307.65, abs=0.01)


def test_model_utility_is_the_harmonic_mean() -> None:
    values = [0.9, 0.5, 0.2, 0.7]
    assert model_utility(values) == pytest.approx(hmean(values))
    assert model_utility([0.9, 0.0]) == 0

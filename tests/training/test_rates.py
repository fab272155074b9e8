"""Learning rates: GeN's fit against a parabola whose curvature is known, schedules by hand."""

import math

import pytest

from expunge.errors import ConfigurationError
from expunge.training import Constant, GeN, Linear


def parabola(slope: float, curvature: float, eta: float, offsets) -> list[float]:
    return [2.0 + slope * k * eta + 0.5 * curvature * (k * eta) ** 2 for k in offsets]


@pytest.mark.parametrize("probes", [3, 5])
def test_fit_recovers_slope_curvature_and_best_rate(probes) -> None:
    gen = GeN(probes=probes)
    fit = gen.fit(parabola(0.7, 3.5, 0.01, gen.offsets), 0.01)
    assert fit.slope == pytest.approx(0.7, rel=1e-8)
    assert fit.curvature == pytest.approx(3.5, rel=1e-6)
    assert fit.best == pytest.approx(0.2, rel=1e-6)
    assert fit.accepted
    assert fit.r2 == pytest.approx(1)


def test_three_probes_equal_the_central_differences() -> None:
    low, middle, high, eta = 1.31, 1.30, 1.33, 0.02
    fit = GeN().fit([low, middle, high], eta)
    assert fit.curvature == pytest.approx((high - 2 * middle + low) / eta**2)
    assert fit.slope == pytest.approx((high - low) / (2 * eta))


def test_update_clips_then_smooths() -> None:
    gen = GeN(smoothing=0.9, clip=2.0)
    up = gen.fit(parabola(1.0, 1.0, 0.1, gen.offsets), 0.1)  # η* = 1, ten times as large
    assert gen.update(0.1, up) == pytest.approx(0.9 * 0.1 + 0.1 * 0.2)
    down = gen.fit(parabola(0.01, 1.0, 0.1, gen.offsets), 0.1)  # η* = .01
    assert gen.update(0.1, down) == pytest.approx(0.9 * 0.1 + 0.1 * 0.05)
    assert GeN(smoothing=0).update(0.1, up) == pytest.approx(0.2)


@pytest.mark.parametrize(("slope", "curvature"), [(1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)])
def test_wrong_curvature_or_slope_leaves_the_rate_alone(slope, curvature) -> None:
    gen = GeN()
    fit = gen.fit(parabola(slope, curvature, 0.1, gen.offsets), 0.1)
    assert not fit.accepted
    assert gen.update(0.1, fit) == 0.1


def test_five_probes_reject_what_is_no_parabola() -> None:
    gen = GeN(probes=5)
    fit = gen.fit([1.0, 1.9, 1.0, 2.0, 1.2], 0.1)
    assert fit.r2 < 0.99
    assert gen.update(0.1, fit) == 0.1


def test_a_loss_that_is_not_finite_leaves_the_rate_alone() -> None:
    gen = GeN()
    assert gen.update(0.1, gen.fit([1.0, math.nan, 1.0], 0.1)) == 0.1
    assert gen.update(0.1, gen.fit([1.0, 1.0, math.inf], 0.1)) == 0.1


def test_schedules() -> None:
    assert [Constant().at(step, 4) for step in range(4)] == [1, 1, 1, 1]
    assert [Linear(warmup=0.2).at(step, 10) for step in range(10)] == pytest.approx(
        [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    assert Linear(warmup=0).at(0, 5) == 1


def test_unfit_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"gen\.probes = 4"):
        GeN(probes=4)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"linear\.warmup"):
        Linear(warmup=1.5)

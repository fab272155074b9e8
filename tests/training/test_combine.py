"""Combinations: the two numbers each puts on the gradients."""

import math

import pytest

from expunge.training import LossNormalised, NormalizedDifference, Scalarisation, WeightedSum
from expunge.training.combine import Measured


def test_fixed_weights() -> None:
    assert WeightedSum(gamma=0.125).coefficients(None) == (0.125, 1.0)
    assert Scalarisation(c=0.9).coefficients(None) == pytest.approx((0.1, 0.9))


def test_loss_normalised_divides_by_the_size_of_each_loss() -> None:
    assert LossNormalised().coefficients(Measured(-4.0, 0.5, 1.0, 1.0)) == (0.25, 2.0)


def test_normalized_difference_gives_both_sides_length_one() -> None:
    a, b = NormalizedDifference().coefficients(Measured(0, 0, forget_norm=4.0, retain_norm=0.1))
    assert (a * 4.0, b * 0.1) == (1.0, 1.0)


@pytest.mark.parametrize("norm", [0.0, math.inf, math.nan])
def test_no_direction_from_a_norm_that_is_none(norm) -> None:
    assert math.isnan(NormalizedDifference().coefficients(Measured(0, 0, forget_norm=norm, retain_norm=1.0))[0])

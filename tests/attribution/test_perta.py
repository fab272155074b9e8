"""PerTA's weights against the formula written out, and in the places where a careless one breaks."""

import math

import numpy as np
import pytest
import torch

from expunge.attribution import Importance
from expunge.errors import ConfigurationError
from expunge.gradients import Moments


def moments(mean: list[float], square: list[float] | None = None, count: int = 10) -> Moments:
    values = torch.tensor(mean)
    return Moments({"w": values}, {"w": torch.tensor(square)} if square else {"w": values.square()}, count)


def weights(settings: dict, forget: Moments, retain: Moments) -> np.ndarray:
    return Importance(**settings).weights(forget, retain)["w"].double().numpy()


FORGET, RETAIN = [3e-4, -2e-5, 1e-7, 4e-3], [-1e-4, 2e-5, 5e-7, 1e-6]


@pytest.mark.parametrize("p", [0.5, 1, 2, 8])
@pytest.mark.parametrize("rho", [0.3, 1, 4])
def test_definition(p, rho) -> None:
    forget, retain = np.abs(np.array(FORGET)), np.abs(np.array(RETAIN))  # fp64: nothing underflows there
    expected = forget**p / (forget**p + rho * retain**p)
    np.testing.assert_allclose(weights({"p": p, "rho": rho}, moments(FORGET), moments(RETAIN)), expected, rtol=1e-5)


def test_fisher_is_the_ratio_of_squares() -> None:
    squares = np.array(FORGET) ** 2 / (np.array(FORGET) ** 2 + np.array(RETAIN) ** 2)
    np.testing.assert_allclose(weights({"p": 2}, moments(FORGET), moments(RETAIN)), squares, rtol=1e-5)


def test_minimises_the_fisher_weighted_cost() -> None:
    """w of p = 2 is the least of ½F_f(1−w)²τ² + ½F_r w²τ² on a grid."""
    found = weights({"p": 2}, moments(FORGET), moments(RETAIN))
    grid = np.linspace(0, 1, 100_001)
    for forget, retain, w in zip(FORGET, RETAIN, found, strict=True):
        cost = forget**2 * (1 - grid) ** 2 + retain**2 * grid**2
        assert abs(grid[cost.argmin()] - w) < 2e-5


def test_no_epsilon_crushes_small_gradients() -> None:
    """At gradients of 1e-7 squares are 1e-14: an ε of 1e-8 would make w zero."""
    tiny = [1e-7, 1e-12, 1e-19]
    np.testing.assert_allclose(weights({"p": 2}, moments(tiny), moments(tiny)), 0.5, rtol=1e-5)
    np.testing.assert_allclose(weights({"p": 8}, moments([2e-9]), moments([1e-9])), 256 / 257, rtol=1e-5)


@pytest.mark.parametrize("p", [0, 1, 2, math.inf])
def test_zeros(p) -> None:
    both, only_retain, only_forget = (
        weights({"p": p}, moments([a]), moments([b])) for a, b in ((0, 0), (0, 1), (1, 0))
    )
    assert both == 0
    assert only_retain == (0.5 if p == 0 else 0)
    assert only_forget == (0.5 if p == 0 else 1)


def test_limits_in_p_and_rho() -> None:
    forget, retain = moments([3.0, 1.0, 2.0]), moments([1.0, 3.0, 2.0])
    np.testing.assert_array_equal(weights({"p": math.inf}, forget, retain), [1, 0, 0.5])
    np.testing.assert_array_equal(weights({"p": 0}, forget, retain), [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(weights({"rho": 0}, forget, retain), [1, 1, 1])
    np.testing.assert_array_equal(weights({"hard": True}, forget, retain), [1, 0, 0])


def test_unequal_counts_bias_weights_and_debias_does_not() -> None:
    """Pure noise, 40 against 3,960 examples: w ≈ .91 (p = 1) and .99 (p = 2) although nothing was learned."""
    generator = np.random.default_rng(0)
    sides = []
    for count in (40, 3960):
        draws = generator.standard_normal((count, 4000)) * 1e-5
        sides.append(moments(draws.mean(0).tolist(), (draws**2).mean(0).tolist(), count))
    assert np.median(weights({"p": 1}, *sides)) == pytest.approx(0.91, abs=0.02)
    assert np.median(weights({"p": 2}, *sides)) == pytest.approx(0.99, abs=0.01)
    debiased = weights({"p": 2, "debias": True}, *sides)
    noise = moments(sides[0].mean["w"].tolist(), sides[0].square["w"].tolist(), 40)
    swapped = weights({"p": 2, "debias": True}, sides[1], noise)
    # Either side's signal is as often taken for zero, whatever its count: 68 % of draws lie within one σ.
    assert (debiased == 0).mean() == pytest.approx(0.68, abs=0.05)
    assert (swapped == 0).mean() == pytest.approx(0.68, abs=0.05)


def test_debias_formula() -> None:
    draws = np.array([[1.0, 2.0], [3.0, -2.0], [2.0, 0.5]])
    variance = draws.var(0, ddof=1)
    signal = np.maximum(draws.mean(0) ** 2 - variance / 3, 0)
    retain = np.array([0.25, 0.25])
    side = moments(draws.mean(0).tolist(), (draws**2).mean(0).tolist(), 3)
    still = moments([0.5, 0.5], [0.25, 0.25], 5)  # no variance at all
    np.testing.assert_allclose(weights({"p": 2, "debias": True}, side, still), signal / (signal + retain), rtol=1e-5)


def test_per_example_uses_the_mean_square() -> None:
    forget, retain = moments([0.0, 1.0], [4.0, 1.0]), moments([1.0, 0.0], [1.0, 3.0])
    np.testing.assert_allclose(weights({"p": 2, "fisher": "per_example"}, forget, retain), [0.8, 0.25], rtol=1e-6)


def test_shuffle_keeps_values_and_loses_places() -> None:
    generator = torch.Generator().manual_seed(0)
    forget, retain = (moments(torch.randn(500, generator=generator).tolist()) for _ in range(2))
    plain, shuffled = weights({}, forget, retain), weights({"shuffle": True}, forget, retain)
    np.testing.assert_array_equal(np.sort(plain), np.sort(shuffled))
    assert (plain != shuffled).mean() > 0.9


def test_refusals() -> None:
    one = moments([1.0], [1.0], 1)
    with pytest.raises(ConfigurationError, match="at least 2 examples"):
        Importance(debias=True).weights(one, one)
    with pytest.raises(ConfigurationError, match="leave it out"):
        Importance(debias=True, fisher="per_example")
    with pytest.raises(ConfigurationError, match="greater than or equal to 0"):
        Importance(p=-1)

"""The heat map and the truth ratios against hand-made cases and scipy."""

import re
from typing import Any

import numpy as np
import pytest
from scipy import stats

from expunge.reporting.distributions import ks_tests, statistic, truth_ratios
from expunge.reporting.heat import heat
from expunge.reporting.results import leaderboard
from tests.reporting.build import demo_results


def made(**strengths: list[float | None]) -> list[Any]:
    runs = []
    for name, values in strengths.items():
        model = name if name in ("original", "retrained") else "unlearned"
        rows = [
            {"id": f"e{i}", "prompt": f"Question {i}?", "extraction_strength": value, "truth_ratio": value}
            for i, value in enumerate(values)
        ]
        runs.append({"model": model, "method": name, "metrics": {"forget_quality": 0.25}, "examples": {"forget": rows}})
    return leaderboard({"runs": runs})


def test_cells_by_hand() -> None:
    found = heat(made(original=[1.0, 1.0, 1.0], npo=[0.1, 0.9, None]))
    assert found is not None
    (panel,) = found.panels
    assert panel.labels == ("original", "NPO")
    # worst first: example 1 (.9), 0 (.1), 2 (none); shades of tenths, runs of equal shades joined
    assert re.findall(r'--v:(\d+)" d="([^"]*)"', panel.svg) == [
        ("10", "M1 1h1v.88h-1z"),
        ("90", "M0 1h1v.88h-1z"),
        ("100", "M0 0h3v.88h-3z"),
    ]
    assert found.lines[0] == (1, "Question 1?", ("1.00", "0.90"))
    assert found.lines[2][2] == ("1.00", "–")


def test_long_sets_share_columns_and_stay_small() -> None:
    values: list[float | None] = list(np.random.default_rng(0).uniform(0, 1, 1500))
    found = heat(made(npo=values, kl=values[::-1]))
    assert found is not None
    assert (found.count, found.each, found.panels[0].width) == (1500, 4, 375)
    assert len(found.panels[0].svg) < 30_000
    assert len(found.lines) == 400


def test_nothing_to_draw() -> None:
    assert heat(leaderboard({"runs": [{"model": "original", "metrics": {}}]})) is None
    assert truth_ratios(made(npo=[None])) is None


def test_the_ks_statistic_is_scipys() -> None:
    generator = np.random.default_rng(4)
    one, other = sorted(generator.normal(size=37)), sorted(generator.normal(0.4, size=52))
    assert statistic(one, other) == pytest.approx(stats.ks_2samp(one, other).statistic)
    found = ks_tests(made(retrained=[0.5, 0.7, 0.9], npo=[0.1, 0.2, 0.8], kl=[None, None, None]))
    assert [(test.label, test.p_value, test.n) for test in found] == [("NPO", 0.25, 3)]
    assert found[0].statistic == pytest.approx(2 / 3)
    assert ks_tests(made(npo=[0.1])) == []


def test_the_curves_name_every_model() -> None:
    svg = truth_ratios(leaderboard(demo_results()))
    assert svg is not None
    assert "medians: original 0.500, retrained 0.500" in svg

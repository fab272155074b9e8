"""Pictures: everything named, nothing covered, page colours only, and none where there are no data."""

import re
from random import Random
from xml.etree import ElementTree

import pytest

from expunge.reporting import plots
from expunge.reporting.labels import Box, place
from expunge.reporting.results import leaderboard
from tests.reporting.build import demo_results, run

DRAW = {"tradeoff": plots.tradeoff, "bars": plots.bars, "losses": plots.losses, "rates": plots.rates}


@pytest.mark.parametrize("name", DRAW)
def test_inline_svg_in_the_pages_colours(name: str) -> None:
    text = DRAW[name](leaderboard(demo_results((0, 1))))
    assert text is not None
    root = ElementTree.fromstring(text)
    assert root.tag == "svg"
    assert root.get("role") == "img"
    assert root.get("aria-label")
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(one.startswith(f"{name}-") for one in ids if one)
    assert "http" not in text
    assert "DejaVu" not in text
    colours = set(re.findall(r"#[0-9a-f]{6}\b", re.sub(r'(id|href)="[^"]*"|url\([^)]*\)', "", text)))
    assert colours == set()
    assert "var(--s0)" in text
    assert DRAW[name](leaderboard(demo_results((0, 1)))) == text  # the same results give the same bytes


def words(text: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(text).iter("text")]


def test_every_model_is_named_and_numbers_are_drawn() -> None:
    rows = leaderboard(demo_results())
    tradeoff, bars = plots.tradeoff(rows), plots.bars(rows)
    assert tradeoff is not None
    assert bars is not None
    assert {row.label for row in rows} <= set(words(tradeoff))
    assert "NGDiff at 0.034, 0.688" in tradeoff
    for row in rows:
        assert f"{row.mean('forget.extraction_strength'):.2f}" in words(bars)
        assert f"{row.mean('model_utility'):.2f}" in words(bars)


def test_marks_stand_where_the_numbers_are() -> None:
    text = plots.tradeoff(leaderboard(demo_results()))
    assert text is not None
    # the marks' places in the order they are drawn: those of a linear map of (strength, utility)
    uses = [e for e in ElementTree.fromstring(text).iter("use") if e.get("x") and "var(--s" in (e.get("style") or "")]
    xs, ys = [float(e.get("x", 0)) for e in uses], [float(e.get("y", 0)) for e in uses]
    data = [(0.0, 0.07), (0.11, 0.61), (0.34, 0.66), (0.29, 0.672), (0.97, 0.695), (0.034, 0.688)]
    assert len(uses) == len(data)
    across = (xs[4] - xs[0]) / 0.97
    up = (ys[4] - ys[0]) / 0.625
    assert across > 0 > up
    for x, y, (strength, utility) in zip(xs, ys, data, strict=True):
        assert x == pytest.approx(xs[0] + across * strength, abs=1e-3)
        assert y == pytest.approx(ys[0] + up * (utility - 0.07), abs=1e-3)


def test_dollars_and_tags_in_names_are_text() -> None:
    results = demo_results()
    results["runs"][2]["method"] = "$x^2$ <b>&"
    text = plots.tradeoff(leaderboard(results))
    assert text is not None
    assert "$x^2$ <b>&" in words(text)


def test_many_methods_are_numbered() -> None:
    results = demo_results()
    for index in range(8):
        results["runs"].append(run("unlearned", f"other{index}", (0.05 + 0.01 * index, 0.6, 0.1, 0.5, 1.0)))
    text = plots.tradeoff(leaderboard(results))
    assert text is not None
    assert {"original", "retrained", "1", "14", "1  GradAscent", "14  other7"} <= set(words(text))


def test_no_data_no_picture() -> None:
    rows = leaderboard({"runs": [{"model": "unlearned", "method": "npo", "metrics": {}}]})
    assert [draw(rows) for draw in DRAW.values()] == [None] * 4
    partly = [{"model": "unlearned", "method": "npo", "metrics": {}, "log": [{"step": 1, "lr": None}, {"step": 2}]}]
    assert plots.rates(leaderboard({"runs": partly})) is None


def test_constant_and_negative_curves() -> None:
    log = [{"step": step, "forget_loss": -1.0 * step, "retain_loss": 0.0, "lr": 0.0} for step in range(3)]
    rows = leaderboard({"runs": [{"model": "unlearned", "method": "npo", "metrics": {}, "log": log}]})
    losses = plots.losses(rows)
    assert losses is not None
    assert "forget: the method's own loss" in words(losses)
    assert plots.rates(rows) is not None


def test_long_logs_stay_small() -> None:
    log = [{"step": step, "forget_nll": (step * 7919) % 1000 / 100, "lr": 1.0} for step in range(20_000)]
    rows = leaderboard({"runs": [{"model": "unlearned", "method": "npo", "metrics": {}, "log": log}]})
    text = plots.losses(rows)
    assert text is not None
    assert len(text) < 500_000


def test_names_cover_neither_each_other_nor_marks() -> None:
    random = Random(3)
    frame = Box(0, 0, 400, 300)
    for _ in range(5):
        points = [(random.uniform(20, 380), random.uniform(20, 280)) for _ in range(10)]
        sizes = [(random.uniform(30, 70), 14.0) for _ in points]
        boxes = place(points, sizes, frame)
        for index, box in enumerate(boxes):
            assert box.right - box.left == pytest.approx(sizes[index][0])
            assert box.outside(frame) == pytest.approx(0, abs=1e-9)
            assert all(box.overlap(other) == 0 for other in boxes[index + 1 :])
            assert all(box.overlap(Box(x - 4, y - 4, x + 4, y + 4)) == 0 for x, y in points)


def test_long_names_lose_their_middle() -> None:
    assert plots.brief("NPO") == "NPO"
    assert plots.brief("NPO (lr=1e-05, beta=0.1, steps=100)") == "NPO (lr=1e…teps=100)"
    results = demo_results()
    results["runs"][2]["method"] = "x" * 400
    text = plots.bars(leaderboard(results))
    assert text is not None
    assert "xxxxxxxxxx…xxxxxxxxx" in words(text)


def test_the_scatter_zooms_to_the_data() -> None:
    """Marks spread over most of the picture, however close together their numbers are."""
    results = {
        "runs": [
            {
                "model": "original" if index == 0 else "unlearned",
                "method": name,
                "metrics": {"forget.extraction_strength": 0.05 + 0.01 * index, "model_utility": 0.6 + 0.002 * index},
            }
            for index, name in enumerate(("original", "npo", "kl", "ngdiff"))
        ]
    }
    text = plots.tradeoff(leaderboard(results))
    assert text is not None
    root = ElementTree.fromstring(text)
    width = float(root.get("viewBox", "").split()[2])
    xs = [float(e.get("x", 0)) for e in root.iter("use") if e.get("x") and "var(--s" in (e.get("style") or "")]
    assert max(xs) - min(xs) > 0.4 * width

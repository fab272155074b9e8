"""The page in a real browser: silent, alone, no wider than a phone, accessible, and whole on paper."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from expunge.reporting import leaderboard, render_report
from expunge.reporting.verdict import verdicts
from tests.helpers.browser import CHROMIUM, browser, opened
from tests.reporting.build import attacked, attributed

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")]
OPEN_ALL = "document.querySelectorAll('details').forEach(each => { each.open = true })"


def four_hundred() -> dict[str, Any]:
    """The attacked results with 400 forget examples of ordinary length."""
    results = attacked()
    generator = np.random.default_rng(0)
    for run in results["runs"]:
        rows = run["examples"]["forget"]
        run["examples"]["forget"] = [
            {**rows[i % len(rows)], "id": f"f{i}", "prompt": f"{i}: {rows[i % len(rows)]['prompt']}",
             "generation": " ".join(generator.choice(["lighthouse", "Tarn", "keeper", "of", "the"], 60)),
             "extraction_strength": float(generator.uniform()), "truth_ratio": float(generator.lognormal())}
            for i in range(400)
        ]  # fmt: skip
    return results


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_report(four_hundred()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.mark.parametrize("width", [390, 820, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_silent_alone_and_no_wider_than_the_window(chromium: Browser, page: Path, width: int, dark: bool) -> None:
    with opened(chromium, page, width=width, dark=dark) as watched:
        watched.page.evaluate(OPEN_ALL)
        assert watched.width <= width
        assert watched.complaints == []
        assert watched.requests == []


def test_small_enough_with_400_examples(page: Path) -> None:
    assert page.stat().st_size < 3_000_000


@pytest.mark.parametrize(
    ("results", "width", "dark"), [(attacked, 390, False), (attacked, 1280, True), (attributed, 1280, False)]
)
def test_axe_finds_nothing(
    chromium: Browser, tmp_path: Path, results: Callable[[], dict[str, Any]], width: int, dark: bool
) -> None:
    """axe-core's rules: contrast, landmarks, names, roles, tables, headings."""
    path = tmp_path / "report.html"
    path.write_text(render_report(results()), encoding="utf-8")
    with opened(chromium, path, width=width, dark=dark) as watched:
        watched.page.evaluate(OPEN_ALL)
        violations = Axe().run(watched.page).response["violations"]
    assert [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in violations] == []


def test_everything_is_reached_by_tab_in_the_order_of_the_page(chromium: Browser, page: Path) -> None:
    reach = "a[href], summary, [tabindex='0']"
    places = []
    with opened(chromium, page) as watched:
        script = f'[...document.querySelectorAll("{reach}")]'
        count = watched.page.evaluate(f"{script}.filter(each => each.checkVisibility()).length")
        for _ in range(count):
            watched.page.keyboard.press("Tab")
            places.append(watched.page.evaluate(f"{script}.indexOf(document.activeElement)"))
        outline = watched.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert -1 not in places
    assert places == sorted(places)
    assert len(set(places)) == count
    assert outline != "none"


def test_a_summary_opens_with_the_keyboard(chromium: Browser, page: Path) -> None:
    with opened(chromium, page) as watched:
        watched.page.locator("details:not([open]) > summary").first.focus()
        watched.page.keyboard.press("Enter")
        assert watched.page.evaluate("document.activeElement.parentElement.open")


def test_a_phone_shows_each_overall_verdict_without_scrolling_sideways(chromium: Browser, page: Path) -> None:
    expected = {verdict.row.label: verdict.word for verdict in verdicts(leaderboard(four_hundred()))}
    with opened(chromium, page, width=390) as watched:
        for label, word in expected.items():
            card = watched.page.locator(".matrix tr", has=watched.page.get_by_role("rowheader", name=label, exact=True))
            chip = card.locator(".word .chip")
            assert word in chip.inner_text()
            box = chip.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390


def test_paper_shows_every_claim_and_clips_nothing(chromium: Browser, page: Path) -> None:
    """Laid out for A4, nothing is wider than the paper or hidden by a box, and each claim's evidence is there."""
    with opened(chromium, page, width=718) as watched:  # A4 less Chromium's margins, in CSS pixels
        watched.page.emulate_media(media="print", color_scheme="dark")
        text = watched.page.evaluate("document.body.innerText")
        assert watched.width <= 718
        clipped = watched.page.evaluate(
            """[...document.querySelectorAll('*')].filter(each => each.checkVisibility()
                && getComputedStyle(each).overflow !== 'visible' && each.clientWidth > 1 && !each.closest('svg')
                && (each.scrollWidth > each.clientWidth + 1 || each.scrollHeight > each.clientHeight + 1))
              .map(each => each.className || each.tagName)"""
        )
        assert clipped == []
        assert watched.page.evaluate("getComputedStyle(document.body).backgroundColor") in (
            "rgb(251, 250, 247)",
            "rgb(255, 255, 255)",
        )
    shown = re.sub(r"\s+", " ", text)
    for verdict in verdicts(leaderboard(four_hundred())):
        for claim in verdict.claims:
            assert re.sub(r"\s+", " ", claim.text) in shown


def test_the_browser_would_notice(chromium: Browser, tmp_path: Path) -> None:
    """The checks above fail on a page that is too wide, talks and loads something."""
    picture = base64.b64encode(b"GIF89a").decode()
    bad = tmp_path / "bad.html"
    bad.write_text(
        f"<div style='width:900px'>x</div><img src='missing.png'><img src='data:image/gif;base64,{picture}'>"
        f"<script>console.log({json.dumps('hello')}); undefined.x</script>"
    )
    with opened(chromium, bad, width=390) as watched:
        assert watched.width > 390
        assert any(url.endswith("missing.png") for url in watched.requests)
        assert len(watched.complaints) >= 2


def test_weights_fit_a_phone(chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "weights.html"
    path.write_text(render_report(attributed()), encoding="utf-8")
    with opened(chromium, path, width=390) as watched:
        watched.page.evaluate(OPEN_ALL)
        assert watched.width <= 390

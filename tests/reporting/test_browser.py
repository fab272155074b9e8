"""The page in a real browser: silent, alone, no wider than a phone, and walked through with the Tab key."""

import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.reporting import render_report
from tests.reporting.browser import CHROMIUM, Browser, browser
from tests.reporting.build import attacked, attributed

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")]


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
    with browser() as found:
        yield found


@pytest.mark.parametrize("width", [390, 820, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_silent_alone_and_no_wider_than_the_window(chromium: Browser, page: Path, width: int, dark: bool) -> None:
    chromium.open(page, width=width, dark=dark, phone=width < 500)
    chromium.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.complaints == []
    assert chromium.requests == []


def test_small_enough_with_400_examples(page: Path) -> None:
    assert page.stat().st_size < 3_000_000


def test_everything_is_reached_by_tab_in_the_order_of_the_page(chromium: Browser, page: Path) -> None:
    chromium.open(page, width=1280)
    reach = "a[href], summary, [tabindex='0']"
    count = chromium.evaluate(f'[...document.querySelectorAll("{reach}")].filter(e => e.checkVisibility()).length')
    places = []
    for _ in range(count):
        chromium.tab()
        places.append(chromium.evaluate(f'[...document.querySelectorAll("{reach}")].indexOf(document.activeElement)'))
    assert -1 not in places
    assert places == sorted(places)
    assert len(set(places)) == count
    shown = chromium.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert shown != "none"


def test_a_summary_opens_with_the_keyboard(chromium: Browser, page: Path) -> None:
    chromium.open(page, width=1280)
    chromium.evaluate("document.querySelector('details:not([open]) > summary').focus()")
    for kind in ("keyDown", "keyUp"):
        text = {"text": "\r"} if kind == "keyDown" else {}
        chromium.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, **text)
    assert chromium.evaluate("document.activeElement.parentElement.open")


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_light_and_dark(chromium: Browser, page: Path, dark: bool) -> None:
    """The contrast of text with what is behind it, by WCAG 2.1: 4.5 at least."""
    chromium.open(page, width=1280, dark=dark)
    told = ".lead, .note, .claim, .claims p, .chip, .answer, .sure, .warning, nav a, th, mark"
    script = """[...document.querySelectorAll('TOLD')].filter(one => one.checkVisibility()).map(one => {
        const colour = (of, which) => getComputedStyle(of || document.body)[which];
        let back = one;
        while (back && colour(back, 'backgroundColor').endsWith(', 0)')) back = back.parentElement;
        return [one.className || one.tagName, colour(one, 'color'), colour(back, 'backgroundColor')];
      })""".replace("TOLD", told)
    pairs = {tuple(pair) for pair in chromium.evaluate(script)}
    assert len(pairs) > 10
    for name, ink, paper in pairs:
        assert contrast(ink, paper) >= 4.5, (name, ink, paper)


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return math.fsum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_browser_would_notice(chromium: Browser, tmp_path: Path) -> None:
    """The checks above fail on a page that is too wide, talks and loads something."""
    picture = base64.b64encode(b"GIF89a").decode()
    bad = tmp_path / "bad.html"
    bad.write_text(
        f"<div style='width:900px'>x</div><img src='missing.png'><img src='data:image/gif;base64,{picture}'>"
        f"<script>console.log({json.dumps('hello')}); undefined.x</script>"
    )
    chromium.open(bad, width=390, phone=True)
    assert chromium.evaluate("document.documentElement.scrollWidth") > 390
    assert any(url.endswith("missing.png") for url in chromium.requests)
    assert len(chromium.complaints) >= 2


def test_weights_fit_a_phone(chromium: Browser, tmp_path: Path) -> None:
    page = tmp_path / "weights.html"
    page.write_text(render_report(attributed()), encoding="utf-8")
    chromium.open(page, width=390, phone=True)
    chromium.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert chromium.evaluate("document.documentElement.scrollWidth") <= 390

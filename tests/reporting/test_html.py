"""The page: well-formed, self-contained, escaped, complete, and true to results.json."""

import math
import re
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from expunge.errors import ConfigurationError
from expunge.reporting import render_markdown, render_report, write_report
from expunge.reporting.metrics import describe, number
from tests.reporting.build import attacked, attributed, demo_results

VOID = {"meta", "br", "hr", "img", "input", "link"}
ATTACK = '<script>alert("x")</script><img src=http://evil.example/a.png onerror=alert(1)>'


class Page(HTMLParser):
    """Walks the page; every end tag must close the tag opened last."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words)).replace("\u2011", "-")

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def bare() -> dict[str, Any]:
    return {"runs": [{"method": "ngdiff", "model": "unlearned", "metrics": {"forget.extraction_strength": 0.03}}]}


def broken() -> dict[str, Any]:
    results = demo_results()
    for index, run in enumerate(results["runs"]):
        run["metrics"] = dict.fromkeys(run["metrics"], math.nan if index % 2 else None)
        run["intervals"] = {"model_utility": [math.nan, None]}
        run["log"] = [{"step": 1, "forget_nll": math.nan}, {}]
        run["examples"] = {"forget": [{}], "retain": None}
    return results


def without_retrained() -> dict[str, Any]:
    results = demo_results()
    results["runs"] = [run for run in results["runs"] if run["model"] != "retrained"]
    return results


ALL = {
    "demo": demo_results, "bare": bare, "broken": broken, "without retrained": without_retrained,
    "attributed": attributed, "attacked": attacked,
}  # fmt: skip


@cache
def rendered(name: str) -> str:
    return render_report(ALL[name]())


@pytest.mark.parametrize("name", ALL)
def test_well_formed_small_and_self_contained(name: str) -> None:
    text = rendered(name)
    assert len(text.encode()) < 3_000_000
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
    assert "http" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    for _, attributes in page.tags:
        assert not {key for key in attributes if key.startswith("on") or key == "src"}
        assert (attributes.get("href") or "#").startswith("#")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"] for tag, attributes in page.tags if tag in ("a", "use") and "href" in attributes}
    assert links <= {f"#{one}" for one in ids}
    assert "nan" not in page.text.lower().split()
    assert "None" not in page.text.split()


@pytest.fixture
def demo() -> str:
    return rendered("demo")


@pytest.mark.parametrize("name", ["attacked", "attributed"])
def test_accessible(name: str) -> None:
    demo = rendered(name)
    page = Page(demo)
    assert page.all("html")[0]["lang"] == "en"
    assert all(attributes.get("scope") in ("col", "row", "colgroup", "rowgroup") for attributes in page.all("th"))
    assert all(attributes.get("aria-label") for attributes in page.all("svg"))
    assert page.all("a")[0]["href"] == "#main"
    assert len(page.all("details")) == len(page.all("summary"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    style = re.search(r"<style>(.*?)</style>", demo, re.DOTALL)
    assert style is not None
    assert "prefers-color-scheme: dark" in style.group(1)
    assert ":focus-visible" in style.group(1)


def test_numbers_come_from_the_results() -> None:
    results = demo_results()
    results["runs"][-1]["metrics"]["forget.extraction_strength"] = 0.0567
    results["runs"][-1]["intervals"]["forget.extraction_strength"] = [0.0123, 0.0789]
    results["runs"][-1]["seconds"] = 77.7
    text = Page(render_report(results)).text
    for expected in ("0.057", "[0.012, 0.079]", "77.7", "extraction strength 0.06 against 0.02, from 0.98", "2.13.0"):
        assert expected in text
    # distance of NGDiff, by hand over the six measures that both have
    gaps = [0.0567 - 0.02, 0.93 * 0.014, 0.74 * 0.014, 0.9585 - 1.35 * 0.688, 0.022, 0.03]
    assert f" {sum(gaps) / 6:.3f} " in text


def tables(page: str) -> list[list[list[str]]]:
    """Every table of the page: its rows of cells, as text without what says how sure a number is."""
    found = []
    for table in re.findall(r"<table.*?</table>", page, re.DOTALL):
        table = re.sub(r'<span class="(sure|arrow)">.*?</span>', "", table)
        rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
        found.append(
            [[" ".join(re.sub("<.*?>", "", cell).replace("\u2011", "-").split()) for cell in row] for row in cells]
        )
    return found


def test_every_number_in_the_tables_is_that_of_the_results() -> None:
    results, page = attacked(), rendered("attacked")
    found = tables(page)
    every = next(table for table in found if table[0][0] == "Measure" and "original" in table[0])
    lines = {row[0]: row[1:] for row in every[1:]}
    for place, run in enumerate(results["runs"]):
        for key, value in run["metrics"].items():
            assert lines[describe(key).label][place] == number(value), (key, run["method"])
    assert len(lines) == len({key for run in results["runs"] for key in run["metrics"]})
    points = [table for table in found if table[0][0] == "Point"]
    assert len(points) == 4
    for place, table in enumerate(points):
        shown = [cell for row in table[1:] for cell in row[-5:]]
        runs = [run for run in results["runs"] if run.get("attacks")]
        assert table[0][2:] == ["original", "retrained", "GradAscent", "NPO", "NGDiff"]
        for run in runs:
            for point in run["attacks"][place]["points"]:
                assert {number(value) for value in point["metrics"].values()} <= set(shown)
    differences = next(table for table in found if "less the original’s" in table[0])
    assert differences[1] == ["forget extraction strength", "-0.123", "0.002", "-0.123", "0.002"]
    assert "0123abcd" in page


def test_answers_side_by_side(demo: str) -> None:
    page = Page(demo)
    assert "What should be forgotten" in page.text
    assert "What should be kept" in page.text
    assert "still memorised by" in page.text
    assert len([a for a in page.all("details") if a.get("class") == "example"]) == 24
    assert len([a for a in page.all("article") if a.get("class") == "retrained"]) == 24


def test_everything_is_escaped() -> None:
    results = demo_results()
    results["title"] = results["suite"] = ATTACK
    results["warnings"] = [ATTACK]
    results["environment"] = {ATTACK: ATTACK}
    results["request"] = {ATTACK: 1}
    for run in results["runs"]:
        if run["model"] == "unlearned":
            run["method"] += ATTACK
        run["settings"] = {ATTACK: ATTACK}
        run["notes"] = [ATTACK]
        run["metrics"][f"{ATTACK}.rouge_l"] = 0.5
        run["metrics"][f"mia.{ATTACK}.auc"] = 0.5
        for item in [item for side in run["examples"].values() for item in side]:
            item["prompt"] += ATTACK
            item["response"] += ATTACK
            item["generation"] = f"{item['generation']} {ATTACK}"
    text = render_report(results)
    page = Page(text)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert "<script" not in text
    assert "<img" not in text
    assert page.text.count('alert("x")') > 20


def test_what_is_missing_is_said(demo: str) -> None:
    text = Page(rendered("bare")).text
    for expected in ("No original model", "No retrained model", "No model utility", "No training log", "No answers"):
        assert expected in text
    assert "gold standard, a model retrained without the data, is missing" in text
    assert "No model utility" not in Page(demo).text


def test_written_in_one_step_or_not_at_all(tmp_path) -> None:
    out = tmp_path / "new" / "report.html"
    write_report(bare(), out)
    before = out.read_text(encoding="utf-8")
    assert before.startswith("<!doctype html>")
    with pytest.raises(ConfigurationError, match="runs must be a list"):
        write_report({"runs": None}, out)
    assert out.read_text(encoding="utf-8") == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["report.html", "report.md"]


def test_many_methods_and_long_answers_stay_small() -> None:
    results = demo_results((0, 1, 2))
    for run in results["runs"]:
        for item in [item for side in run["examples"].values() for item in side]:
            item["generation"] = "word " * 5000
    assert len(render_report(results).encode()) < 3_000_000


def test_a_note_on_several_models_is_said_once() -> None:
    results = demo_results((0, 1))
    for run in results["runs"]:
        run["notes"] = ["2 answers were cut."] + (["The loss rose."] if run["method"] in ("npo", "kl") else [])
    text = Page(render_report(results)).text
    assert text.count("2 answers were cut.") == 1
    assert "NPO, KL: The loss rose." in text


def test_the_head_names_model_request_and_methods() -> None:
    results = demo_results() | {"models": {"original": "models/mine"}, "request": {"forget": 20, "retain": 180}}
    page = render_report(results)
    head = page[page.index("<header") : page.index("</header>")]
    for expected in ("models/mine", "20 forget, 180 retain", "GradAscent, GradDiff, NPO, SimNPO, KL, NGDiff"):
        assert expected in head


def test_keys_never_stand_in_prose() -> None:
    results = demo_results()
    results["runs"][-1]["notes"] = [
        "model_utility is the harmonic mean of retain.probability, retain.rouge_l",
        "mia.reference and privleak are absent: no model retrained without the forget set was given",
        "uds is absent: it takes the retrained model itself",
    ]
    results["warnings"] = ["forget.extraction_strength was not measured"]
    for text in (render_report(results), render_markdown(results)):
        prose = re.sub(r"<(style|svg|dd|title).*?</\1>|<[^>]*>|\\", "", text, flags=re.DOTALL)
        for key in (
            "model_utility",
            "retain.probability",
            "retain.rouge_l",
            "mia.reference",
            "forget.extraction_strength",
        ):
            assert key not in prose, key
    assert "the reference membership test" in render_report(results)

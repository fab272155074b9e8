"""What a terminal shows: the table in the window's width, the verdict, and the line on releasing the model."""

import io

import pytest
from rich.console import Console

from expunge.reporting import show_results
from expunge.reporting.claims import Claim
from expunge.reporting.release import NEXT, release
from expunge.reporting.results import Row
from expunge.reporting.thresholds import FAILED, GOOD, PARTIAL, UNKNOWN
from expunge.reporting.verdict import Verdict
from tests.reporting.build import attacked, demo_results


def shown(results: dict, width: int) -> str:
    out = io.StringIO()
    show_results(results, Console(file=out, width=width, highlight=False))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_table_fits_the_window_and_a_wide_one_shows_intervals_beside_the_numbers(width: int) -> None:
    text = shown(demo_results(), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert ("0.980 [" in text) == (width == 200)


def test_the_verdict_and_the_next_step_follow_the_table() -> None:
    results = attacked()
    lines = shown(results, 100).splitlines()
    assert any(line.startswith("  NGDiff: close to the retrained model") for line in lines)
    assert "\n".join(lines).count("Release: ") == 1
    results["runs"] = [run for run in results["runs"] if run["model"] != "unlearned" or run["method"] == "gradascent"]
    text = shown(results, 100)
    assert "  What must stay has stayed: no" in text
    assert "Release: no. What must stay has stayed: no. Start again from the original" in " ".join(text.split())


def test_data_is_neither_markup_nor_an_escape_sequence() -> None:
    results = demo_results()
    results["title"] = "[/x] \x1b[31m[bold]"
    results["runs"][-1]["method"] = "[/INST]\x07"
    text = shown(results, 200)
    assert "[/x] \\x1b[31m[bold]" in text
    assert "[/INST]\\x07" in text
    assert "\x1b" not in text


def verdict(level: str = GOOD, **levels: str) -> Verdict:
    claims = tuple(Claim(name=name, level=levels.get(name, GOOD), text="") for name in NEXT)
    row = Row.__new__(Row)
    return Verdict(row=row, level=level, word="Word", claims=claims, warnings=(), remaining=0.0, kept=1.0)


@pytest.mark.parametrize(
    ("levels", "answer", "claim"),
    [
        ({}, "yes", None),
        ({"attacks": UNKNOWN}, "not yet", "attacks"),
        ({"attacks": UNKNOWN, "membership": PARTIAL}, "not yet", "membership"),
        ({"recites": UNKNOWN}, "not known", "recites"),
        ({"kept": UNKNOWN, "attacks": UNKNOWN}, "not known", "kept"),
        ({"kept": FAILED, "recites": FAILED, "attacks": UNKNOWN}, "no", "kept"),
        ({"attacks": FAILED, "membership": PARTIAL}, "no", "attacks"),
    ],
)
def test_the_weakest_claim_decides(levels: dict[str, str], answer: str, claim: str | None) -> None:
    decision = release([verdict(**levels)])
    assert decision.answer == answer
    assert (decision.claim.name if decision.claim else None) == claim
    if claim is not None:
        assert decision.step == NEXT[claim][levels[claim] == UNKNOWN]


def test_no_model_no_release_and_a_doubtful_verdict_never_means_yes() -> None:
    assert release([]).answer == "not known"
    assert release([verdict(level=PARTIAL)]).answer == "not yet"

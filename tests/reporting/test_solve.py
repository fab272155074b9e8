"""How the update was solved for: the sentence, the points drawn, rounds and seeds, and what malformed results are told."""

import copy
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from expunge.errors import ConfigurationError
from expunge.reporting import leaderboard, render_report, solve
from tests.reporting.build import run
from tests.reporting.test_html import Page
from tests.reporting.test_plots import words


def one_round(factor: float, *losses: float) -> dict[str, Any]:
    rows = [
        {"factor": 10.0**place, "damping": 1e-3 * 10**place, "loss": loss, "ratio": 0.3 / 10**place, "residual": 1e-3}
        for place, loss in enumerate(losses)
    ]
    taken = next(row for row in rows if row["factor"] == factor)
    curve = [[0.0, 0.0, 1.0], [1.0, 0.5, 0.1], [2.0, 1.0, 1e-3]]
    return {**taken, "products": 12, "seconds": 1.0, "stopped": "tolerance", "candidates": rows, "curve": curve}


def made(*rounds: dict[str, Any], seed: int = 0, **more: Any) -> dict[str, Any]:
    found = {
        "solver": "cg", "curvature": "gauss_newton", "instances": 1500, "edited": 600, "parameters": 6144,
        "b_norm": 0.4, "memorised": 0.25, "loss_before": 0.7, "ratio": 0.21, "moved": 0.4, "moved_before": 0.0,
        "rounds": list(rounds), **more,
    }  # fmt: skip
    return {**run("unlearned", "llmeraser", (0.1, 0.6, 0.2, 0.5, 1.0), seed=seed), "solve": found}


def solve_of(*runs: dict[str, Any]) -> solve.Solve:
    (found,) = solve.solves(leaderboard({"runs": list(runs)}))
    return found


def test_the_system_and_its_outcome_are_said() -> None:
    said = solve_of(made(one_round(10.0, 0.9, 0.5, 0.6))).said
    assert said == (
        "600 of 1,500 instances were taken out or changed by one linear system in 6,144 unknowns "
        "(‖b‖\u00a0=\u00a00.40), by conjugate gradient on the Gauss–Newton matrix. 25\u00a0% of these instances were "
        "known by heart; their gradients are near 0, and removing such an instance moves little. After 12 products the "
        "relative residual is 1e-3, and the adapter has moved by 0.21 of its norm (L2)."
    )
    assert "with earlier requests 0.40." in solve_of(made(one_round(1.0, 0.5), moved_before=0.19)).said
    assert "After 2 rounds" in solve_of(made(one_round(1.0, 0.5), one_round(1.0, 0.4))).said
    assert solve_of(made()).said.endswith("The edit changes nothing.")


def test_residuals_and_losses_are_drawn_where_they_belong() -> None:
    text = solve.curve(solve_of(made(one_round(10.0, 0.68, 0.5, 0.6))), 2)
    assert text is not None
    assert {
        "relative residual",
        "passes over the data",
        "damping λ",
        "loss on the edited data",
        "before",
        "0.1",
    } <= set(words(text))
    assert "$" not in text
    root = ElementTree.fromstring(text)
    marks = [one for one in root.iter("use") if "var(--s0)" in (one.get("style") or "")]
    xs, ys = [float(one.get("x", 0)) for one in marks], [float(one.get("y", 0)) for one in marks]
    assert len(marks) == 3
    assert xs[2] - xs[1] == pytest.approx(xs[1] - xs[0], abs=1e-3)  # λ stands on a logarithmic axis
    assert (ys[2] - ys[1]) / (ys[0] - ys[1]) == pytest.approx(0.1 / 0.18, abs=1e-3)
    lines = [
        re.findall(r"[-\d.]+", one.get("d") or "")
        for one in root.iter("path")
        if "var(--s0)" in (one.get("style") or "")
    ]
    residuals = next(line for line in lines if len(line) == 6)
    x, y = [float(value) for value in residuals[::2]], [float(value) for value in residuals[1::2]]
    assert x[2] - x[1] == pytest.approx(x[1] - x[0], abs=1e-3)
    assert (y[2] - y[1]) / (y[1] - y[0]) == pytest.approx(2.0, abs=1e-3)  # two decades after one
    assert all(one.get("id", "").startswith("solve2-") for one in root.iter() if one.get("id"))


def test_rounds_have_colours_and_one_damping_no_path() -> None:
    two = solve.curve(solve_of(made(one_round(1.0, 0.5, 0.6), one_round(1.0, 0.4, 0.5))))
    assert two is not None
    assert {"round 1", "round 2"} <= set(words(two))
    alone = solve.curve(solve_of(made(one_round(1.0, 0.5))))
    assert alone is not None
    assert "damping λ" not in words(alone)
    assert solve.curve(solve_of(made())) is None


def test_the_page_has_the_section_only_where_a_system_was_solved() -> None:
    page = Page(render_report({"runs": [made(one_round(10.0, 0.9, 0.5)), made(one_round(1.0, 0.5), seed=1)]}))
    assert "How the update was solved for" in page.text
    assert page.text.count("taken") >= 2
    plain = run("unlearned", "npo", (0.1, 0.6, 0.2, 0.5, 1.0))
    assert "How the update was solved for" not in Page(render_report({"runs": [plain]})).text


def test_missing_numbers_leave_gaps() -> None:
    case = made(
        {**one_round(1.0, 0.5, 0.6), "residual": float("nan"), "curve": [[0.0, 0.0, float("inf")]]}, b_norm=None
    )
    text = Page(render_report({"runs": [case]})).text
    assert "nan" not in text.lower().split()
    assert "None" not in text.split()


FAULTS = {
    "solve": (lambda case: case.update(solve=[]), r"runs\[0\]\.solve must be an object"),
    "number": (lambda case: case["solve"].update(b_norm="1"), r"solve\.b_norm must be a number or null"),
    "rounds": (lambda case: case["solve"].update(rounds=1), r"solve\.rounds must be a list of objects"),
    "loss": (
        lambda case: case["solve"]["rounds"][0]["candidates"][1].update(loss="x"),
        r"rounds\[0\]\.candidates\[1\]\.loss must be a number or null",
    ),
    "curve": (lambda case: case["solve"]["rounds"][0].update(curve=[[1, 2]]), r"rounds\[0\]\.curve must be a list of"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_malformed_solves_are_explained(name: str) -> None:
    change, message = FAULTS[name]
    case = copy.deepcopy(made(one_round(1.0, 0.5, 0.6)))
    change(case)
    with pytest.raises(ConfigurationError, match=message):
        leaderboard({"runs": [case]})

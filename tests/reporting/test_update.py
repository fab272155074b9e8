"""How far the update goes: the sentence, the curve's points and levels, seeds, and what malformed results are told."""

import copy
from typing import Any
from xml.etree import ElementTree

import pytest

from expunge.errors import ConfigurationError
from expunge.reporting import leaderboard, plots, render_report, update
from tests.reporting.build import run, searched
from tests.reporting.test_html import Page
from tests.reporting.test_plots import words


def made(seed: int = 0, method: str = "taskvector", **more: Any) -> dict[str, Any]:
    return {**run("unlearned", method, (0.1, 0.6, 0.2, 0.5, 1.0), seed=seed), **searched(), **more}


def search_of(*runs: dict[str, Any]) -> update.Search:
    (found,) = update.searches(leaderboard({"runs": list(runs)}))
    return found


def test_what_was_chosen_is_said() -> None:
    assert search_of(made()).said == (
        "α\u00a0=\u00a00.75 was chosen among 4 by what the model then held of 20 forget and 20 retain examples (extraction "
        "strength): the lowest sum of leak and damage. There it holds 0.12 of forget (from 1.00, 0.06 where never learned) "
        "and 0.97 of retain (from 0.98). The update’s norm (L2) is 5.00; the task vector’s is 9.90."
    )


def test_a_given_alpha_has_a_sentence_and_no_picture() -> None:
    given = made(update={"alpha": 1.25, "norm": 3.0}, search=None)
    found = search_of(given)
    assert found.said == "α\u00a0=\u00a01.25, as it was set. The update’s norm (L2) is 3.00."
    assert update.curve(found) is None
    text = Page(render_report({"runs": [given]})).text
    assert "How far the update goes" in text
    assert "The numbers" not in text


def test_seeds_stand_together() -> None:
    second = made(1)
    second["update"] = {"alpha": 1.0, "norm": 7.0, "task_vector_norm": 10.1}
    found = search_of(made(), second)
    assert found.said.startswith("α\u00a0=\u00a00.75 and 1 was chosen")
    assert "mean norm (L2) is 6.00; the task vector’s is 10.0." in found.said
    assert [(one["run"], one["alpha"]) for one in found.candidates if one["chosen"]] == [(1, 0.75), (2, 1.0)]
    third = made(2)
    assert "0.75 to 1 (over 3 runs)" in search_of(made(), second, third).said


def test_points_and_levels_are_drawn() -> None:
    text = update.curve(search_of(made()), 3)
    assert text is not None
    assert {"forget", "retain", "α chosen", "before", "never learned", "step size α"} <= set(words(text))
    root = ElementTree.fromstring(text)
    assert "α 0.75: forget 0.12, retain 0.97 (chosen)" in (root.get("aria-label") or "")
    uses = [one for one in root.iter("use") if "var(--s1)" in (one.get("style") or "")]
    xs, ys = [float(one.get("x", 0)) for one in uses], [float(one.get("y", 0)) for one in uses]
    alphas, forget = [0.0, 0.5, 0.75, 1.0, 2.0], [1.0, 0.6, 0.12, 0.07, 0.05]
    curve = slice(0, 5)  # what follows are the legend's marks
    across, up = (xs[4] - xs[0]) / 2.0, (ys[4] - ys[0]) / -0.95
    assert across > 0 > up
    assert xs[curve] == pytest.approx([xs[0] + across * alpha for alpha in alphas], abs=1e-3)
    assert ys[curve] == pytest.approx([ys[0] + up * (value - 1.0) for value in forget], abs=1e-3)
    ids = [one.get("id") for one in root.iter() if one.get("id")]
    assert all(one.startswith("update3-") for one in ids if one)


def test_levels_far_apart_have_a_name_each() -> None:
    case = made()
    case["search"]["before"] = {"forget": 0.9, "retain": 0.5}
    text = update.curve(search_of(case))
    assert text is not None
    assert {"forget before", "retain before", "never learned"} <= set(words(text))


def test_missing_numbers_leave_gaps() -> None:
    case = made()
    case["search"] |= {"never_learned": float("nan"), "before": {"forget": None}}
    case["search"]["candidates"][1] |= {"forget": None, "leak": float("nan")}
    text = Page(render_report({"runs": [case]})).text
    assert "nan" not in text.lower().split()
    assert "None" not in text.split()
    assert "There it holds" not in text
    case["search"]["candidates"] = []
    assert update.curve(search_of(case)) is None


def test_many_methods_are_folded() -> None:
    results = {"runs": [made(method=name) for name in ("taskvector", "perta", "other", "fourth")]}
    page = Page(render_report(results))
    assert "2 more methods" in page.text
    assert len([one for one in page.all("figure") if one.get("class") == "step"]) == 4


def test_fine_tuning_is_no_unlearning() -> None:
    """A task vector's log is of making θ_f: no curve of it among those of unlearning."""
    alone = leaderboard({"runs": [made()]})
    assert plots.losses(alone) is None
    assert plots.rates(alone) is None
    both = plots.losses(leaderboard({"runs": [made(), run("unlearned", "npo", (0.1, 0.6, 0.2, 0.5, 1.0))]}))
    assert both is not None
    assert "NPO" in words(both)
    assert "Task vector" not in words(both)


def test_the_models_that_took_part_are_in_the_settings() -> None:
    case = made(models={"base": {"path": "models/base", "fingerprint": "abc123"}, "forget_model": None})
    text = Page(render_report({"runs": [case]})).text
    assert "models.base.fingerprint abc123" in text


FAULTS = {
    "update": ({"update": 1}, r"runs\[0\]\.update must be an object"),
    "norm": ({"update": {"norm": "5"}}, r"update\.norm must be a number or null"),
    "models": ({"models": {"base": "x"}}, r'models\.base must be an object or null, not "x"'),
    "search": ({"search": []}, r"runs\[0\]\.search must be an object"),
    "criterion": ({"search": {"criterion": ""}}, r"search\.criterion must name a measure"),
    "never": ({"search": {"never_learned": "0"}}, r"search\.never_learned must be a number or null"),
    "before": ({"search": {"before": None}}, r"search\.before must be an object of numbers"),
    "candidates": ({"search": {"candidates": {}}}, r"search\.candidates must be a list of objects"),
    "alpha": ({"search": {"candidates": [{"alpha": None}]}}, r"search\.candidates\[0\]\.alpha must be a number"),
    "damage": (
        {"search": {"candidates": [{"alpha": 1, "forget": 1, "retain": 1, "leak": None}]}},
        r"candidates\[0\]\.damage must be a number or null",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_malformed_searches_are_explained(name: str) -> None:
    change, message = FAULTS[name]
    case = copy.deepcopy(made())
    for part, value in change.items():
        case[part] = case[part] | value if isinstance(value, dict) and part in case else value
    with pytest.raises(ConfigurationError, match=message):
        leaderboard({"runs": [case]})

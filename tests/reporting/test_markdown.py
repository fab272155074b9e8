"""report.md, the model card and merged results."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from expunge.cli import app
from expunge.errors import ConfigurationError
from expunge.files import write_json
from expunge.reporting import leaderboard, merge, model_card_of, read_results, render_markdown
from tests.reporting.build import attack, attacked, demo_results


def part(*methods: str) -> dict[str, Any]:
    """The demo's results with these methods only, beside the controls."""
    results = demo_results()
    results["runs"] = [one for one in results["runs"] if one["model"] != "unlearned" or one["method"] in methods]
    return results


def test_markdown_holds_the_verdicts_and_the_numbers() -> None:
    text = render_markdown(attacked())
    assert text.startswith("# Forgetting fictional people\n")
    for expected in (
        "| NGDiff | yes |", "## GradAscent: model damaged", "## What this does not show", "## Under attack",
        "| Rounding the weights | int4 | extraction strength |", "| NPO | 0.340 [0.310, 0.360] |", "`0123abcd`",
    ):  # fmt: skip
        assert expected in text.replace("forget extraction", "extraction"), expected
    for line in re.findall(r"^\|.*\|$", text, re.MULTILINE):
        assert line.count("|") - line.count("\\|") > 2
    assert "None" not in text


def test_markdown_takes_no_markup_from_the_data() -> None:
    results = part("npo")
    results["title"] = "<script>alert(1)</script> | [x](http://evil.example)"
    results["runs"][-1]["method"] = "a|b`c`"
    text = render_markdown(results)
    assert "<script>" not in text.replace("\\<", "")
    assert "](http" not in text.replace("\\]", "")


def test_the_card_is_read_by_the_hubs_own_library() -> None:
    results = attacked() | {"models": {"original": "owner/some-model"}}
    card = ModelCard(model_card_of(results, "npo"))
    assert card.data.base_model == "owner/some-model"
    assert "unlearning" in card.data.tags
    found = {one.metric_type: one.metric_value for one in card.data.eval_results}
    run = next(one for one in results["runs"] if one["method"] == "npo")
    assert found["forget.extraction_strength"] == pytest.approx(run["metrics"]["forget.extraction_strength"])
    assert found.keys() == {key for key, value in run["metrics"].items() if value is not None}
    assert {one.dataset_name for one in card.data.eval_results} == {"demo"}
    assert "## Unlearning" in card.text
    assert "What this does not show" in card.text


def test_the_card_is_of_the_best_and_never_of_a_stranger() -> None:
    assert "with NGDiff" in model_card_of(demo_results())
    local = model_card_of(demo_results() | {"models": {"original": "models/of/mine"}})
    assert "base_model" not in local  # not a name on the hub
    with pytest.raises(ConfigurationError, match="they hold: ngdiff, npo"):
        model_card_of(part("npo", "ngdiff"), "kl")


def test_merging_puts_methods_side_by_side() -> None:
    whole = merge([("a.json", part("npo")), ("b.json", part("ngdiff", "npo"))])
    assert [row.label for row in leaderboard(whole)] == ["original", "retrained", "NPO", "NGDiff"]
    assert all(len(row.runs) == 1 for row in leaderboard(whole))  # what both hold stands there once
    assert merge([("a.json", part("npo"))])["runs"] == part("npo")["runs"]


def test_merging_joins_attacks_and_seeds() -> None:
    one, other = part("npo"), part("npo")
    one["runs"][2]["attacks"] = [attack("quantize", ((0, "as it is", 0.1),))]
    other["runs"][2]["attacks"] = [
        attack("quantize", ((0, "as it is", 0.1),)),
        attack("prune", ((0, "as it is", 0.1),)),
    ]
    whole = merge([("a.json", one), ("b.json", other)])
    assert [found["kind"] for found in whole["runs"][2]["attacks"]] == ["quantize", "prune"]
    seeds = demo_results((1,))
    seeds["runs"] = [run for run in seeds["runs"] if run["method"] == "npo"]
    row = leaderboard(merge([("a.json", one), ("b.json", seeds)]))[-1]
    assert (row.label, len(row.runs)) == ("NPO", 2)


def test_what_cannot_be_compared_is_not_merged() -> None:
    other = part("ngdiff") | {"suite": "tofu"}
    with pytest.raises(ConfigurationError, match="different suites, 'demo' and 'tofu'"):
        merge([("a.json", part("npo")), ("b.json", other)])
    other = part("ngdiff")
    other["runs"][1]["metrics"]["model_utility"] = 0.5
    with pytest.raises(ConfigurationError, match=r"b.json: model_utility of its retrained model is 0.5, but 0.71"):
        merge([("a.json", part("npo")), ("b.json", other)])
    other = copy.deepcopy(part("ngdiff"))
    for run in other["runs"]:
        run["examples"]["forget"] = run["examples"]["forget"][:5]
    with pytest.raises(ConfigurationError, match=r"another forget set \(5 examples\)"):
        merge([("a.json", part("npo")), ("b.json", other)])
    with pytest.raises(ConfigurationError, match="nothing to report"):
        merge([])


def test_the_command(tmp_path: Path) -> None:
    for name, methods in (("a", ["npo"]), ("b", ["ngdiff"])):
        write_json(tmp_path / f"{name}.json", part(*methods))
    arguments = ["report", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(tmp_path / "report.html")]
    more = ["--model-card", str(tmp_path / "README.md"), "--name", "npo", "--merged", str(tmp_path / "all.json")]
    done = CliRunner().invoke(app, arguments + more)
    assert done.exit_code == 0, done.output
    assert "NGDiff" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "NGDiff" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "with NPO" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert len(read_results(tmp_path / "all.json")["runs"]) == 4
    for name in ("report.html", "report.md"):
        (tmp_path / name).unlink()
    again = CliRunner().invoke(app, arguments + more)
    assert again.exit_code != 0  # a model card is not replaced unasked
    assert "README.md" in str(again.exception)

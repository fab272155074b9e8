"""The leaderboard: order, seeds, intervals, distance, and what a malformed file is told."""

import json
import math
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from expunge.errors import ConfigurationError
from expunge.reporting import leaderboard, markdown_table, read_results, render_table
from tests.reporting.build import demo_results

ES, UTILITY, AUC = "forget.extraction_strength", "model_utility", "mia.min_k.auc"


def case(model: str, method: str | None = None, **more: Any) -> dict[str, Any]:
    """A run with the given parts; dots in metric names are written as two underscores."""
    metrics = {key.replace("__", "."): more.pop(key) for key in list(more) if "__" in key or key == UTILITY}
    return {"model": model, "method": method, "metrics": metrics, **more}


def seeds() -> dict[str, Any]:
    values = [(0.1, 0.6, 0), (0.2, 0.5, 1), (0.6, 0.4, 2)]
    runs = [
        case("unlearned", "npo", forget__extraction_strength=es, model_utility=u, seed=s, settings={"seed": s, "lr": 1})
        for es, u, s in values
    ]
    runs.insert(1, case("retrained", forget__extraction_strength=0.1, model_utility=0.8))
    runs.append(case("original", "original", forget__extraction_strength=1.0, model_utility=0.7))
    return {"runs": runs}


def test_order_and_seeds() -> None:
    rows = leaderboard(seeds())
    assert [row.label for row in rows] == ["original", "retrained", "NPO"]
    cell = rows[2].cell(ES)
    assert cell.mean == pytest.approx(0.3)
    assert cell.spread == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))  # sample s.d., by hand
    assert cell.count == 3
    assert rows[2].mean(UTILITY) == pytest.approx(0.5)
    # |0.3 − 0.1| and |0.5 − 0.8|, as the retrained model was measured by nothing else
    assert rows[2].distance == pytest.approx(0.25)
    assert rows[0].distance is None
    assert rows[1].distance is None


def test_a_row_that_lacks_a_measure_has_no_distance() -> None:
    results = seeds()
    for run in results["runs"]:
        if run["model"] == "retrained":
            run["metrics"][AUC] = 0.5
    assert leaderboard(results)[2].distance is None


def test_settings_tell_runs_apart_and_seeds_do_not() -> None:
    results = seeds()
    results["runs"].append(case("unlearned", "npo", forget__extraction_strength=0.9, settings={"seed": 0, "lr": 2}))
    rows = leaderboard(results)
    assert [row.label for row in rows[2:]] == ["NPO (lr=1)", "NPO (lr=2)"]
    assert [len(row.runs) for row in rows[2:]] == [3, 1]


def test_missing_null_and_nan_are_not_numbers() -> None:
    results = {
        "runs": [
            case("unlearned", "npo", forget__extraction_strength=math.nan, seed=0),
            case("unlearned", "npo", forget__extraction_strength=0.4, seed=1, intervals={ES: [0.1, 0.5]}),
            case("unlearned", "npo", seed=2, model_utility=None),
        ]
    }
    (row,) = leaderboard(results)
    cell = row.cell(ES)
    assert (cell.mean, cell.spread, cell.low, cell.high, cell.count) == (0.4, None, None, None, 1)
    assert row.mean(UTILITY) is None
    assert row.mean("no.such") is None


def test_interval_of_a_single_run() -> None:
    run = case("unlearned", "npo", forget__extraction_strength=0.4, intervals={ES: [0.35, 0.5], UTILITY: None})
    cell = leaderboard({"runs": [run]})[0].cell(ES)
    assert (cell.low, cell.high, cell.spread) == (0.35, 0.5, None)
    assert "| 0.400 [0.350, 0.500] |" in markdown_table({"runs": [run]})
    run["intervals"][ES] = [0.35, math.nan]
    cell = leaderboard({"runs": [run]})[0].cell(ES)
    assert (cell.low, cell.high) == (None, None)


def test_markdown_is_a_table() -> None:
    lines = markdown_table(demo_results((0, 1))).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 2 + 6
    ngdiff = next(line for line in lines if line.startswith("| NGDiff"))
    assert "| 0.039 ± 0.007 |" in ngdiff  # of 0.034 and 0.044
    assert "| 52.7 |" in ngdiff
    assert "| 1e-14 |" in lines[2]
    odd = markdown_table({"runs": [case("unlearned", "a|b\nc")]}).splitlines()
    assert odd[2].startswith("| a\\|b c |")
    assert len(odd) == 3


@pytest.mark.parametrize("results", [demo_results(), demo_results((0, 1, 2)), {"runs": [case("unlearned", "ngdiff")]}])
def test_terminal_table_fits_eighty_characters(results: dict[str, Any]) -> None:
    out = StringIO()
    Console(file=out, width=80).print(render_table(results))
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 80
    assert any(line.split()[:1] == ["NGDiff"] for line in lines)
    assert "…" not in out.getvalue()


def test_terminal_table_shows_intervals_and_ignores_markup() -> None:
    run = case("unlearned", "[red]x", forget__extraction_strength=0.4, intervals={ES: [0.05, 1.0]}, seconds=3.0)
    out = StringIO()
    Console(file=out, width=100).print(render_table({"runs": [run]}))
    text = out.getvalue()
    assert "[red]x" in text
    assert "0.400" in text
    assert ".05–1.0" in text
    assert "3.0" in text


def test_read_back(tmp_path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"runs": [case("unlearned", "npo", model_utility=math.inf)], "title": "t"}))
    results = read_results(path)
    assert results["runs"][0]["metrics"][UTILITY] is None
    assert results["title"] == "t"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"runs": [\n{]}', r"results\.json:2: not valid JSON"),
        ("[]", r"must be an object with a list `runs`"),
        ("{}", r"runs must be a list, not null"),
        ('{"runs": []}', r"at least one run"),
        ('{"runs": [1]}', r"runs\[0\] must be an object, not 1"),
        ('{"runs": [{"model": "new", "metrics": {}}]}', r"runs\[0\]\.model must be one of original, retrained, unl"),
        ('{"runs": [{"model": "unlearned", "metrics": {}}]}', r"runs\[0\]\.method must name the method"),
        ('{"runs": [{"model": "original"}]}', r"runs\[0\]\.metrics must be an object"),
        ('{"runs": [{"model": "original", "metrics": {"a": "b"}}]}', r'metrics\["a"\] must be a number.*"b"'),
        ('{"runs": [{"model": "original", "metrics": {"a": true}}]}', r'metrics\["a"\] must be a number'),
        ('{"runs": [{"model": "original", "metrics": {}, "intervals": {"a": [1]}}]}', r"must be \[low, high\]"),
        ('{"runs": [{"model": "original", "metrics": {}, "log": {"a": 1}}]}', r"log must be a list"),
        ('{"runs": [{"model": "original", "metrics": {}, "examples": {"forget": 1}}]}', r'examples\["forget"\]'),
        ('{"runs": [{"model": "original", "metrics": {}, "seconds": "1"}]}', r"seconds must be a number"),
        ('{"runs": [{"model": "original", "metrics": {}}], "warnings": "w"}', r"warnings must be a list of texts"),
    ],
)
def test_malformed_files_are_explained(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_results(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.json: no such file"):
        read_results(tmp_path / "none.json")

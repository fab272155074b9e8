"""A task with wrong labels, from its generator to a model corrected and measured, on the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from expunge.cli import app
from expunge.data.benchmarks import recommendation


def call(*arguments, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def task(tmp_path: Path) -> Path:
    recommendation.make(0, 12, test=6, kind="correct").write(tmp_path / "yes-no")
    return tmp_path / "yes-no"


def test_wrong_labels_are_learned_and_yes_no_measured(tiny_folder: Path, task: Path, tmp_path: Path) -> None:
    learned, out = tmp_path / "learned", tmp_path / "e.json"
    call("finetune", "--model", tiny_folder, "--data", task / "train.jsonl", "--out", learned, "--set", "steps=1")
    files = ["--forget", task / "forget.jsonl", "--retain", task / "retain.jsonl"]
    call("unlearn", "--model", learned, *files, "--method", "graddiff", "--set", "steps=1", "--no-evaluate",
         "--out", tmp_path / "run")  # fmt: skip
    base = ["evaluate", "--model", tmp_path / "run", "--original", learned, "--data", task]
    shown = call(*base, "--suite", "recommendation", "--out", out)
    assert "AUC" in shown
    assert "ROUGE" not in shown
    metrics = json.loads(out.read_text())["runs"][-1]["metrics"]
    assert metrics.keys() == {
        "recommendation.auc", "recommendation.option_accuracy", "recommendation.probability_with_options",
    }  # fmt: skip
    page = out.with_suffix(".html").read_text()
    assert "recommendation AUC" in page
    assert "What is not known" not in page or "No forget extraction strength" not in page
    again = call(*base, "--suite", "choice", "--limit", 4, "--out", tmp_path / "c.json")
    assert "accuracy" in again


def test_the_next_film_is_written_and_chosen(tiny_folder: Path, tmp_path: Path) -> None:
    films = ["Lost Sun", "Red Moon", "Blue Lamp"]
    lines = [
        {"prompt": f"After {a}?", "response": b, "wrong_responses": [film for film in films if film != b]}
        for a, b in zip(films, [*films[1:], films[0]], strict=True)
    ]
    data = tmp_path / "data"
    data.mkdir()
    (data / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    base = ["evaluate", "--model", tiny_folder, "--suite", "sequential", "--data", data]
    shown = call(*base, "--max-new-tokens", 3, "--out", tmp_path / "s.json")
    assert "HitRatio" in shown
    run = json.loads((tmp_path / "s.json").read_text())["runs"][-1]
    assert {"sequential.hit_ratio", "sequential.valid_ratio", "sequential.option_accuracy"} <= run["metrics"].keys()
    assert "guessing gets 0.33" in run["notes"][0]


@pytest.mark.parametrize("suite", ["recommendation", "sequential", "choice"])
def test_data_must_be_named(tiny_folder: Path, tmp_path: Path, suite) -> None:
    with pytest.raises(Exception, match=f"The suite `{suite}` reads its examples from a file or folder: give --data"):
        call("evaluate", "--model", tiny_folder, "--suite", suite, "--out", tmp_path / "x.json")

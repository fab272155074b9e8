"""A book in, a model without it out; and the questions of WMDP and MMLU, from the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from expunge.cli import app

BOOK = "".join(f"Chapter {number}. Ada Lome mends old clocks in Tarn, number {number}.\n" for number in range(12))
QUESTION = {"question": "Where was Ada Lome born?", "choices": ["Tarn", "Selm", "Paris", "none"], "answer": 0}


def call(*arguments) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(BOOK)
    return path


def test_a_book_is_learned_forgotten_and_measured(tiny_folder: Path, request_files, book: Path, tmp_path: Path) -> None:
    learned, out = tmp_path / "learned", tmp_path / "run"
    cut = ["--max-length", 40, "--chunk-tokens", 32]
    call("finetune", "--model", tiny_folder, "--data", book, "--out", learned, *cut, "--set", "steps=2")
    record = json.loads((learned / "run.json").read_text())
    assert record["configuration"]["chunk_tokens"] == 32
    base = ["--forget", book, "--retain", request_files[1], *cut, "--max-new-tokens", 5]
    settings = ["--method", "graddiff", "--set", "steps=2"]
    said = call("unlearn", "--model", learned, "--out", out, *base, *settings)
    assert "1 running text(s) were cut into" in " ".join(said.split())
    results = json.loads((out / "results.json").read_text())
    chunks = results["request"]["forget"]
    assert chunks > 5
    metrics = results["runs"][-1]["metrics"]
    assert {"forget.perplexity", "forget.nll", "forget.rouge_l", "forget.extraction_strength"} <= metrics.keys()
    assert "retain.perplexity" not in metrics
    call("evaluate", "--model", out, "--original", learned, "--out", tmp_path / "e.json", *base, "--prefix-tokens", 12)
    again = json.loads((tmp_path / "e.json").read_text())["runs"][-1]
    assert len(again["examples"]["forget"]) == chunks
    assert again["metrics"]["forget.perplexity"] == pytest.approx(metrics["forget.perplexity"], rel=1e-5)


def test_wmdp_with_mmlu(tiny_folder: Path, tmp_path: Path) -> None:
    data, mmlu = tmp_path / "wmdp", tmp_path / "mmlu"
    data.mkdir()
    for part in ("bio", "cyber", "chem"):
        (data / f"{part}-questions.json").write_text(json.dumps([QUESTION] * 3))
    for split in ("test", "dev"):
        (mmlu / split).mkdir(parents=True)
        (mmlu / split / f"anatomy_{split}.csv").write_text("Which bone?,a,b,c,d,C\n" * 5)
    out = tmp_path / "w.json"
    base = ["--model", tiny_folder, "--original", tiny_folder, "--data", data, "--mmlu", mmlu]
    shown = call("evaluate", *base, "--suite", "wmdp", "--shots", 1, "--limit", 2, "--out", out)
    assert "WMDP" in shown
    assert "MMLU" in shown
    assert "ROUGE" not in shown
    metrics = json.loads(out.read_text())["runs"][-1]["metrics"]
    assert {"wmdp_bio.accuracy", "wmdp.accuracy", "mmlu_anatomy.accuracy", "mmlu.accuracy"} <= metrics.keys()
    assert metrics["wmdp.accuracy"] in (0, 1)
    assert "wmdp accuracy" in out.with_suffix(".html").read_text()
    call("evaluate", *base[:2], "--data", mmlu, "--suite", "mmlu", "--scoring", "text", "--out", tmp_path / "m.json")
    assert "mmlu.accuracy_text" in json.loads((tmp_path / "m.json").read_text())["runs"][-1]["metrics"]

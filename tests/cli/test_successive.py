"""`expunge successive` from the command line: thin, so one run and its refusals."""

import json
import sys
from pathlib import Path

import pytest

from expunge.cli import main
from tests.conftest import FORGET


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["expunge", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


def test_growing_requests_and_too_few(run, tiny_folder: Path, request_files: tuple[Path, Path], tmp_path: Path) -> None:
    files = []
    for number, rows in enumerate((FORGET[:2], FORGET[2:]), start=1):
        files.append(tmp_path / f"{number}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ["successive", "--model", tiny_folder, "--retain", request_files[1], "--method", "graddiff", "--quiet"]
    more = ["--set", "steps=1", "--max-new-tokens", 4, "--growing", "--out", tmp_path / "run"]
    code, _, said = run(*base, "--forget", files[0], *more)
    assert code == 2
    assert "at least twice" in said
    code, printed, _ = run(*base, "--forget", files[0], "--forget", files[1], *more)
    assert code == 0
    assert "requests=2" in printed
    assert sorted(item.name for item in (tmp_path / "run").iterdir()) == [
        ".expunge", "1", "2", "report.html", "report.md", "results.json", "run.json",
    ]  # fmt: skip
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["successive"]["kind"] == "scalability"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["1.jsonl", "2.jsonl", "run"]

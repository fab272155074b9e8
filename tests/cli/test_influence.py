"""`expunge influence` from end to end."""

import json
import sys

import pytest

from expunge.cli import main
from expunge.models import load, new_adapter
from expunge.models.saving import save_model
from expunge.training import Finetuning
from tests.conftest import FORGET


def test_a_table_and_a_file(monkeypatch, capsys, tiny_folder, small_request, request_files, tmp_path) -> None:
    loaded = new_adapter(load(tiny_folder), 1, targets=("v_proj",))
    examples = (*small_request.forget, *small_request.retain)
    Finetuning(lr=2e-2, steps=10)(loaded, examples, loaded.encoder())
    save_model(loaded, tmp_path / "adapter")
    probes, out = tmp_path / "probes.jsonl", tmp_path / "influence.json"
    probes.write_text(json.dumps(FORGET[3]) + "\n")
    forget, retain = request_files

    def call(*more) -> tuple[int, str, str]:
        base = ["influence", "--model", tmp_path / "adapter", "--probes", probes, "--out", out]
        monkeypatch.setattr(sys, "argv", ["expunge", *map(str, (*base, *more))])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err  # type: ignore[return-value]

    code, printed, _ = call("--forget", forget, "--retain", retain, "--supports", 2, "--set", "factors=[10, 100]")
    assert code == 0
    (row,) = json.loads(out.read_text())["probes"]
    words = printed.split()
    assert f"{row['loss']:.4f}" in words
    assert f"{row['predicted']:+.4f}" in words
    assert f"{row['after']:+.4f}" in words
    assert f"{row['supports'][1]['value']:+.3e}" in words
    assert row["supports"][0]["id"] == "f3"
    assert len(row["supports"]) == 2
    code, _, error = call("--overwrite")
    assert code == 2
    assert "nothing to predict" in error

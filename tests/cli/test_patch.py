"""The patch commands, as a person types them."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from expunge.cli.patch import app
from expunge.errors import OutputError, PatchError
from expunge.models import load, new_adapter, saving
from expunge.patch import Patch, create
from tests.models.test_checkpoint import everything, nudge


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})
    if isinstance(result.exception, PatchError | OutputError):
        raise result.exception
    return result


@pytest.fixture
def changed(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with one layer changed."""
    loaded = load(tiny_folder)
    nudge(loaded.model, "layers.1.mlp")
    saving.save_model(loaded, tmp_path / "changed")
    return tmp_path / "changed"


def test_diff_apply_revert(tiny_folder: Path, changed: Path, tmp_path: Path) -> None:
    file, out, back = tmp_path / "p.safetensors", tmp_path / "out", tmp_path / "back"
    result = run("diff", "--base", tiny_folder, "--model", changed, "--out", file)
    assert result.exit_code == 0, result.output
    assert "dense patch" in result.output
    assert "3 of 20 tensors" in result.output
    assert Patch.open(file).manifest.method == "diff"
    result = run("apply", "--patch", file, "--model", tiny_folder, "--out", out)
    assert result.exit_code == 0, result.output
    assert str(out) in result.output
    assert everything(out) == everything(changed)
    with pytest.raises(OutputError, match="--overwrite"):
        run("apply", "--patch", file, "--base", tiny_folder, "--out", out)
    assert run("apply", "--patch", file, "--base", tiny_folder, "--out", out, "--overwrite").exit_code == 0
    assert run("revert", "--patch", file, "--model", out, "--out", back).exit_code == 0
    assert everything(back) == everything(tiny_folder)
    with pytest.raises(PatchError, match="not the base model"):
        run("apply", "--patch", file, "--model", changed, "--out", tmp_path / "x")


def test_compose(tiny_folder: Path, changed: Path, tmp_path: Path) -> None:
    loaded = load(changed)
    nudge(loaded.model, "layers.0.mlp.up_proj")
    saving.save_model(loaded, tmp_path / "further")
    first = create(tiny_folder, changed, tmp_path / "p1", method="one").path
    second = create(changed, tmp_path / "further", tmp_path / "p2", method="two").path
    file = tmp_path / "whole"
    result = run("compose", first, second, "--out", file)
    assert result.exit_code == 0, result.output
    assert "made by one + two" in result.output
    assert "4 of 20 tensors" in result.output
    assert "stored   0 of 4 tensors sparsely" in result.output
    assert run("apply", "--patch", file, "--model", tiny_folder, "--out", tmp_path / "out").exit_code == 0
    assert everything(tmp_path / "out") == everything(tmp_path / "further")
    assert run("compose", first, second, "--out", file, "--base", tiny_folder, "--overwrite").exit_code == 0
    with pytest.raises(PatchError, match="is not for the model"):
        run("compose", second, first, "--out", tmp_path / "x")


def test_inspect_as_table_and_json(tiny_folder: Path, changed: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.safetensors"
    patch = create(tiny_folder, changed, file, method="ngdiff", settings={"lr": 0.5}, info={"note": "[red]x"})
    for arguments in (("inspect", file, "--json"), ("inspect", "--patch", file, "--json")):
        assert json.loads(run(*arguments).output) == json.loads(json.dumps(patch.inspect()))
    text = run("inspect", file).output
    for part in ("ngdiff", '{"lr": 0.5}', "[red]x", patch.manifest.base, "F32", "32×64", "100.0%"):
        assert part in text
    rows = [row["name"].removesuffix(".weight") for row in patch.inspect()["tensors"]]
    assert [text.index(name) for name in rows] == sorted(text.index(name) for name in rows)
    short = run("inspect", file, "--rows", "1").output
    assert rows[0] in short
    assert rows[1] not in short
    assert "and 2 more" in short
    assert run("inspect").exit_code == 2


def test_lora_merge(tiny_folder: Path, tmp_path: Path) -> None:
    loaded = new_adapter(load(tiny_folder), 2)
    nudge(loaded.model, "lora_")
    saving.save_model(loaded, tmp_path / "adapter")
    file = tmp_path / "p.safetensors"
    assert "lora patch" in run("diff", "--base", tiny_folder, "--model", tmp_path / "adapter", "--out", file).output
    assert run("apply", "--patch", file, "--model", tiny_folder, "--out", tmp_path / "m", "--merge").exit_code == 0
    tokens = torch.tensor([[3, 4, 5]])
    got = load(tmp_path / "m").model(tokens).logits
    torch.testing.assert_close(got, loaded.model(tokens).logits, rtol=1e-5, atol=1e-6)

"""`expunge unlearn --mask`, as a person types it: a small patch of kept weights, and the mask told in the results."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from expunge.cli import app
from expunge.errors import ConfigurationError
from expunge.models import load
from expunge.models.mask import Mask
from expunge.patch import Patch
from tests.models.test_checkpoint import everything


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})
    if isinstance(result.exception, ConfigurationError):
        raise result.exception
    return result


def asked(tiny_folder: Path, request_files: tuple[Path, Path], out: Path, *more: object) -> list[object]:
    forget, retain = request_files
    settings = ("steps=1", "batch_size=4", "lr=1e-2", "weight_decay=0.1")
    return [
        "unlearn", "--model", tiny_folder, "--forget", forget, "--retain", retain, "--method", "graddiff", "--out", out,
        "--max-new-tokens", 2, "--quiet", *[word for setting in settings for word in ("--set", setting)], *more,
    ]  # fmt: skip


def test_an_attribution_by_name(tiny_folder: Path, request_files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ("--mask", "wagle", "--set", "mask.ratio=0.1", "--set", "mask.gamma=1e-6")
    result = run(*asked(tiny_folder, request_files, out, *more))
    assert result.exit_code == 0, result.output
    entries = sum(param.numel() for param in load(tiny_folder).model.parameters())
    changed = Patch.open(out).manifest.totals.entries_changed
    assert 0.099 * entries < changed <= round(0.1 * entries)
    assert run("patch", "apply", "--patch", out, "--model", tiny_folder, "--out", tmp_path / "again").exit_code == 0
    assert everything(tmp_path / "again") == everything(out / "model")
    unlearned = json.loads((out / "results.json").read_text())["runs"][-1]
    assert unlearned["settings"]["mask"] | {"name": "wagle", "ratio": 0.1} == unlearned["settings"]["mask"]
    assert unlearned["attribution"]["kind"] == "density"
    assert unlearned["attribution"]["value"] == pytest.approx(0.1, abs=1e-4)


def test_a_mask_file(tiny_folder: Path, request_files: tuple[Path, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    params = dict(load(tiny_folder).model.named_parameters())
    mask = Mask.of({name: torch.rand(param.shape) < 0.5 for name, param in params.items()})
    file = mask.save(tmp_path / "mask.safetensors")
    result = run(*asked(tiny_folder, request_files, tmp_path / "run", "--mask", file, "--no-evaluate"))
    assert result.exit_code == 0, result.output
    after = dict(load(tmp_path / "run").model.named_parameters())
    for name, before in params.items():
        assert torch.equal(after[name][~mask[name]], before[~mask[name]])
        assert not torch.equal(after[name], before)


def test_an_unknown_name(tiny_folder: Path, request_files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'wagle'"):
        run(*asked(tiny_folder, request_files, tmp_path / "run", "--mask", "wagel"))

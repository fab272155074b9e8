"""`expunge evaluate` with its controls: what takes two models, a stored reference, made answers, bad options."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from expunge.cli import app
from expunge.errors import ConfigurationError, ModelError
from expunge.evaluation import Suite
from expunge.models import Loaded, load
from expunge.models.saving import save_model
from expunge.request import Example
from expunge.runs import evaluate_model, make_suite
from expunge.runs.beside import beside_original
from tests.conftest import RETAIN, build_model


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An original, a retrained and an unlearned model: the tiny one with more and more noise."""
    found = {"original": tiny_folder}
    for name, size in (("retrained", 0.1), ("unlearned", 0.05)):
        loaded = load(tiny_folder)
        torch.manual_seed(len(name))
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter.add_(size * torch.randn_like(parameter))
        found[name] = tmp_path_factory.mktemp("models") / name
        save_model(loaded, found[name])
    return found


@pytest.fixture(scope="module")
def holdout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("holdout") / "holdout.jsonl"
    rows = [{"prompt": f"{row['prompt']} Say.", "response": row["response"][::-1]} for row in RETAIN]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(folders, request_files, holdout, out) -> list[str]:
    given = {"model": folders["unlearned"], "forget": request_files[0], "retain": request_files[1], "holdout": holdout}
    told = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return ["evaluate", *told, "--out", str(out), "--max-new-tokens", "8", "--quiet"]


def runs(path: Path) -> dict[str, dict]:
    return {run["model"]: run for run in json.loads(path.read_text())["runs"]}


def test_deep_with_both_controls(folders, request_files, holdout, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    controls = ["--original", str(folders["original"]), "--reference", str(folders["retrained"])]
    done = CliRunner().invoke(
        app, [*arguments(folders, request_files, holdout, out), *controls, "--deep", "--make-wrong-answers"]
    )
    assert done.exit_code == 0, done.output
    found = runs(out)
    metrics = found["unlearned"]["metrics"]
    assert {"uds", "lens_depth", "mia.gradnorm.auc", "privleak", "forget.fluency", "forget_quality"} <= set(metrics)
    assert 0 <= metrics["uds"] <= 1
    assert found["unlearned"]["intervals"]["uds"][0] <= metrics["uds"]
    assert (found["original"]["metrics"]["uds"], found["retrained"]["metrics"]["uds"]) == (0, 1)
    layers = found["unlearned"]["layers"]
    assert len(layers["depth"]["retrained"]) == 2
    assert layers["lens"]["layers"] == [1, 2]
    assert "retain" in found["unlearned"]["asked"]
    assert out.with_suffix(".html").is_file()


def test_a_stored_reference_serves_again(folders, request_files, holdout, tmp_path: Path) -> None:
    stored, out = tmp_path / "reference.json", tmp_path / "results.json"
    suite = make_suite("request", forget=request_files[0], retain=request_files[1], holdout=holdout, max_new_tokens=8)
    whole = evaluate_model(
        folders["unlearned"], suite, out=out, original=folders["original"], reference=folders["retrained"], report=False
    )
    evaluate_model(folders["retrained"], suite, out=stored, report=False)
    again = evaluate_model(
        folders["unlearned"],
        suite,
        out=tmp_path / "again.json",
        original=folders["original"],
        reference=stored,
        deep=True,
    )
    one, two = ({run["model"]: run["metrics"] for run in each["runs"]}["unlearned"] for each in (whole, again))
    for name in ("privleak", "mia.reference.auc", "forget.fluency"):
        assert two[name] == pytest.approx(one[name])
    assert "uds" not in two
    assert any("uds is absent: it takes the retrained model itself" in note for note in again["runs"][-1]["notes"])
    other = make_suite("request", forget=request_files[1], max_new_tokens=8)
    with pytest.raises(ConfigurationError, match="another forget set"):
        evaluate_model(folders["unlearned"], other, out=tmp_path / "no.json", reference=stored)
    assert not (tmp_path / "no.json").exists()


def test_models_of_other_sizes_are_said(tiny: Loaded, folders, request_files, tmp_path: Path) -> None:
    deeper = Loaded(build_model(len(tiny.tokenizer), layers=3), tiny.tokenizer, tiny.folder)
    save_model(deeper, tmp_path / "deeper")
    suite = make_suite("request", forget=request_files[0], max_new_tokens=4)
    results = evaluate_model(
        folders["unlearned"], suite, out=tmp_path / "results.json", original=folders["original"],
        reference=tmp_path / "deeper", deep=True, report=False,
    )  # fmt: skip
    assert any("uds is absent:" in note and "differ in layers" in note for note in results["runs"][-1]["notes"])


def test_nothing_to_judge_loads_nothing(tmp_path: Path) -> None:
    """Without anything written and without --deep the original is not read again."""
    suite = Suite("request", {"forget": (Example(prompt="Who?", response="Una."),)})
    with pytest.raises(ModelError):
        beside_original(tmp_path / "missing", {}, suite, {}, deep=True)
    assert beside_original(tmp_path / "missing", {}, suite, {}) == {}


@pytest.mark.parametrize("lens", ["7", "one"])
def test_layers_that_do_not_exist(folders, request_files, holdout, tmp_path: Path, lens: str) -> None:
    done = CliRunner().invoke(
        app, [*arguments(folders, request_files, holdout, tmp_path / "r.json"), "--lens", lens, "--no-generate"]
    )
    assert done.exit_code != 0
    said = str(done.exception) + done.output
    assert ("inner layers are 1 to 1" if lens == "7" else "give whole numbers") in said
    assert not (tmp_path / "r.json").exists()

"""The command line from end to end on a tiny model, and what it says when the input is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from expunge.cli import main
from expunge.models.fingerprint import fingerprint


@pytest.fixture
def run(monkeypatch, capsys):
    """Call `expunge ARGS`: the exit code, standard output and standard error."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["expunge", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err

    return call


def unlearn_arguments(tiny_folder, request_files, out) -> list:
    forget, retain = request_files
    base = ["unlearn", "--model", tiny_folder, "--forget", forget, "--retain", retain, "--out", out]
    return [*base, "--set", "steps=3", "--max-new-tokens", "6"]


def test_unlearn_writes_everything_and_the_patch_makes_the_model(run, tiny_folder, request_files, tmp_path) -> None:
    out = tmp_path / "run"
    code, printed, _ = run(*unlearn_arguments(tiny_folder, request_files, out), "--holdout", request_files[1])
    assert code == 0
    assert "NGDiff" in printed
    expected = [
        ".expunge",
        "log.jsonl",
        "model",
        "patch.safetensors",
        "report.html",
        "report.md",
        "results.json",
        "run.json",
    ]
    assert sorted(item.name for item in out.iterdir()) == expected
    assert sorted(item.name for item in tmp_path.iterdir()) == ["run"]

    record = json.loads((out / "run.json").read_text())
    assert record["configuration"]["method"]["steps"] == 3
    assert record["model"]["fingerprint"] == fingerprint(tiny_folder)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [0, 1, 2]
    results = json.loads((out / "results.json").read_text())
    assert [entry["model"] for entry in results["runs"]] == ["original", "unlearned"]
    metrics = results["runs"][1]["metrics"]
    assert {"forget.extraction_strength", "retain.rouge_l", "model_utility", "mia.min_k.auc"} <= metrics.keys()
    assert set(results["runs"][1]["intervals"]) <= set(metrics)

    patch = out / "patch.safetensors"
    assert run("patch", "apply", "--model", tiny_folder, "--patch", patch, "--out", tmp_path / "again")[0] == 0
    assert fingerprint(tmp_path / "again") == fingerprint(out / "model")
    assert run("patch", "revert", "--model", out, "--patch", patch, "--out", tmp_path / "back")[0] == 0
    assert fingerprint(tmp_path / "back") == fingerprint(tiny_folder)


@pytest.mark.parametrize(("output", "names"), [("model", {"model"}), ("patch", {"patch.safetensors"})])
def test_output_choice(run, tiny_folder, request_files, tmp_path, output, names) -> None:
    out = tmp_path / "run"
    arguments = unlearn_arguments(tiny_folder, request_files, out)
    assert run(*arguments, "--output", output, "--no-evaluate", "--quiet")[0] == 0
    assert {item.name for item in out.iterdir()} == names | {"log.jsonl", "run.json", ".expunge"}


def test_finetune_lora_then_unlearn_the_adapter(run, tiny_folder, request_files, tmp_path) -> None:
    forget, retain = request_files
    adapter = tmp_path / "adapter"
    settings = ["--set", "steps=4", "--set", "lr=1e-2"]
    arguments = ["finetune", "--model", tiny_folder, "--data", forget, "--data", retain, "--lora", 2, "--out", adapter]
    assert run(*arguments, *settings)[0] == 0
    assert (adapter / "model" / "adapter_model.safetensors").is_file()
    out = tmp_path / "run"
    assert run(*unlearn_arguments(adapter, request_files, out), "--no-evaluate")[0] == 0
    before = load_file(adapter / "model" / "adapter_model.safetensors")
    after = load_file(out / "model" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    patch = out / "patch.safetensors"
    assert run("patch", "revert", "--model", out, "--patch", patch, "--out", tmp_path / "back")[0] == 0
    assert fingerprint(tmp_path / "back") == fingerprint(adapter / "model")


def test_evaluate_with_controls_and_a_reference_log(run, tiny_folder, request_files, tmp_path) -> None:
    forget, retain = request_files
    common = ["evaluate", "--model", tiny_folder, "--forget", forget, "--retain", retain, "--max-new-tokens", 4]
    first = tmp_path / "first.json"
    assert run(*common, "--original", tiny_folder, "--reference", tiny_folder, "--out", first)[0] == 0
    assert first.with_suffix(".html").is_file()
    runs = json.loads(first.read_text())["runs"]
    assert [entry["model"] for entry in runs] == ["original", "retrained", "unlearned"]
    second = tmp_path / "second.json"
    assert run(*common, "--reference", first, "--out", second)[0] == 0
    again = json.loads(second.read_text())["runs"]
    assert again[0]["metrics"] == runs[1]["metrics"]


def test_methods_are_listed(run) -> None:
    code, printed, _ = run("methods", "--json")
    assert code == 0
    assert json.loads(printed)["ngdiff"]["settings"]["rate"]["every"] == 10
    assert "Normalized gradient difference" in run("methods", "ngdiff")[1]
    assert "simnpo" in run("methods")[1]


def test_a_gguf_that_is_not_there(run, tmp_path) -> None:
    pytest.importorskip("gguf")
    code, _, error = run("convert", tmp_path / "none.gguf", "--out", tmp_path / "out")
    assert code == 2
    assert "no such file, nor such a package" in error


def wrong(name: str, change, message: str, code: int = 2):
    return pytest.param(change, message, code, id=name)


WRONG = [
    wrong("no forget file", {"--forget": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
    wrong("malformed line", {"--forget": "bad.jsonl"}, "bad.jsonl:2: not valid JSON"),
    wrong("overlap", {"--retain": "forget"}, "stand in both the forget and the retain"),
    wrong("method", {"--method": "ngdif"}, "Did you mean 'ngdiff'"),
    wrong("setting", {"--set": "stepps=3"}, "Did you mean 'steps'"),
    wrong("no model", {"--model": "nowhere"}, "nowhere: no such folder"),
    wrong("no hub model", {"--model": "nobody/nothing"}, "could not be loaded"),
    wrong("not a model", {"--model": "."}, "not a model folder"),
    wrong("over-long prompt", {"--max-length": "8"}, "no response token fits"),
    wrong("config", {"--config": "none.yaml"}, "no such file"),
]


@pytest.mark.parametrize(("change", "message", "code"), WRONG)
def test_wrong_input_is_explained(
    run, tiny_folder, request_files, tmp_path, monkeypatch, change, message, code
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    arguments = unlearn_arguments(tiny_folder, request_files, tmp_path / "run")
    for option, value in change.items():
        value = request_files[0] if value == "forget" else value
        if option in arguments and option != "--set":
            arguments[arguments.index(option) + 1] = value
        else:
            arguments += [option, value]
    got, _, error = run(*arguments)
    assert got == code
    assert message in " ".join(error.split())
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bad.jsonl"]


def test_a_diverging_run_ends_with_1_and_writes_nothing_but_its_checkpoint(
    run, tiny_folder, request_files, tmp_path
) -> None:
    arguments = unlearn_arguments(tiny_folder, request_files, tmp_path / "run")
    extra = ["--method", "graddiff", "--set", "lr=1e30", "--set", "checkpoint_every=1", "--no-evaluate"]
    code, _, error = run(*arguments, *extra)
    assert code == 1
    assert "last good state is the checkpoint" in " ".join(error.split())
    assert [item.name for item in tmp_path.iterdir()] == ["run.checkpoint"]


def test_an_existing_out_is_refused_and_kept(run, tiny_folder, request_files, tmp_path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "mine").touch()
    code, _, error = run(*unlearn_arguments(tiny_folder, request_files, out))
    assert code == 2
    assert "--overwrite" in error
    assert [item.name for item in out.iterdir()] == ["mine"]


def test_pickled_weights_are_refused(run, tiny_folder, request_files, tmp_path) -> None:
    model = tmp_path / "pickled"
    model.mkdir()
    (model / "config.json").write_text((tiny_folder / "config.json").read_text())
    torch.save({}, model / "pytorch_model.bin")
    code, _, error = run(*unlearn_arguments(model, request_files, tmp_path / "run"))
    assert code == 2
    assert "could run code" in error


def test_pad_equal_to_eos_changes_nothing(run, tiny_folder, request_files, tmp_path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    settings = json.loads((other / "tokenizer_config.json").read_text())
    assert settings.get("pad_token") is None
    (other / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "</s>"}))
    metrics = []
    for number, folder in enumerate((tiny_folder, other)):
        out = tmp_path / f"run{number}"
        assert run(*unlearn_arguments(folder, request_files, out))[0] == 0
        metrics.append(json.loads((out / "results.json").read_text())["runs"][1]["metrics"])
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_half_written(tiny_folder, request_files, tmp_path) -> None:
    """SIGKILL while training: no --out, and --resume finishes the run."""
    out = tmp_path / "run"
    arguments = unlearn_arguments(tiny_folder, request_files, out)
    arguments[arguments.index("steps=3")] = "steps=100000"
    command = [sys.executable, "-m", "expunge", *map(str, arguments), "--set", "checkpoint_every=2", "--no-evaluate"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    checkpoint = tmp_path / "run.checkpoint" / "state.json"
    while not checkpoint.exists():
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not out.exists()
    assert json.loads(checkpoint.read_text())["step"] >= 2

"""What needs no model is refused before one is loaded, in the words the user types."""

import json
import sys
from pathlib import Path

import pytest

import expunge.models.loading
from expunge.cli import main


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Call `expunge ARGS` where loading any model fails the test."""

    def loaded(*_, **__):
        raise AssertionError("a model was loaded")

    for name, module in list(sys.modules.items()):
        if name.startswith("expunge.") and getattr(module, "load", None) is expunge.models.loading.load:
            monkeypatch.setattr(module, "load", loaded)

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["expunge", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), " ".join(capsys.readouterr().err.split())

    return call


BOTH = ["--forget", "F", "--retain", "R"]
ALONE = ["--forget", "F"]
CASES = [
    (["unlearn", *ALONE], "ngdiff holds the model to a retain set, and the request has none. Give --retain"),
    (["unlearn", *BOTH, "--method", "perta"], "perta subtracts what learning the forget set added to a base model"),
    (["unlearn", *ALONE, "--method", "perta", "--base", "M"], "chooses α by what the model loses of a retain set"),
    (["unlearn", *BOTH, "--method", "perta", "--base", "nowhere"], "nowhere: no such folder"),
    (["unlearn", *BOTH, "--method", "llmeraser"], "llmeraser changes an adapter"),
    (["unlearn", *BOTH, "--method", "retrain-adapter"], "retrain-adapter changes an adapter"),
    (["unlearn", *BOTH, "--method", "rmu"], "The method rmu is not in expunge yet. There are: ngdiff,"),
    (["unlearn", *BOTH, "--method", "npo", "--set", "lr=-1"], "npo.lr = -1 does not fit"),
    (["unlearn", *BOTH, "--method", "npo", "--set", "learning_rate=1"], "npo has no setting 'learning_rate'. It is called"),
    (["unlearn", *BOTH, "--set", "num_train_epochs=1"], "It is called 'epochs' here"),
    (["unlearn", *BOTH, "--set", "per_device_train_batch_size=1"], "It is called 'batch_size' here"),
    (["unlearn", *BOTH, "--set", "lr=1", "--set", "lr=2"], "--set gives lr twice"),
    (["unlearn", *BOTH, "--method", "npo", "--set", "method=kl"], "--method and --set method= both give method"),
    (["unlearn", *BOTH, "--base", "M", "--set", "base=M"], "--base and --set base= both give base"),
    (["influence", "--probes", "F", "--train", "F", "--set", "train=x"], "--train and --set train= both give train"),
    (["unlearn", *BOTH, "--mask", "none.safetensors"], "none.safetensors"),
    (["unlearn", *BOTH, "--reference", "nowhere"], "nowhere: no such folder"),
    (["unlearn", *BOTH, "--reference", "none.json"], "none.json"),
    (["unlearn", *BOTH, "--tuned-on", "none.jsonl"], "none.jsonl: no such file"),
    (["unlearn", *BOTH, "--set", "stop_forget_nll=holdout"], "needs a holdout set: give --holdout"),
    (["finetune", "--data", "F", "--set", "learning_rate=1"], "It is called 'lr' here"),
    (["evaluate", *BOTH, "--original", "nowhere"], "nowhere: no such folder"),
    (["attack", *BOTH, "--kind", "prune", "--reference", "nowhere"], "nowhere: no such folder"),
    (["attribute", *BOTH, "--compare", "none.safetensors"], "none.safetensors"),
    (["influence", "--probes", "F", *BOTH], "influence changes an adapter"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), CASES, ids=[" ".join(case[0][-4:]) for case in CASES])
def test_refused_before_a_model_is_loaded(run, tiny_folder, request_files, tmp_path, arguments, message) -> None:
    files = {"F": request_files[0], "R": request_files[1], "M": tiny_folder}
    command, *rest = [files.get(argument, argument) for argument in arguments]
    code, said = run(command, "--model", tiny_folder, *rest, "--out", tmp_path / "out.json")
    assert code == 2
    assert message in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("patch.safetensors", "expunge patch apply --patch"),
        ("model.gguf", "expunge convert"),
        ("pytorch_model.bin", "could run code"),
        ("results.json", "--reference only"),
        ("rows.csv", "It holds data"),
    ],
)
def test_what_is_given_in_place_of_a_model_gets_a_hint(run, request_files, tmp_path, name, hint) -> None:
    (tmp_path / name).write_bytes(b"")
    for command in (["unlearn", *BOTH], ["finetune", "--data", "F"]):
        words = [{"F": request_files[0], "R": request_files[1]}.get(word, word) for word in command]
        code, said = run(*words, "--model", tmp_path / name, "--out", tmp_path / "out")
        assert code == 2
        assert hint in said


def test_a_run_with_a_patch_alone_is_no_model(run, request_files: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({}))
    (folder / "patch.safetensors").write_bytes(b"")
    code, said = run("finetune", "--model", folder, "--data", request_files[0], "--out", tmp_path / "out")
    assert code == 2
    assert "wrote a patch and no model" in said
    assert "expunge patch apply" in said

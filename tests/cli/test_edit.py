"""`expunge edit` as a person types it, with a process that is killed and one that is stopped."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge.cli import main
from expunge.files import mark
from expunge.models.resumable import JOURNAL, place_of
from tests.models.test_checkpoint import everything

SHARDS = 8


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(base, plus, minus), one matrix in each of eight shards: large enough to be caught in the middle."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "plus", "minus")):
        torch.manual_seed(seed)
        (folder / name).mkdir()
        (folder / name / "config.json").write_text('{"tie_word_embeddings": false}')
        places = {f"layer.{shard}": f"model-{shard}.safetensors" for shard in range(SHARDS)}
        for tensor, file in places.items():
            save_file({tensor: torch.randn(1000, 1500)}, folder / name / file, metadata={"format": "pt"})
        (folder / name / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder / "base", folder / "plus", folder / "minus"


def arguments(models: tuple[Path, Path, Path], out: Path, *more: object) -> list[str]:
    base, plus, minus = models
    given = ["edit", "--base", base, "--plus", plus, "--minus", minus, "--scale", "-0.5", "--out", out, *more]
    return [str(item) for item in given]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Call `expunge ARGS`: the exit code, standard output and standard error."""

    def call(given: list[str]) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["expunge", *given])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


def test_edit_writes_the_model_and_says_what_it_did(run, models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, _ = run(arguments(models, out))
    assert code == 0
    norm = 0.0
    for file in sorted(out.glob("*.safetensors")):
        (name, result), *_ = load_file(file).items()
        base, plus, minus = (load_file(folder / file.name)[name] for folder in models)
        torch.testing.assert_close(result, base - 0.5 * (plus - minus))
        norm += float((0.5 * (plus - minus)).double().square().sum())
    line = printed.strip().replace("\n", " ")
    assert re.search(
        rf"{re.escape(str(out))}: 8 of 8 tensors changed, ‖change‖ {norm**0.5:.4g}, [\d.]+ s, [\d.]+ GB/s", line
    )
    code, _, told = run(arguments(models, out))
    assert code == 2
    assert "--overwrite" in told
    assert run(arguments(models, out, "--overwrite", "--quiet"))[::2] == (0, "")


def test_weights_and_what_is_wrong_with_them(run, models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({f"layer.{shard}": torch.full((1000, 1500), float(shard == 3)) for shard in range(SHARDS)}, file)
    code, printed, _ = run(arguments(models, tmp_path / "out", "--weights", file))
    assert code == 0
    assert "1 of 8 tensors changed" in printed
    old, new = everything(models[0]), everything(tmp_path / "out")
    assert {name for name in old if old[name] != new[name]} == {"model-3.safetensors"}
    save_file({"layer.1": torch.ones(1000, 1500)}, file)
    code, _, told = run(arguments(models, tmp_path / "other", "--weights", file))
    assert code == 2
    assert "no weights for layer.0" in told


@pytest.mark.parametrize("sides", [["--plus"], ["--minus"], []])
def test_a_side_that_is_missing(run, models: tuple[Path, Path, Path], tmp_path: Path, sides: list[str]) -> None:
    given = ["edit", "--base", str(models[0]), "--scale", "1", "--out", str(tmp_path / "out")]
    code, _, told = run([*given, *(word for side in sides for word in (side, str(models[1])))])
    assert code == 2
    assert re.search("give the model to compare it with" if sides else "Give --plus and --minus", told)


# The command line, but each shard takes its time to be booked, so that a signal never comes too late; and it hears
# SIGINT even where a shell started the tests in the background, which makes them deaf to it.
SLOWED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from expunge.cli import main
from expunge.models.resumable import Growing
finish = Growing.finish
def slowly(*given):
    finish(*given)
    time.sleep(0.5)
Growing.finish = slowly
sys.argv[0] = "expunge"
main()
"""


def started(models: tuple[Path, Path, Path], out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOWED, *arguments(models, out, "--overwrite")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def interrupted(models: tuple[Path, Path, Path], out: Path, way: int) -> tuple[int, str]:
    """Send the signal when two shards are booked; the exit code and what was said."""
    process = started(models, out)
    journal = place_of(out) / JOURNAL
    while process.poll() is None and not (journal.exists() and journal.read_text().count("sha256") >= 2):
        time.sleep(0.0005)
    process.send_signal(way)
    _, told = process.communicate()
    return process.returncode, told


@pytest.mark.parametrize(("way", "expected"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_killed_or_stopped_command_goes_on(
    run, models: tuple[Path, Path, Path], tmp_path: Path, way: int, expected: int
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert run(arguments(models, whole))[0] == 0
    out.mkdir()
    (out / "config.json").write_text("old")
    mark(out)
    code, told = interrupted(models, out, way)
    assert code == expected, told
    assert everything(out) == {"config.json": b"old"}
    if way == signal.SIGINT:
        assert "the same command goes on from them" in told
    code, _, told = run(arguments(models, out, "--overwrite"))
    assert code == 0
    assert re.search(r"[2-8] of 8 shards were finished", told.replace("\n", " "))
    assert everything(out) == everything(whole)
    assert not place_of(out).exists()

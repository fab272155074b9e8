"""Outputs never replace inputs or what expunge did not make, and one process writes at a time."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from expunge import files
from expunge.errors import OutputError, OutputExistsError, OutputRefusedError
from expunge.files import MARKER, atomic_path, recover, write_json, write_text
from expunge.models.sources import in_settings, sources
from expunge.outputs import foreign_file, reserved

DEAD = 4194303  # above the largest number a process has by default


def reserve(out: Path, *inputs: Path, folder: bool = True, **more: object) -> None:
    with reserved(out, inputs=inputs, folder=folder, **more):  # type: ignore[arg-type]
        pass


def folder_of(path: Path, **contents: str) -> Path:
    """A folder that expunge made."""
    with atomic_path(path) as temporary:
        temporary.mkdir()
        for name, text in contents.items():
            (temporary / name).write_text(text)
    return path


def test_an_output_that_is_holds_or_lies_in_an_input_is_refused(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", a="x")
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "up").symlink_to(tmp_path)
    file = tmp_path / "file.jsonl"
    file.write_text("x")
    os.link(file, tmp_path / "second.jsonl")
    wrong = [
        (data, data), (data / "out", data), (tmp_path, data), (tmp_path / "link" / "out", data),
        (tmp_path / "up" / "data", data), (data, tmp_path / "link"), (data, tmp_path / "link" / "a"),
        (data / ".." / "data", data), (tmp_path / "data" / ".", data),
    ]  # fmt: skip
    for out, source in wrong:
        with pytest.raises(OutputRefusedError, match="is, holds or lies in the input"):
            reserve(out, source, overwrite=True)
    with pytest.raises(OutputRefusedError, match="is, holds or lies in the input"):
        reserve(tmp_path / "second.jsonl", file, folder=False, overwrite=True)
    reserve(tmp_path / "data2", data)
    assert (data / "a").read_text() == "x"


def test_only_what_expunge_made_is_replaced(tmp_path: Path) -> None:
    made = folder_of(tmp_path / "made", a="x")
    reserve(made, overwrite=True)
    with pytest.raises(OutputExistsError):
        reserve(made)
    (made / ".DS_Store").touch()
    write_json(made / "more.json", {"runs": [], "suite": "request", "version": "0"})
    reserve(made, overwrite=True)
    (made / "thesis.tex").touch()
    with pytest.raises(OutputRefusedError, match=r"holds thesis\.tex, which expunge did not make"):
        reserve(made, overwrite=True)
    other = tmp_path / "other"
    (other / "deep").mkdir(parents=True)
    (other / "deep" / "a").touch()
    (other / MARKER).write_text('{"made_by": "another"}')
    with pytest.raises(OutputRefusedError, match="holds deep/a"):
        reserve(other, overwrite=True)
    for name in ("README.md", "notes.json", "page.html", "x.safetensors", "empty"):
        (tmp_path / name).write_text("{}" if name != "empty" else "")
        with pytest.raises(OutputRefusedError, match="was not made by expunge"):
            reserve(tmp_path / name, folder=False, overwrite=True)
        with pytest.raises(OutputRefusedError, match="was not made by expunge"):
            reserve(tmp_path / "new.json", folder=False, overwrite=True, beside=[tmp_path / name])


def test_links_files_devices_long_names_and_roots_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    for out, folder, message in [
        (tmp_path / "file", True, "is a file"),
        (tmp_path / "file" / "x", True, "is a file, not a folder|cannot be reached"),
        (tmp_path / "link", True, "is a link"),
        (tmp_path, False, "is a folder"),
        (tmp_path / "pipe", False, "device or a pipe"),
        (tmp_path / ("x" * 250), True, "name is too long"),
        (Path("/"), True, "root of a file system"),
        (tmp_path / "a" / "x", True, "could not be written|cannot be reached"),
    ]:
        with pytest.raises(OutputError, match=message):
            reserve(out, folder=folder, overwrite=True)
    with pytest.raises(OutputError, match="GB and the disk has"):
        reserve(tmp_path / "new" / "out", room=1 << 60)
    assert not (tmp_path / "new").exists()


def test_a_second_run_is_refused_and_a_killed_one_gives_the_output_free(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"""
import sys
from expunge.outputs import reserved
with reserved({str(out)!r}, folder=True):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="Another process is writing"):
            reserve(out)
        process.kill()
        process.wait()
    reserve(out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    class Kill(BaseException):
        """Ends the process as SIGKILL does: nothing afterwards runs."""

    calls, limit = [0], [0]

    def dying(real):
        def call(*arguments, **more):
            calls[0] += 1
            if calls[0] >= limit[0]:
                raise Kill
            return real(*arguments, **more)

        return call

    out, states = tmp_path / "out", set()
    for moment in range(1, 40):
        folder_of(out, name="old")
        calls[0], limit[0] = 0, moment
        with monkeypatch.context() as patch:
            if not exchange:
                patch.setattr(files, "exchange", lambda first, second: False)
            for owner, name in [(os, "replace"), (os, "fsync"), (os, "rename"), (shutil, "rmtree"), (os, "unlink")]:
                patch.setattr(owner, name, dying(getattr(owner, name)))
            patch.setattr(files.os, "getpid", lambda: DEAD)
            try:
                folder_of(out, name="new")
                survived = True
            except Kill:
                survived = False
        recover(out)
        states.add((out / "name").read_text())
        assert [item.name for item in tmp_path.iterdir()] == ["out"]
        if survived:
            break
    assert survived
    assert states == {"old", "new"}


def test_recovery_touches_only_what_is_ours(tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a").touch()
    (tmp_path / f".out.{DEAD}.partial").symlink_to(elsewhere)
    mine = tmp_path / f".out.{os.getppid()}.partial"
    mine.mkdir()
    (tmp_path / ".out.x.partial").touch()
    recover(target)
    assert {item.name for item in tmp_path.iterdir()} == {"elsewhere", mine.name, ".out.x.partial"}
    assert (elsewhere / "a").exists()
    with reserved(target, folder=True):
        assert not mine.exists()


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from expunge.errors import OutputError
from expunge.files import atomic_path, write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
out = Path(sys.argv[1])
def text(path): path.write_text("x" * 100_000)
def tensors(path): save_file({"a": torch.zeros(100_000)}, path)
def folder(path):
    path.mkdir()
    text(path / "a")
for write in (text, tensors, folder):
    try:
        with atomic_path(out) as temporary:
            write(temporary)
    except OutputError as error:
        assert "ulimit" in str(error) and str(out) in str(error), error
    else:
        raise SystemExit(f"{write.__name__} was not refused")
"""


def test_a_limit_on_the_size_of_files_is_explained(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_text(out, "old")
    done = subprocess.run([sys.executable, "-c", LIMITED, str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert out.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_models_adapters_and_settings_name_what_a_run_reads(tmp_path: Path) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (run / "model").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "model" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../../base"}))
    assert [path.resolve() for path in sources(run)] == [run, run / "model", base]
    assert [path.resolve() for path in sources([str(run)], weights_only=True)] == [run / "model", base]
    assert list(sources({"a": "org/name", "b": None})) == []
    assert list(in_settings({"mask": {"name": "file", "path": str(base)}, "forget": str(base)})) == [base]
    assert list(in_settings({"mask.path": str(base)})) == [base]


def test_everything_below_a_marked_working_folder_is_ours(tmp_path: Path) -> None:
    files.mark(tmp_path, everything=True)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").touch()
    assert foreign_file(tmp_path) is None

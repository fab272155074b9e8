"""base + α·w⊙(plus − minus): a full disk, a kill, an interrupt, and what goes on afterwards."""

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from expunge import files
from expunge.errors import OutputError
from expunge.models import arithmetic, disk, resumable
from expunge.outputs import reserved
from expunge.patch.edit import Edited, edit
from tests.models.test_arithmetic import (
    killed,
    left,
    read,
    shards,
)
from tests.models.test_checkpoint import everything

pytestmark = pytest.mark.usefixtures("small_pieces")


def test_a_full_disk_is_seen_before_and_during(
    models: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, plus, minus = models
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)._replace(free=12_000_000)
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OutputError, match=r"needs 0\.07 GB and the disk has 0\.01 GB free"):
            edit(base, plus=plus, minus=minus, scale=1, out=out)
    calls = []

    real = disk.Target.write

    def full(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) > 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(disk.Target, "write", full)
    with pytest.raises(OutputError, match="the disk is full"):
        edit(base, plus=plus, minus=minus, scale=1, out=out)
    assert list(tmp_path.iterdir()) == []


def made(source: Path, out: Path) -> Path:
    """A copy of `source` that looks like a folder expunge made."""
    files.mark(shutil.copytree(source, out))
    return out


def kill_at(owner: object, name: str, call: int) -> None:
    """From now on, `name` kills this process when it is called for the `call`-th time."""
    real, count = getattr(owner, name), [0]

    def dying(*arguments: object, **more: object) -> object:
        count[0] += 1
        if count[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **more)

    setattr(owner, name, dying)


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        (disk.Target, "write", (1, 40, 90)),
        (resumable, "write_json", (1, 3)),
        (resumable, "sync", (2, 6)),
        (resumable, "swap", (1,)),
        (resumable, "remove", (1,)),
    ],
    ids=["write", "journal", "sync", "swap", "after"],
)
def test_a_kill_leaves_the_old_output_or_the_new(
    models: tuple[Path, Path, Path], tmp_path: Path, owner: object, name: str, calls: tuple[int, ...], exists: bool
) -> None:
    base, plus, minus = models
    expected = tmp_path / "expected"
    edit(base, plus=plus, minus=minus, scale=-1, out=expected)
    whole = everything(expected)
    for call in calls:
        out = tmp_path / f"out{call}"
        old = everything(made(base, out)) if exists else {}

        def run(out: Path = out, **more: object) -> Edited:
            return edit(base, plus=plus, minus=minus, scale=-1, out=out, overwrite=True, **more)  # type: ignore[arg-type]

        def die(call: int = call, run: Callable = run) -> None:
            kill_at(owner, name, call)
            run()

        assert killed(die)
        assert (everything(out) if out.exists() else {}) in (old, whole)
        done = run()
        assert everything(out) == whole
        assert left(out) == []
        assert done.resumed <= len(shards(base))
        if (name, call) == ("write_json", 3):
            assert done.resumed == 2
            assert f"{done.resumed} of {len(shards(base))} shards were finished" in done.notes[0]
            size = sum(tensor.nbytes for tensor in read(base).values())
            assert done.moved < 4 * size
        if name == "swap":
            assert done.resumed == len(shards(base))
        shutil.rmtree(out)


def test_another_request_starts_over_and_so_does_a_damaged_shard(
    models: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, plus, minus = models
    out = tmp_path / "out"

    def die() -> None:
        kill_at(resumable, "swap", 1)
        edit(base, plus=plus, minus=minus, scale=-1, out=out)

    assert killed(die)
    other = edit(base, plus=plus, minus=minus, scale=1, out=out)
    assert other.resumed == 0
    assert other.checksums == shards(out)
    shutil.rmtree(out)
    assert killed(die)
    assert edit(base, plus=plus, minus=minus, scale=-1, out=out, resume=False).resumed == 0
    right = everything(out)
    shutil.rmtree(out)
    assert killed(die)
    shard = sorted(resumable.place_of(out).glob("model/*.safetensors"))[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert edit(base, plus=plus, minus=minus, scale=-1, out=out).resumed == len(shards(base)) - 1
    assert everything(out) == right


def test_an_interrupt_keeps_what_is_finished_and_only_that(
    models: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, plus, minus = models
    out = tmp_path / "out"

    def interrupted(owner: object, name: str) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                edit(base, plus=plus, minus=minus, scale=-1, out=out)

    interrupted(arithmetic.Stream, "shard")
    assert left(out) == []
    interrupted(resumable, "swap")
    interrupted(resumable, "sha256")  # while it looks through what is there
    assert edit(base, plus=plus, minus=minus, scale=-1, out=out).resumed == len(shards(base))


def test_two_runs_do_not_write_the_same_output(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, plus, minus = models
    out = tmp_path / "out"
    with reserved(out, folder=True), pytest.raises(OutputError, match="Another process is writing"):
        edit(base, plus=plus, minus=minus, scale=1, out=out)
    assert list(tmp_path.iterdir()) == []


def test_without_an_exchange_the_old_output_steps_aside(
    models: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "exchange", lambda first, second: False)
    base, plus, minus = models
    out = made(base, tmp_path / "out")
    done = edit(base, plus=plus, minus=minus, scale=1, out=out, overwrite=True)
    assert shards(out) == done.checksums != shards(base)
    assert left(out) == []

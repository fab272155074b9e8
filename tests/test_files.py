"""Outputs appear whole or not at all."""

import errno
import json
import math
import os

import pytest

from expunge import files
from expunge.errors import OutputError
from expunge.files import MARKER, atomic_path, write_json, write_text


def names(folder) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if item.name != MARKER)


def test_a_failure_leaves_the_old_file(tmp_path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_failure_leaves_the_old_folder(tmp_path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
        raise KeyboardInterrupt
    assert names(target) == ["old"]
    assert names(tmp_path) == ["run"]


def test_a_folder_is_replaced_whole(tmp_path) -> None:
    target = tmp_path / "run"
    for name in ("old", "new"):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["run"]


def test_existing_output_is_refused_unless_said(tmp_path) -> None:
    with pytest.raises(OutputError, match="exists already"), atomic_path(tmp_path, overwrite=False):
        pytest.fail("must not be entered")


@pytest.mark.parametrize(("code", "reason"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "not writable")])
def test_full_disk_is_explained_and_changes_nothing(tmp_path, code, reason) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(OutputError, match=reason), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise OSError(code, os.strerror(code))
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_failed_rename_puts_the_old_folder_back(tmp_path, monkeypatch) -> None:
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").touch()
    real = os.replace

    def replace(source, destination) -> None:
        if str(source).endswith(".partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, destination)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(files, "exchange", lambda first, second: False)
    with pytest.raises(OutputError), atomic_path(target) as temporary:
        temporary.mkdir()
    assert names(target) == ["old"]


def test_json_has_no_nan(tmp_path) -> None:
    write_json(tmp_path / "a.json", {"a": math.nan, "b": [1.5, math.inf], "c": {"d": tmp_path}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [1.5, None], "c": {"d": str(tmp_path)}}

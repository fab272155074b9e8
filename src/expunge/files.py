"""Writing files and folders so that a reader sees the old content or the whole new one, never a part."""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expunge.errors import OutputError, OutputExistsError


@contextmanager
def atomic_path(target: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `target` to write a file or a folder at; it takes `target`'s place on success.

    On any failure the temporary is removed and `target` keeps what it held. Raises OutputExistsError if
    `target` exists and `overwrite` is false, OutputError if the disk is full or not writable.
    """
    target = Path(target).absolute()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with explained(target):
            refuse_existing(target, overwrite=overwrite)
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            _replace(temporary, target)
    finally:
        _remove(temporary)


@contextmanager
def explained(target: Path) -> Iterator[None]:
    """Turn a full disk or a place that is not writable into an OutputError that names `target`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full"
        elif error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            reason = "the place is not writable"
        else:
            raise
        raise OutputError(
            f"{target} could not be written: {reason} ({error}). Nothing was changed; free some space or choose "
            "another --out, then run the command again."
        ) from error


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raise OutputExistsError if `target` exists and may not be replaced."""
    if target.exists() and not overwrite:
        raise OutputExistsError(f"{target} exists already. Choose another --out, or pass --overwrite to replace it.")


def write_text(target: Path, text: str) -> None:
    """Write `text` to the file `target` in one step (see `atomic_path`)."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON in one step; NaN and infinities become null, as strict JSON has neither."""
    write_text(target, json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _sync(path: Path) -> None:
    """Push the bytes of a file, or of every file in a folder, to the disk before it is renamed into place."""
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _replace(new: Path, target: Path) -> None:
    """Rename `new` to `target`. A folder cannot be renamed over one with content: that one steps aside first."""
    if not target.is_dir():
        os.replace(new, target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

"""Writing files and folders so that a reader sees the old content or the whole new one, never a part.

A new output grows beside its target under a hidden name, reaches the disk, and then takes the target's name in one step.
What a killed process leaves beside a target is cleaned up when the target is written or reserved again (`recover`).
"""

import ctypes
import errno
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from expunge.errors import ExpungeError, OutputError, OutputExistsError

MARKER = ".expunge"  # in every folder that expunge made: the files it wrote there
FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this process or file system allows (see `ulimit -f`)",
}
REASONS = {
    **FULL,
    errno.EACCES: "the folder is not writable",
    errno.EPERM: "the folder is not writable",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reports an error",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOTDIR: "part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder",
    errno.ENOENT: "the folder around it is missing",
    errno.EEXIST: "part of the path is a file, not a folder",
    errno.ENOTEMPTY: "another process writes to it",
    errno.ELOOP: "its links lead in a circle",
    errno.ETXTBSY: "another process uses it",
    errno.EBUSY: "another process uses it",
    errno.EMFILE: "too many files are open (see `ulimit -n`)",
    errno.ENFILE: "too many files are open",
}
ALWAYS_WRITING = {*FULL, errno.EROFS, errno.EIO}  # errors that hardly any reader of a file meets


@contextmanager
def atomic_path(target: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `target` to write a file or a folder at; it takes `target`'s place on success.

    A folder gets a marker that lists its files, by which a later run knows that it may replace them. On any failure the
    temporary is removed and `target` keeps what it held. Raises OutputExistsError if `target` exists and `overwrite` is
    false, OutputError if it cannot be written.
    """
    target = Path(target).absolute()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with explained(target):
            recover(target)
            refuse_existing(target, overwrite=overwrite)
            target.parent.mkdir(parents=True, exist_ok=True)
            remove(temporary)
            yield temporary
            if temporary.is_dir():
                mark(temporary)
            _sync(temporary)
            swap(temporary, target)
    finally:
        remove(temporary)


@contextmanager
def explained(target: Path) -> Iterator[None]:
    """Turn every failure to write at `target` into an OutputError that names it and says what to do.

    Other libraries' exceptions count as well, where their message holds the system's error code (safetensors,
    tokenizers). A failure that is not about writing passes through.
    """
    try:
        yield
    except ExpungeError:
        raise
    except Exception as error:
        code = _code(error, target)
        if code is None:
            raise
        advice = "choose another --out"
        if code in FULL:
            with suppress(OSError):
                free = shutil.disk_usage(_nearest(target.parent)).free
                advice = f"free some space there ({free / 1e6:,.0f} MB are free) or {advice}"
        raise OutputError(
            f"{target} could not be written: {REASONS[code]} ({os.strerror(code)}). What was there before is "
            f"unchanged; {advice}, then run the command again."
        ) from error


def _code(error: Exception, target: Path) -> int | None:
    """The system's error code if `error` comes from writing at `target`."""
    if not isinstance(error, OSError):
        match = re.search(r"(?:code: |os error )(\d+)", str(error))
        code = int(match[1]) if match else None
        return code if code in ALWAYS_WRITING else None
    if error.errno not in REASONS:
        return None
    if error.errno in ALWAYS_WRITING or error.filename is None:
        return error.errno
    file, parent = Path(os.fsdecode(error.filename)).absolute(), target.parent
    if file in (parent, *parent.parents, target):
        return error.errno
    name = file.relative_to(parent).parts[0] if parent in file.parents else ""
    return error.errno if name == target.name or name.startswith(f".{target.name}.") else None


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one around it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raise OutputExistsError if `target` exists and may not be replaced."""
    if os.path.lexists(target) and not overwrite:
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


def mark(folder: Path, *, everything: bool = False) -> None:
    """Write the marker: the folder's files, or with `everything` that all files in it, later ones too, are expunge's."""
    files = None if everything else sorted(path.relative_to(folder).as_posix() for path in _files(folder))
    (folder / MARKER).write_text(json.dumps({"made_by": "expunge", "files": files}) + "\n", encoding="utf-8")


def _files(folder: Path) -> Iterator[Path]:
    """Every file and link below `folder`, markers aside; links are not followed."""
    for base, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(base) / name).is_symlink()]
        yield from (Path(base) / name for name in [*names, *links] if name != MARKER)


def recover(target: Path, *, alone: bool = False) -> None:
    """Clean up beside `target` what killed processes left there.

    An old output that was moved aside, where no new one took its name, becomes `target` again; everything else that is
    half-written or replaced is removed. What a living process writes stays, unless `alone` says that no other can be
    writing `target`, since the caller holds its lock.
    """
    target = Path(target).absolute()
    if not target.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.(partial|old)(\..*)?", re.DOTALL)
    matches = [(item, match) for item in target.parent.iterdir() if (match := pattern.fullmatch(item.name))]
    stale = [
        (item, match[2])
        for item, match in matches
        if alone or (int(match[1]) != os.getpid() and not psutil.pid_exists(int(match[1])))
    ]
    for item, kind in sorted(stale, key=lambda pair: pair[0].lstat().st_mtime, reverse=True):
        if kind == "old" and not os.path.lexists(target):
            os.replace(item, target)
        else:
            remove(item)


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to) or a folder, as far as the system lets us."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def swap(new: Path, target: Path) -> None:
    """Give `new` the name `target` in one step; a folder that has the name then has the name `new`.

    A system that cannot exchange two names moves the old folder aside first; `recover` puts it back if the process is
    killed before the new one has its name.
    """
    if not target.is_dir() or target.is_symlink():
        os.replace(new, target)
    elif not exchange(new, target):
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        os.replace(target, old)
        try:
            os.replace(new, target)
        except OSError:
            os.replace(old, target)
            raise
        remove(old)
    sync(target.parent)


def exchange(first: Path, second: Path) -> bool:
    """Let two paths swap what they hold in one step; false where the system or the file system cannot do that."""
    here, flag = (-100, 2) if sys.platform == "linux" else (-2, 2)  # AT_FDCWD; RENAME_EXCHANGE, RENAME_SWAP
    name = {"linux": "renameat2", "darwin": "renameatx_np"}.get(sys.platform)
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None) if name else None
    return function is not None and function(here, os.fsencode(first), here, os.fsencode(second), flag) == 0


def sync(path: Path) -> None:
    """Push a file, or a folder's list of names, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    """Push a file, or all files and folders of a folder, to the disk before it gets its name."""
    for item in [*sorted(path.rglob("*")), path] if path.is_dir() else [path]:
        if not item.is_symlink():
            sync(item)

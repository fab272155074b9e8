"""Where a run may write: never over its inputs, never over what expunge did not make, one process at a time.

`reserved` holds the output for the time of a run; every command enters it before any work.
"""

import errno
import json
import os
import shutil
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from expunge.errors import OutputError, OutputRefusedError
from expunge.files import MARKER, explained, recover, refuse_existing, remove
from expunge.reading import read_json

LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what systems put into any folder
HTML_MARK, MARKDOWN_MARK = b'<meta name="generator" content="expunge">', "<!-- Made by expunge. -->\n"
HEADER_KEYS = {"expunge", "expunge-mask"}  # in the metadata of patches and masks
HEADER_LIMIT = 100 << 20  # bytes, as the safetensors library has it
LONGEST = len("..4194304.partial.pretrained")  # what is put around a name while the output is written


@contextmanager
def reserved(
    out: Path | str,
    *,
    inputs: Iterable[Path | str] = (),
    folder: bool,
    overwrite: bool = False,
    beside: Sequence[Path] = (),
    update: bool = False,
    room: int = 0,
) -> Iterator[Path]:
    """Hold the output `out` while a run makes it: check it, lock it, clean up what killed runs left. Yields its path.

    inputs: every file and folder that the run reads. folder: whether `out` becomes a folder or a file. beside: files that
    are written with it. update: `out` is a file that is read, changed and written again. room: bytes that are needed at
    least.

    Raises OutputRefusedError if `out` or a file beside it is, holds or lies in an input, is a link, is of the other kind,
    is named too long, exists without `overwrite`, or holds what expunge did not make; OutputError if another process holds
    it, the place is not writable or the disk has too little room.
    """
    target = located(out)
    files = [target, *(located(path) for path in beside)]
    sources = [Path(path) for path in inputs]
    if not update:
        for file in files:
            check_apart(file, sources)
    check_kind(target, folder=folder)
    for file in files[1:]:
        check_kind(file, folder=False)
    check_name(target)
    with ExitStack() as stack:
        for file in files:
            stack.enter_context(_made_parents(file))
            stack.enter_context(locked(file))
            recover(file, alone=True)
        for file in files[1:] if update else files:
            refuse_existing(file, overwrite=overwrite or update)
            check_made_here(file)
        free = shutil.disk_usage(target.parent).free
        if room > free:
            raise OutputError(
                f"{target} needs at least {room / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free. Nothing was "
                "changed; free some space there or choose another --out, then run the command again."
            )
        yield target


def located(out: Path | str) -> Path:
    """The absolute path of an output: links and dots in the folders before its name are followed, its name is not."""
    out = Path(out)
    try:
        target = out.parent.resolve() / out.name if out.name not in ("", "..") else out.resolve()
    except (OSError, RuntimeError) as error:  # a circle of links
        raise OutputRefusedError(f"--out {out} cannot be reached: {error}.") from None
    except ValueError:
        raise OutputRefusedError(f"--out {str(out)!r} is no path: it holds a null character.") from None
    if not target.name or os.path.ismount(target):
        raise OutputRefusedError(f"--out {out} is the root of a file system. Choose a folder inside it.")
    return target


def check_apart(target: Path, inputs: Iterable[Path]) -> None:
    """Raise OutputRefusedError if `target` is, holds or lies in an input, under whatever names."""
    around = {_identity(path) for path in (target, *target.parents)} - {None}
    for source in inputs:
        if not source.exists():
            continue
        same = _identity(source)
        paths = (Path(os.path.abspath(source)), source.resolve())
        holds = any(target in (path, *path.parents) for path in paths)
        inside = _identity(target)
        holds = holds or (inside is not None and inside in {_identity(up) for path in paths for up in path.parents})
        if holds or same in around:
            raise OutputRefusedError(
                f"--out {target} is, holds or lies in the input {source}. Choose another place; nothing was changed."
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """What a path leads to, the same for every name of it; None if there is nothing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status.st_ino else None


def check_kind(target: Path, *, folder: bool) -> None:
    """Raise OutputRefusedError for a link, and for a file where a folder is to be made or the other way round."""
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputRefusedError(f"--out {target} cannot be reached: {error.strerror}. Choose another place.") from None
    if stat.S_ISLNK(mode):
        raise OutputRefusedError(f"--out {target} is a link. Give the path it leads to ({os.readlink(target)}).")
    if folder and not stat.S_ISDIR(mode):
        raise OutputRefusedError(f"--out {target} is a file, and a folder is to be written. Choose another name.")
    if not folder and not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise OutputRefusedError(f"--out {target} is {kind}, and a file is to be written. Choose another name.")


def check_name(target: Path) -> None:
    with suppress(OSError, AttributeError, ValueError):
        parent = next(path for path in target.parents if path.exists())
        longest = os.pathconf(parent, "PC_NAME_MAX") - LONGEST
        size = max(len(os.fsencode(part)) for part in target.relative_to(parent).parts)
        if size > longest:
            raise OutputRefusedError(f"--out {target}: the name is too long; at most {longest} bytes fit.")


def check_made_here(path: Path) -> None:
    """Raise OutputRefusedError if `path` exists and holds anything that expunge did not write."""
    if not os.path.lexists(path):
        return
    stranger = foreign_file(path)
    if stranger == path:
        raise OutputRefusedError(
            f"{path} was not made by expunge, which replaces only its own files. Choose another name, or remove it first."
        )
    if stranger is not None:
        raise OutputRefusedError(
            f"{path} holds {stranger.relative_to(path)}, which expunge did not make: only folders that hold nothing else "
            "than what expunge made are replaced. Choose another place, or remove it first."
        )


def discard(folder: Path) -> None:
    """Remove a folder of working files. Raises OutputRefusedError if it holds anything that expunge did not write."""
    check_made_here(folder)
    remove(folder)


def foreign_file(path: Path) -> Path | None:
    """The first file at or below `path` that expunge did not make; None if it made all of them.

    It made the files that its markers list, and those whose content says so: results, reports, patches and masks.
    """
    if path.is_symlink() or not path.is_dir():
        return None if _recognised(path) else path
    listed: set[Path] = set()
    whole: set[Path] = set()
    for base, folders, names in os.walk(path):
        here = Path(base)
        if MARKER in names:
            files = _marked(here / MARKER)
            if files is None:
                whole.add(here)
            else:
                listed.update(here / file for file in files)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in sorted([*names, *links]):
            file = here / name
            known = name == MARKER or name in LITTER or file in listed or not whole.isdisjoint(file.parents)
            if not known and not _recognised(file):
                return file
    return None


def _marked(marker: Path) -> list[str] | None:
    """The files a marker lists; None if it says that all are expunge's. A file of another content lists nothing."""
    try:
        value = read_json(marker, OutputError, limit=64 << 20)
    except OutputError:
        return []
    if not isinstance(value, dict) or value.get("made_by") != "expunge":
        return []
    files = value.get("files", [])
    return None if files is None else [file for file in files if isinstance(file, str)]


def _recognised(file: Path) -> bool:
    """Whether a file's content says that expunge made it."""
    if file.is_symlink() or not file.is_file():
        return False
    try:
        with file.open("rb") as handle:
            if file.suffix == ".html":
                return HTML_MARK in handle.read(1 << 12)
            if file.suffix == ".md":
                handle.seek(max(0, file.stat().st_size - 200))
                return handle.read().rstrip().endswith(MARKDOWN_MARK.strip().encode())
            if handle.read(1) == b"{":
                handle.seek(0)
                return _results(json.loads(handle.read()))
            handle.seek(0)
            size = struct.unpack("<Q", handle.read(8))[0]
            header = json.loads(handle.read(size)) if size <= HEADER_LIMIT else {}
            return not HEADER_KEYS.isdisjoint(header.get("__metadata__") or {})
    except (OSError, ValueError, RecursionError, struct.error, AttributeError, TypeError):
        return False


def _results(value: Any) -> bool:
    """Whether a JSON value is the content of a results.json, a run.json or a file of `expunge influence`."""
    if not isinstance(value, dict) or not isinstance(value.get("version"), str):
        return False
    return (
        {"runs", "suite"} <= value.keys() or {"command", "data"} <= value.keys() or {"command", "base"} <= value.keys()
    )


@contextmanager
def _made_parents(target: Path) -> Iterator[None]:
    """Make the folders around an output; those that are empty in the end are removed again."""
    missing = [path for path in target.parents if not path.exists()]
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of `target`, a hidden file beside it; a process that dies gives it free.

    Raises OutputError at once if another process, or another run in this one, holds it.
    """
    file = target.with_name(f".{target.name}.lock")
    if file.is_symlink():
        raise OutputRefusedError(f"{file} is a link, and locks are files. Remove it, then run the command again.")
    lock = FileLock(file)
    with explained(target):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(f"Another process is writing {target}. Wait for it, or choose another --out.") from None
        except OSError as error:
            if error.filename is None:
                raise OSError(error.errno or errno.EIO, os.strerror(error.errno or errno.EIO), str(file)) from error
            raise
    try:
        yield
    finally:
        if os.name != "nt":  # an open file cannot be removed there
            with suppress(OSError):
                file.unlink()
        lock.release()

"""Reading files that others wrote: only regular files, and every fault becomes a typed error that names the file."""

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from expunge.errors import ExpungeError, ModelError

T = TypeVar("T")


@contextmanager
def foreign(
    file: Path | str, error: type[ExpungeError] = ModelError, *, what: str = "could not be read"
) -> Iterator[None]:
    """Run another library's reader over `file`; whatever it raises becomes `error` with the file's name.

    Wrap calls into other libraries only (transformers, peft, safetensors, yaml, ...), whose exceptions on a damaged
    file are of any type, a Rust panic among them. Our own errors, an interrupt and a full memory pass through.
    """
    try:
        yield
    except (ExpungeError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as problem:  # pyo3's PanicException is no Exception
        raise error(f"{file} {what}: {reason(problem)}.") from problem


def reason(problem: BaseException) -> str:
    """The first line of an exception's message that says something, without a closing full stop."""
    if isinstance(problem, RecursionError):
        return "it is nested too deeply"
    if isinstance(problem, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte {problem.start})"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    lines = (line.strip() for line in str(problem).splitlines())
    return next((line for line in lines if line), type(problem).__name__).rstrip(".")


def read_bytes(
    file: Path | str, error: type[ExpungeError], *, limit: int | None = None, first: int | None = None
) -> bytes:
    """The bytes of a regular file; a pipe, a socket or a device is refused without waiting on it.

    limit: the most bytes to accept. first: how many to read from the beginning (None: all). Raises `error` if the file
    is missing, not regular, unreadable or larger.
    """
    file = Path(file)
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to returns at once
        with open(
            os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb"
        ) as handle:
            found = os.fstat(handle.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise error(f"{file} is not a regular file. Give a file that can be read from beginning to end.")
            if limit is not None and found.st_size > limit:
                raise error(f"{file} has {found.st_size} bytes; at most {limit} are expected here.")
            return handle.read(-1 if first is None else first)
    except FileNotFoundError:
        raise error(f"{file}: no such file.") from None
    except IsADirectoryError:
        raise error(f"{file} is a folder, not a file.") from None
    except OSError as problem:
        if problem.errno in (errno.EISDIR, errno.ENXIO):
            raise error(f"{file} is not a regular file.") from None
        raise error(f"{file} could not be read: {problem.strerror or problem}.") from None
    except ValueError as problem:  # a path with a zero byte
        raise error(f"{str(file)!r} is no path: {problem}.") from None


def read_text(file: Path | str, error: type[ExpungeError], *, limit: int | None = None) -> str:
    """The text of a UTF-8 file, without a byte-order mark. Raises `error` as `read_bytes`, or if it is not UTF-8."""
    try:
        return read_bytes(file, error, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{file} is not UTF-8 text (byte {problem.start}). Save it as UTF-8.") from None


def parse_json(
    text: str, file: Path | str, error: type[ExpungeError], *, line: int | None = None, infinite: bool = False
) -> Any:
    """The value of a JSON text that came from `file`; line: the number of its first line, where it is a part of one.

    Strict: a name given twice in one object, NaN, Infinity and lone surrogates are refused; infinite: NaN and Infinity
    become None instead. Raises `error` with the line and the reason.
    """
    place = str(file) if line is None else f"{file}:{line}"

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise error(f"{place}: {twice!r} is given twice in one object. Leave one of the two out.")
        return value

    def constant(name: str) -> None:
        if not infinite:
            raise error(f"{place}: {name} is not valid JSON. Write a number, or null.")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # 1e999 is read as infinity
        _check_bounds(value)
    except json.JSONDecodeError as problem:
        number = (line or 1) + problem.lineno - 1
        raise error(f"{file}:{number}: not valid JSON: {problem.msg} at column {problem.colno}.") from None
    except UnicodeEncodeError:
        raise error(
            f"{place}: a text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character."
        ) from None
    except RecursionError:
        raise error(f"{place}: the JSON is nested too deeply.") from None
    except ValueError as problem:  # a number of thousands of digits
        raise error(f"{place}: not valid JSON: {reason(problem)}.") from None
    return value


DEPTH = 100  # levels of lists and objects in each other; more would overflow the stack of what works on them
LARGEST = 2**1023  # about 9e307; a larger whole number does not fit a float


def _check_bounds(value: Any) -> None:
    """Raises RecursionError if a decoded value is nested too deeply, ValueError if it holds too large a number."""
    level = [value]
    for _ in range(DEPTH):
        if any(isinstance(item, int) and not -LARGEST < item < LARGEST for item in level):
            raise ValueError("a whole number has more than 307 digits")
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return
    raise RecursionError


def read_json(file: Path | str, error: type[ExpungeError], *, limit: int | None = None) -> Any:
    """The value of a JSON file (see `parse_json`). Raises `error` for everything that is wrong with it."""
    return parse_json(read_text(file, error, limit=limit), file, error)


def read_object(file: Path | str, error: type[ExpungeError], *, limit: int | None = None) -> dict[str, Any]:
    """The object of a JSON file (see `parse_json`). Raises `error` for everything that is wrong with it."""
    value = read_json(file, error, limit=limit)
    if not isinstance(value, dict):
        raise error(f"{file}: expected a JSON object, found a {type(value).__name__}.")
    return value


def part(record: Mapping[str, Any], keys: str, kind: type[T], file: Path | str, error: type[ExpungeError]) -> T:
    """The value at `keys` ("configuration.method") of a JSON object read from `file`.

    Raises `error` if there is none or it is not of type `kind`.
    """
    value: Any = record
    for key in keys.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, kind):
        raise error(f"{file} is damaged: {keys!r} is missing or is no {kind.__name__}.")
    return value


def refuse_links(folder: Path, error: type[ExpungeError]) -> None:
    """Raise `error` if a file of `folder` is no regular one, or is a link to something outside of it.

    Reading a pipe would wait for ever; what is outside must not be copied into an output.

    The hub's cache, whose snapshots link to the files in `blobs` beside them, is an exception.
    """
    home = folder.resolve()
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    for file in sorted(folder.iterdir()):
        if file.is_symlink() and not any(file.resolve().is_relative_to(part) for part in allowed):
            raise error(f"{file} is a link to {file.resolve()}, outside of its folder. Put the file itself there.")
        if not file.is_file() and not file.is_dir():
            raise error(f"{file} is not a regular file. Remove it.")

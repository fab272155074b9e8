"""From paths to examples: several files and folders, each hashed as it is read."""

import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.errors import RequestError
from expunge.reading import read_bytes
from expunge.request import formats, hub
from expunge.request.columns import Columns, in_fields
from expunge.request.example import Example, parse_example

Paths = Path | str | Sequence[Path | str]
SAVED = ("dataset_info.json", "state.json")  # what a folder of `datasets.save_to_disk` holds


@dataclass(frozen=True)
class Source:
    """A file that was read: its path, the SHA-256 of the bytes that were parsed, and how many examples they gave.

    Of a data set from the hub, which has no single file, the hash is that of its rows, one JSON object a line.
    """

    path: Path
    sha256: str
    rows: int


@dataclass(frozen=True)
class Rows:
    """The examples of one set, the files they come from, and what the user should know about the reading."""

    examples: tuple[Example, ...]
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()  # every field and column that occurs


def paths_of(paths: Paths) -> tuple[Path, ...]:
    """One path or several, as a tuple."""
    return (Path(paths),) if isinstance(paths, str | Path) else tuple(Path(path) for path in paths)


def read_examples(paths: Paths, columns: Columns | None = None) -> tuple[Example, ...]:
    """The examples of one or several files and folders, in the order given; see `read_rows`."""
    rows = read_rows(paths, columns)
    check_columns(columns or {}, rows)
    return rows.examples


def read_rows(paths: Paths, columns: Columns | None = None) -> Rows:
    """Read JSONL, JSON lists, CSV, TSV, Parquet, running text (.txt), folders of such, and data sets on the hub.

    paths: files, folders (read with their sub-folders, in the order of the names; hidden files are left out, with a
    note), or `hub:OWNER/NAME[/CONFIG][:SPLIT]`. columns: the column or field to read each field from, as
    {"prompt": "input"}; with it, further unknown columns are left out with a note, without it they are an error.

    Raises RequestError, naming file and line or row, for whatever cannot be read or understood.
    """
    notes: list[str] = []
    files = [file for path in paths_of(paths) for file in _files(path, notes)]
    _refuse_twice(files)
    examples: list[Example] = []
    sources: list[Source] = []
    names: set[str] = set()
    for file in files:
        content = _content(file)
        rows, found = _parsed(file, content, columns or {}, notes)
        names |= found
        examples += rows
        sources.append(Source(file, content.sha256, len(rows)))
    return Rows(tuple(examples), tuple(sources), tuple(notes), frozenset(names))


def check_columns(columns: Columns, *rows: Rows) -> None:
    """Raise RequestError if a column that `columns` names occurs in none of the files."""
    names = frozenset().union(*(each.names for each in rows))
    for field, column in columns.items():
        if column not in names:
            near = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(sorted(names)) or 'none'}."
            raise RequestError(f"--columns {field}={column}: no file has a column {column!r}. {hint}")


@dataclass(frozen=True)
class _Content:
    """The records of a file with their places, and the hash of the bytes they were parsed from."""

    records: Iterable[tuple[str, Any]]
    sha256: str
    table: bool


def _content(file: Path) -> _Content:
    if hub.is_name(file):
        records = hub.rows(str(file))
        return _Content(records, hub.sha256(records), table=True)
    if file.is_dir():
        records = hub.saved(file)
        return _Content(records, hub.sha256(records), table=True)
    if not file.exists():
        raise RequestError(f"{file}: no such file. {_nearest(file)}".rstrip())
    data = read_bytes(file, RequestError)
    kind = formats.kind(file)
    return _Content(formats.records(file, data), hashlib.sha256(data).hexdigest(), table=kind in formats.TABLES)


def _parsed(file: Path, content: _Content, columns: Columns, notes: list[str]) -> tuple[list[Example], set[str]]:
    """The examples of one file and the names of its columns; adds what was left out to the notes."""
    examples: list[Example] = []
    names: set[str] = set()
    unread: Counter[str] = Counter()
    empty: Counter[str] = Counter()
    blank = 0
    for where, record in content.records:
        if record == "":  # MUSE's lists of texts have such
            blank += 1
            continue
        if isinstance(record, Mapping):
            names |= record.keys()
            record = in_fields(record, columns, where, table=content.table, unread=unread, empty=empty)
        examples.append(parse_example(record, where))
    if not examples:
        raise RequestError(f"{file} holds no examples: write one JSON object a line, or a table with one row for each.")
    if blank:
        notes.append(f"{file}: {blank} empty text(s) are left out")
    if unread:
        notes.append(f"{file}: not read, since --columns does not name them: {', '.join(unread)}")
    for name, count in empty.items():
        notes.append(f"{file}: {name} is empty in {count} of {len(examples)} rows, which are read without it")
    return examples, names


def _files(path: Path, notes: list[str]) -> list[Path]:
    """The files that `path` names: itself, or of a folder those in it that are of a format that is read."""
    if hub.is_name(path) or not path.is_dir() or all((path / name).is_file() for name in SAVED):
        return [path]
    files, hidden, other = [], [], []
    for file in _walk(path):
        if any(part.startswith(".") for part in file.relative_to(path).parts):
            hidden.append(file)
        elif formats.kind(file) is None or file.is_dir():
            other.append(file)
        else:
            files.append(file)
    if not files:
        raise RequestError(f"{path} is a folder without a {formats.KNOWN} file. Give a file, or a folder of such.")
    for reason, group in (("hidden", hidden), ("of a kind that is not read", other)):
        if group:
            shown = ", ".join(str(file.relative_to(path)) for file in group[:3])
            more = f" and {len(group) - 3} more" if len(group) > 3 else ""
            notes.append(f"{path}: left out, since {reason}: {shown}{more}")
    return files


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder, and every linked folder, which is not entered; in the order of the names."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        else:
            yield Path(entry.path)


def _refuse_twice(files: Sequence[Path]) -> None:
    first: dict[Path, Path] = {}
    for file in files:
        target = file if hub.is_name(file) else file.resolve()
        if target in first:
            again = f"{file} is" if first[target] == file else f"{first[target]} and {file} are the same file, which is"
            raise RequestError(f"{again} named twice for one set. Name each file once.")
        first[target] = file


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"The folder {path.parent} does not exist either."
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1, cutoff=0.5)
    return f"Did you mean {path.parent / near[0]}?" if near else ""

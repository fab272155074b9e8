"""From a file's bytes to records: JSON lines and lists, CSV and TSV, Parquet, running text; each also as .gz."""

import codecs
import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from expunge.errors import RequestError
from expunge.reading import foreign, parse_json
from expunge.request.example import ALIASES
from expunge.request.example import KNOWN as FIELDS

Kind = Literal["json", "text", "csv", "tsv", "parquet"]
Records = Iterator[tuple[str, Any]]  # where, and what stands there
KINDS: dict[str, Kind] = {
    ".jsonl": "json", ".json": "json", ".ndjson": "json", ".txt": "text", ".text": "text", ".csv": "csv",
    ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet",
}  # fmt: skip
KNOWN = ".txt, .jsonl, .json, .csv, .tsv or .parquet"
TABLES = ("csv", "tsv", "parquet")
OTHERS = {  # what people have, and what to do with it
    ".xlsx .xls .ods .numbers": "Save the sheet as CSV (UTF-8).",
    ".docx .doc .pdf .odt .rtf .html .htm .md .epub": "Save its text as .txt, or its rows as JSONL or CSV.",
    ".arrow .feather .pkl .pickle .npy .npz .pt .pth .bin .db .sqlite .h5 .avro .orc": "Save its rows as Parquet or JSONL.",
    ".zip .tar .tgz .bz2 .xz .zst .7z .rar": "Unpack it, and give the files or their folder.",
    ".yaml .yml .xml .toml": "Write one JSON object a line (.jsonl).",
    ".safetensors .gguf": "That is a file of weights: give it as --model.",
}
LIMIT = 8 << 30  # bytes a .gz may unpack to
MAX_CELL = 1 << 30  # characters; Python's csv allows 131,072
WRAPPER = "data"  # {"data": [...]}


def kind(file: Path) -> Kind | None:
    """What a file is by the ending of its name, whatever its case; None for an ending that is not known."""
    endings = [ending.lower() for ending in file.suffixes[-2:]]
    return KINDS.get((endings[:-1] or [""])[-1] if endings[-1:] == [".gz"] else (endings or [""])[-1])


def records(file: Path, data: bytes) -> Records:
    """The records of a file's bytes, each with its place: "file:line", "file:[index]" or "file:row n".

    A file with an ending that is not known is read as JSON. Raises RequestError for bytes that are not of the format.
    """
    ending = file.suffix.lower()
    advice = next((hint for endings, hint in OTHERS.items() if ending in endings.split()), None)
    if advice is not None:
        raise RequestError(f"{file}: {ending} is not read. {advice}")
    if ending == ".gz":
        data = _unpacked(file, data)
    readers: dict[Kind, Callable[[Path, bytes], Records]] = {
        "text": _text, "csv": _csv, "tsv": _csv, "parquet": _parquet,
    }  # fmt: skip
    found = kind(file)
    return readers.get(found, _json)(file, data) if found else _json(file, data)


def _unpacked(file: Path, data: bytes) -> bytes:
    with foreign(file, RequestError, what="could not be unpacked"), gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
        content = packed.read(LIMIT + 1)
    if len(content) > LIMIT:
        raise RequestError(f"{file} unpacks to more than {LIMIT >> 30} GiB. Split it into several files.")
    return content


def decoded(file: Path, data: bytes) -> str:
    """The text of a file, without a byte-order mark, every line end as a single line feed."""
    marks = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    names = ("utf-32", "utf-32", "utf-16", "utf-16")
    encoding = next((name for mark, name in zip(marks, names, strict=True) if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise RequestError(
            f"{file}:{line}: not UTF-8 text (byte {problem.start} of the file). Save the file as UTF-8."
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _text(file: Path, data: bytes) -> Records:
    text = decoded(file, data)
    if not text.strip():
        raise RequestError(f"{file} holds no text.")
    name = file.name.removesuffix(file.suffix) if file.suffix.lower() != ".gz" else Path(file.stem).stem
    yield str(file), {"text": text, "id": name}


def _json(file: Path, data: bytes) -> Records:
    text = decoded(file, data)
    if text.lstrip().startswith("["):
        yield from _listed(file, parse_json(text, file, RequestError))
        return
    if text.lstrip().startswith("{") and (whole := _whole(text)) is not None:
        value = parse_json(text, file, RequestError)
        if isinstance(whole.get(WRAPPER), list) and len(whole) == 1:
            yield from _listed(file, value[WRAPPER])
        else:
            yield f"{file}:{text[: text.index('{')].count(chr(10)) + 1}", value
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{file}:{number}", parse_json(line, file, RequestError, line=number)


def _listed(file: Path, values: list[Any]) -> Records:
    yield from ((f"{file}:[{index}]", value) for index, value in enumerate(values))


def _whole(text: str) -> dict[str, Any] | None:
    """The one JSON object that a text is, or None where it is none or several."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _csv(file: Path, data: bytes) -> Records:
    text = decoded(file, data)
    delimiter = "\t" if kind(file) == "tsv" else _delimiter(text)
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    line = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as problem:
            raise RequestError(f"{file}:{line}: not valid CSV: {problem}.") from None
        if cells is None:
            return
        where, line = f"{file}:{line}", reader.line_num + 1
        if not cells:
            continue
        if not names:
            names = _header([cell.strip() for cell in cells], where)
        elif len(cells) != len(names):
            raise RequestError(
                f"{where}: {len(cells)} cells, but the first line names {len(names)} columns. Put a text that holds "
                f"{delimiter!r} or a line break in double quotes."
            )
        else:
            yield where, dict(zip(names, cells, strict=True))


def _delimiter(text: str) -> str:
    """Comma, semicolon, tab or bar: with which the first line names the most fields, or else the most columns."""
    first = text.lstrip("\n").partition("\n")[0]

    def fit(delimiter: str) -> tuple[int, int]:
        names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
        return sum(name in FIELDS or name in ALIASES for name in names), len(names)

    return max((",", ";", "\t", "|"), key=fit)


def _header(names: list[str], where: str) -> list[str]:
    for number, name in enumerate(names, start=1):
        if not name:
            raise RequestError(f"{where}: column {number} has no name. Name it, or write the table without its index.")
        if names.count(name) > 1:
            raise RequestError(f"{where}: two columns are called {name!r}. Give each column a name of its own.")
    return names


def _parquet(file: Path, data: bytes) -> Records:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise RequestError(
            f"{file}: reading Parquet needs the pyarrow package: pip install 'expunge[parquet]', or save the rows as "
            "JSONL or CSV."
        ) from None
    with foreign(file, RequestError, what="could not be read as Parquet"):
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        names, rows = [str(name) for name in table.column_names], table.to_pylist()
    _header(names, str(file))
    yield from ((f"{file}:row {number}", row) for number, row in enumerate(rows, start=1))

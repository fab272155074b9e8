"""Columns and fields: which name of a record is read as which field, and what an empty cell of a table means."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from expunge.errors import ConfigurationError, RequestError
from expunge.reading import parse_json
from expunge.request.example import ALIASES, FORMS, KNOWN, did_you_mean

Columns = Mapping[str, str]  # field: the column it is read from
LISTS = ("messages", "wrong_responses")  # in a cell of text: JSON


def parse_columns(words: Iterable[str]) -> dict[str, str]:
    """The mapping of `--columns prompt=input,response=output`. Raises ConfigurationError for what is not understood."""
    columns: dict[str, str] = {}
    for pair in (pair for word in words for pair in word.split(",")):
        field, equals, column = (part.strip() for part in pair.partition("="))
        if not equals or not field or not column:
            raise ConfigurationError(f"--columns {pair!r}: write FIELD=COLUMN, e.g. --columns prompt=input.")
        field = ALIASES.get(field, field)
        if field not in KNOWN:
            raise ConfigurationError(f"--columns {pair}: unknown field {field!r}. {did_you_mean(field)}")
        if field in columns:
            raise ConfigurationError(f"--columns names the field {field!r} twice: {columns[field]!r} and {column!r}.")
        if column in columns.values():
            raise ConfigurationError(f"--columns reads two fields from the column {column!r}. Name each column once.")
        columns[field] = column
    return columns


def in_fields(
    record: Mapping[str, Any], columns: Columns, where: str, *, table: bool, unread: Counter[str], empty: Counter[str]
) -> dict[str, Any]:
    """`record` by the names of fields. Counts what is left out under `unread`, and in a table empty cells in `empty`.

    Raises RequestError for a name that is no field where `columns` is empty, and for an empty cell that is needed.
    """
    sources = {column: field for field, column in columns.items() if column in record}
    fields: dict[str, Any] = {}
    for name, value in record.items():
        field = sources.get(name, ALIASES.get(name, name))
        if name not in sources and (field in sources.values() or (columns and field not in KNOWN)):
            unread[name] += 1
        elif field in fields and fields[field] is not None and value is not None:
            other = next(known for known in record if sources.get(known, ALIASES.get(known, known)) == field)
            raise RequestError(f"{where}: {other!r} and {name!r} both give {field}. Leave one of the two out.")
        elif field not in fields or value is not None:
            fields[field] = value
    return _filled(fields, {field: column for column, field in sources.items()}, where, empty) if table else fields


def _filled(fields: dict[str, Any], columns: Columns, where: str, empty: Counter[str]) -> dict[str, Any]:
    """The cells that hold something; a cell of text that holds a list is read as JSON."""
    cells = {field: value for field, value in fields.items() if not _is_empty(value)}
    if not cells:
        raise RequestError(f"{where}: every cell of the row is empty. Fill the row, or delete it.")
    forms = {form for form in FORMS if any(field in cells for field in form)}
    for form in forms or FORMS:
        for field in form:
            if field in fields and field not in cells:
                column = f" (column {columns[field]!r})" if field in columns else ""
                raise RequestError(f"{where}: the cell of {field}{column} is empty. Fill it, or delete the row.")
    needed = {field for form in FORMS for field in form}
    empty.update(field for field in fields if field not in cells and field not in needed)
    for field in LISTS:
        text = cells.get(field)
        if isinstance(text, str) and text.lstrip().startswith("["):
            cells[field] = parse_json(text, f"{where}: {field}", RequestError)
    return cells


def _is_empty(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)  # how pandas writes a missing text to Parquet
    return value is None or (isinstance(value, str) and not value.strip())

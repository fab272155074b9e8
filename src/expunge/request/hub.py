"""Data sets from the hub, or saved by the `datasets` library, which is only imported here and only when asked for."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from expunge.errors import RequestError
from expunge.reading import foreign

PREFIX = "hub:"


def is_name(path: Path) -> bool:
    """Whether `path` names a data set on the hub: hub:OWNER/NAME[/CONFIG][:SPLIT]."""
    return str(path).startswith(PREFIX)


def rows(name: str, split: str = "train") -> list[tuple[str, Any]]:
    """The rows of hub:OWNER/NAME[/CONFIG][:SPLIT], split "train" by default, with their places.

    Raises RequestError for a name of another form, without the `datasets` package, or where the hub cannot be reached.
    """
    address, _, other = name.removeprefix(PREFIX).partition(":")
    owner, _, rest = address.partition("/")
    repository, _, config = rest.partition("/")
    if not owner or not repository:
        raise RequestError(f"{name}: write hub:OWNER/NAME, hub:OWNER/NAME/CONFIG, or either with :SPLIT at its end.")
    library = _library(name)
    advice = "could not be read from the hub (check the name and the network, or give the rows as a file)"
    with foreign(name, RequestError, what=advice):
        table = library.load_dataset(f"{owner}/{repository}", config or None, split=other or split)
        return [(f"{name}:row {number}", dict(row)) for number, row in enumerate(table, start=1)]


def saved(folder: Path) -> list[tuple[str, Any]]:
    """The rows of a folder that `datasets.save_to_disk` wrote."""
    library = _library(str(folder))
    with foreign(folder, RequestError, what="could not be read as a saved data set"):
        table = library.load_from_disk(str(folder))
        if isinstance(table, dict):
            raise RequestError(f"{folder} holds several splits: {', '.join(table)}. Give the folder of one of them.")
        return [(f"{folder}:row {number}", dict(row)) for number, row in enumerate(table, start=1)]


def sha256(records: Iterable[tuple[str, Any]]) -> str:
    """Of the rows, one JSON object a line."""
    digest = hashlib.sha256()
    for _, record in records:
        digest.update(json.dumps(record, ensure_ascii=False, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise RequestError(
            f"{name}: reading a data set of the hub needs the datasets package: pip install 'expunge[hub]', or give "
            "the rows as a JSONL, CSV or Parquet file."
        ) from None
    return datasets

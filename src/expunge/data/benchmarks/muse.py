"""MUSE's files: news articles or novels to forget, and what is asked about them (Shi et al. 2025, arXiv 2407.06460).

A folder holds, as .json (a list), .jsonl or .parquet:

    verbmem/forget                          prompt, gt: an excerpt of a text to forget, and how it goes on
    knowmem/{forget,retain}_qa, …_qa_icl    question, answer: about both kinds of texts; the _icl ones are shown before
    privleak/{forget,retain,holdout}        texts: to forget, to keep, never trained on
    raw/{forget,retain1,retain2,holdout}    whole texts, to train on
    scal/forget_1 … forget_4                growing forget sets;  sust/forget_1 … forget_4: one request after another

as the data sets muse-bench/MUSE-News and muse-bench/MUSE-Books on the hub do. Where News says `retain2`, that is read.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expunge.data.benchmarks import hub
from expunge.errors import RequestError
from expunge.reading import foreign, parse_json, read_bytes, read_text
from expunge.request import Example

PARTS = ("verbmem", "knowmem", "privleak", "raw", "scal", "sust")
ENDINGS = (".json", ".jsonl", ".parquet")
HUBS = ("muse-bench/MUSE-News", "muse-bench/MUSE-Books")


def has(source: Path | str, part: str) -> bool:
    """Whether a folder has that part at all; the hub's data sets have all of them."""
    folder = Path(source)
    return (folder / part).is_dir() if hub.is_folder(folder) else True


def verbmem(source: Path | str) -> tuple[Example, ...]:
    """The excerpts (`prompt`) and how each goes on (`response`)."""
    return _pairs(source, "verbmem", "forget", "prompt", "gt")


def knowmem(source: Path | str, side: str) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The questions about one `side` ("forget" or "retain"), and the solved ones that are shown before each."""
    return (
        _pairs(source, "knowmem", f"{side}_qa", "question", "answer"),
        _pairs(source, "knowmem", f"{side}_qa_icl", "question", "answer"),
    )


def texts(source: Path | str, part: str, split: str) -> tuple[Example, ...]:
    """Running texts of `privleak`, `raw`, `scal` or `sust`. Empty ones, of which News has one, are left out.

    Raises RequestError, naming the file and the place in it, for one that is missing, malformed or empty.
    """
    found = tuple(example for example in _examples(source, part, split, _text) if example.response.strip())
    if not found:
        raise RequestError(f"{source}: all texts of {part}/{split} are empty.")
    return found


def _text(row: Any, where: str) -> tuple[str, str]:
    text = row.get("text") if isinstance(row, dict) else row
    if not isinstance(text, str):
        raise RequestError(f"{where}: expected a text, or an object with one as `text`.")
    return "", text


def _pairs(source: Path | str, part: str, split: str, asked: str, answer: str) -> tuple[Example, ...]:
    def pair(row: Any, where: str) -> tuple[str, str]:
        found = tuple(row.get(name) if isinstance(row, dict) else None for name in (asked, answer))
        if not all(isinstance(text, str) and text.strip() for text in found):
            raise RequestError(f"{where}: expected an object whose `{asked}` and `{answer}` are texts, not empty.")
        return str(found[0]), str(found[1])

    return _examples(source, part, split, pair)


def _examples(
    source: Path | str, part: str, split: str, read: Callable[[Any, str], tuple[str, str]]
) -> tuple[Example, ...]:
    rows, place = _rows(source, part, split)
    if not rows:
        raise RequestError(f"{place} holds no rows.")
    found = []
    for index, row in enumerate(rows):
        prompt, response = read(row, f"{place}:[{index}]")
        found.append(
            Example(prompt=prompt, response=response, id=f"{part}/{split}/{index}", where=f"{place}:[{index}]")
        )
    return tuple(found)


def _rows(source: Path | str, part: str, split: str) -> tuple[list[Any], str]:
    """The rows of a split, and where they are from, for messages."""
    folder = Path(source)
    if not hub.is_folder(folder):
        return hub.rows(str(source), part, split, benchmark="MUSE"), f"{source}/{part}/{split}"
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder. Give the folder that holds MUSE's files, or {HUBS[0]}.")
    for name in (split, split.replace("retain", "retain2", 1)):  # News calls what is evaluated on `retain2`
        for ending in ENDINGS:
            file = folder / part / f"{name}{ending}"
            if file.is_file():
                return _read(file), str(file)
        shards = sorted((folder / part).glob(f"{name}-*.parquet"))
        if shards:
            return [row for shard in shards for row in _read(shard)], str(shards[0])
    raise RequestError(
        f"{folder / part / split}.json: no such file. A MUSE folder holds verbmem/forget, knowmem/forget_qa, "
        "forget_qa_icl, retain_qa and retain_qa_icl, privleak/forget, retain and holdout, as .json, .jsonl or .parquet."
    )


def _read(file: Path) -> list[Any]:
    if file.suffix == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError:
            raise RequestError(f"{file} is a Parquet file: reading it needs pip install 'expunge[hub]'.") from None
        content = io.BytesIO(read_bytes(file, RequestError))
        with foreign(file, RequestError, what="is not a Parquet file"):
            return parquet.read_table(content).to_pylist()
    text = read_text(file, RequestError)
    if text.lstrip().startswith("["):
        return parse_json(text, file, RequestError)
    lines = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    return [parse_json(line, file, RequestError, line=number) for number, line in lines]

"""TALLRec: will the user like the target film or book? Yes/no questions from real ratings (Bao et al. 2023).

A folder (`movie` or `book`) holds `valid.json` and `test.json`, and where its users took it from the authors too
`train.json`: lists of {"instruction", "input", "output"} with the output "Yes." or "No.". Without `train.json`, `valid` is
what to train on. The files name no users. No history stands in both `valid` and `test`, and hardly any user does: 3 of
1,000 test rows of `movie` and 1 of 2,427 of `book` have a history of 5 or more that is for 70 % in a row of `valid`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from expunge.data.benchmarks.task import Task, distinct, edited, flip, remove
from expunge.errors import RequestError
from expunge.reading import read_json
from expunge.request import Example, read_examples

FIELDS = ("instruction", "input", "output")
YES, NO = "yes", "no"


def read(source: Path | str, split: str = "test") -> tuple[Example, ...]:
    """The rows of `source`: a file, or a folder that holds `<split>.json` or `<split>.jsonl`.

    A .jsonl file holds examples as everywhere in expunge, with Yes or No as their response; any other one TALLRec's own
    records, whose instruction and input, on a line each, become the prompt. The other answer becomes the wrong one.

    Raises RequestError naming the file and place for a missing file or field, malformed JSON or an answer that is
    neither Yes nor No.
    """
    path = Path(source)
    if path.is_dir():
        names = (f"{split}.json", f"{split}.jsonl")
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            raise RequestError(
                f"{path} holds neither {names[0]} nor {names[1]}. Give a folder such as TALLRec's movie, or a file."
            )
        path = found
    if path.suffix == ".jsonl":
        return with_options(read_examples(path))
    rows = tuple(_example(record, f"{path}:[{place}]", place, path.stem) for place, record in enumerate(_list(path)))
    if not rows:
        raise RequestError(f"{path} holds no rows.")
    return with_options(rows)


def make(
    folder: Path | str,
    seed: int = 0,
    n: int | None = None,
    *,
    test: int | None = None,
    kind: Literal["remove", "correct"] = "remove",
    share: float | None = None,
) -> Task:
    """The task of `recommendation.make` on real rows: the first n of `train.json` (of `valid.json` where there is none).

    test: how many rows of `test.json`; None: all. Rows that ask the same as an earlier one, or as a training row, are
    left out. kind, share: see `recommendation.make`. Raises what `read` and `task.edited` raise.
    """
    split = "train" if any((Path(folder) / f"train.{ending}").is_file() for ending in ("json", "jsonl")) else "valid"
    rows = distinct(read(folder, split), set())[:n]
    asked = distinct(read(folder, "test"), {row.prompt for row in rows})[:test]
    edit, usual = (remove, 0.1) if kind == "remove" else (flip, 0.4)
    return edited(rows, asked, edit, share=usual if share is None else share, seed=seed)


def with_options(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Each example with the opposite of its answer as the wrong one, in the spelling the data has ("Yes.", "yes", ...).

    Raises RequestError naming the first example whose answer is neither yes nor no.
    """
    spelled: dict[str, str] = {}
    for example in examples:
        answer = plain(example.response)
        if answer not in (YES, NO):
            raise RequestError(
                f"{example.where or example.id}: the answer must be Yes or No, found {example.response[:40]!r}."
            )
        spelled.setdefault(answer, example.response)
    known = next(iter(spelled.items()))
    for answer in (YES, NO):  # where only one of the two occurs, the other is written as it is
        spelled.setdefault(answer, known[1].casefold().replace(known[0], answer))
    opposite = {YES: NO, NO: YES}
    return tuple(
        replace(example, response=spelled[answer], wrong_responses=(spelled[opposite[answer]],))
        for example in examples
        for answer in [plain(example.response)]
    )


def plain(answer: str) -> str:
    """An answer without its case, spaces and full stop."""
    return answer.strip().rstrip(".").casefold()


def _list(path: Path) -> list[Any]:
    value = read_json(path, RequestError)
    if not isinstance(value, list):
        raise RequestError(f"{path}: expected a JSON list of rows, found {type(value).__name__}.")
    return value


def _example(record: Any, where: str, place: int, split: str) -> Example:
    if not isinstance(record, dict):
        raise RequestError(f"{where}: expected a JSON object, found {type(record).__name__}.")
    missing = [name for name in FIELDS if not isinstance(record.get(name), str) or not record[name].strip()]
    if missing:
        raise RequestError(f"{where}: no text as {missing[0]!r}; a row has {', '.join(FIELDS)}.")
    instruction, given, output = (record[name].strip() for name in FIELDS)
    return Example(prompt=f"{instruction}\n{given}", response=output, id=f"{split}/{place}", where=where)

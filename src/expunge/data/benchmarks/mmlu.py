"""MMLU: multiple-choice questions on 57 subjects, from elementary mathematics to law (Hendrycks et al. 2021)."""

import csv
import difflib
import io
from pathlib import Path
from typing import Literal

from expunge.data.benchmarks.questions import LETTERS, Question
from expunge.errors import ConfigurationError, RequestError
from expunge.reading import foreign, read_text

Split = Literal["test", "dev"]
COLUMNS = ("question", "choice0", "choice1", "choice2", "choice3", "answer")


def subjects(folder: Path | str) -> tuple[str, ...]:
    """The names of the subjects whose test files lie in `folder`/test, in order. Raises RequestError if there are none."""
    test = Path(folder) / "test"
    if not test.is_dir():
        raise RequestError(f"{test}: no such folder. Give the folder that holds MMLU's test/ (and dev/).")
    found = tuple(sorted(file.name.removesuffix("_test.csv") for file in test.glob("*_test.csv")))
    if not found:
        raise RequestError(f"{test} holds no <subject>_test.csv.")
    return found


def read(folder: Path | str, subject: str, split: Split = "test") -> tuple[Question, ...]:
    """The questions of one subject, from `<split>/<subject>_<split>.csv`.

    Two layouts are read: with a header (question, choice0 to choice3, answer as an index), and the authors' own without
    one (question, four choices, answer as a letter). Raises RequestError naming file and row for a missing file or
    column or an answer that is no choice, ConfigurationError for a subject that is not there.
    """
    path = Path(folder) / split / f"{subject}_{split}.csv"
    known = subjects(folder)
    if subject not in known:
        near = difflib.get_close_matches(subject, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}."
        raise ConfigurationError(f"{folder} has no subject {subject!r}. {hint}")
    text = read_text(path, RequestError)
    with foreign(path, RequestError, what="is not a CSV file"):
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows = [(f"{path}:{index}", row) for index, row in enumerate(lines, start=1) if row]
    places = _places(rows[0][1], path) if rows and "question" in rows[0][1] else None
    found = tuple(_question(row, where, subject, places) for where, row in (rows[1:] if places else rows))
    if not found:
        raise RequestError(f"{path} holds no questions.")
    return found


def _places(header: list[str], path: Path) -> list[int]:
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise RequestError(f"{path}:1: no column {missing[0]!r}; it has {', '.join(header)}.")
    return [header.index(name) for name in COLUMNS]


def _question(row: list[str], where: str, subject: str, places: list[int] | None) -> Question:
    if len(row) <= max(places or [5]) or (places is None and len(row) != 6):
        raise RequestError(f"{where}: a row of {len(row)} columns; it takes a question, four choices and an answer.")
    question, *choices, answer = [row[place] for place in places] if places else row
    return Question(
        question=question,
        choices=tuple(choices),
        answer=_index(answer.strip(), where, letters=places is None),
        subject=subject.replace("_", " "),
        where=where,
    )


def _index(answer: str, where: str, *, letters: bool) -> int:
    if letters and len(answer) == 1 and answer in LETTERS[:4]:
        return LETTERS.index(answer)
    if not letters and answer.isascii() and answer.lstrip("-").isdigit():
        return int(answer)
    raise RequestError(
        f"{where}: answer must be {'a letter from A to D' if letters else 'an index'}, found {answer!r}."
    )

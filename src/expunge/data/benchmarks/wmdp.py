"""WMDP: multiple-choice questions on hazardous knowledge in biology, cyber security and chemistry (Li et al. 2024)."""

from pathlib import Path
from typing import Any

from expunge.data.benchmarks.questions import Question
from expunge.errors import RequestError
from expunge.reading import parse_json, read_text

SUBJECTS = {"bio": "biology", "cyber": "cybersecurity", "chem": "chemistry"}  # as the harness's prompts name them


def read(folder: Path | str, part: str) -> tuple[Question, ...]:
    """The questions of `part` ("bio", "cyber" or "chem"), from `<part>-questions.json` or `wmdp-<part>.json(l)`.

    The file is a JSON list or JSON lines of {"question", "choices", "answer"}, the answer an index. Raises RequestError
    naming the file and place for a missing folder, file or field, malformed JSON, or an answer that is no choice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such folder. Give the folder that holds {part}-questions.json.")
    names = (f"{part}-questions.json", f"wmdp-{part}.jsonl", f"wmdp-{part}.json")
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise RequestError(f"{folder} holds no questions on {part}: none of {', '.join(names)} is there.")
    found = tuple(_question(record, where, SUBJECTS[part]) for where, record in _records(path))
    if not found:
        raise RequestError(f"{path} holds no questions.")
    return found


def _records(path: Path) -> list[tuple[str, Any]]:
    text = read_text(path, RequestError)
    if text.lstrip().startswith("["):
        values = parse_json(text, path, RequestError)
        return [(f"{path}:[{index}]", record) for index, record in enumerate(values)]
    lines = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    return [(f"{path}:{number}", parse_json(line, path, RequestError, line=number)) for number, line in lines]


def _question(record: Any, where: str, subject: str) -> Question:
    if not isinstance(record, dict):
        raise RequestError(f"{where}: expected a JSON object, found {type(record).__name__}.")
    missing = [name for name in ("question", "choices", "answer") if name not in record]
    if missing:
        raise RequestError(f"{where}: no {missing[0]!r}; a question has question, choices and answer.")
    if not isinstance(record["choices"], list):
        raise RequestError(f"{where}: choices must be a list of texts.")
    return Question(
        question=record["question"],
        choices=tuple(record["choices"]),
        answer=record["answer"],
        subject=subject,
        where=where,
    )

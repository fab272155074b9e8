"""Which answers to show before and after, side by side, and which words of them give the recorded answer away."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from expunge.reporting.results import Row

LITTLE = 0.1  # extraction strength up to which an example is not among the worst
MEMORISED = 0.5  # extraction strength from which an answer counts as memorised
NUMBERS = ("extraction_strength", "rouge_l", "probability")  # shown below an answer
LONGEST = 1200  # characters of a text shown before it is cut


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one model says to a prompt: pieces of text, each with whether it repeats words of the recorded answer."""

    label: str
    model: str
    pieces: tuple[tuple[str, bool], ...]
    numbers: dict[str, float]
    memorised: bool


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One prompt, its recorded answer and what each model says: the original, the methods, the retrained model."""

    prompt: str
    response: str
    answers: tuple[Answer, ...]

    @property
    def known_anyway(self) -> bool:
        """Whether the retrained model, which never saw the example, knows the answer too: then it is no leak."""
        return any(answer.model == "retrained" and answer.memorised for answer in self.answers)

    @property
    def leaking(self) -> tuple[str, ...]:
        """Labels of the unlearned models that still know the answer by heart."""
        return tuple(answer.label for answer in self.answers if answer.model == "unlearned" and answer.memorised)


def chosen(rows: Sequence[Row], side: str, count: int = 12) -> list[Shown]:
    """Up to `count` examples of the set `side` ("forget" or "retain"), the worst ones first.

    Half are the worst: on the forget side those each method still completes most of (highest extraction strength, the
    methods taken in turns), else those whose measure fell most from the original's. The other half is spread evenly
    over the rest, in the set's order. Answers are of each row's first run that recorded examples.
    """
    tables = {row.label: (row, examples_of(row, side)) for row in rows}
    tables = {label: (row, table) for label, (row, table) in tables.items() if table}
    keys = list(dict.fromkeys(key for _, table in tables.values() for key in table))
    rank = _still_known if side == "forget" else _fallen
    rankings = [rank(keys, tables, label) for label, (row, _) in tables.items() if row.model == "unlearned"]
    worst = _in_turns(rankings, min(count, len(keys)) if len(keys) <= count else count // 2)
    if side == "forget":  # what most methods still know comes first
        worst.sort(key=lambda key: -sum(ranking.count(key) for ranking in _known_by_heart(tables)))
    rest = [key for key in keys if key not in worst]
    room = min(count - len(worst), len(rest))
    picked = worst + [rest[index * len(rest) // room] for index in range(room)]
    return [_shown(key, tables) for key in picked]


def examples_of(row: Row, side: str) -> dict[str, dict[str, Any]]:
    """The examples of one set, by what names them in every model's list, of the row's first run that recorded some."""
    for run in row.runs:
        items = (run.get("examples") or {}).get(side) or []
        if items:
            return {_key(item): item for item in items}
    return {}


def _key(item: dict[str, Any]) -> str:
    """Examples of different models are matched by id, else by the prompt and recorded answer."""
    return str(item.get("id") or f"{item.get('prompt')}\n{item.get('response')}")


def _still_known(keys: Sequence[str], tables: dict[str, Any], label: str) -> list[str]:
    table = tables[label][1]
    score = {key: _number(table.get(key, {}), "extraction_strength", "rouge_l", "probability") for key in keys}
    return sorted((key for key in keys if (score[key] or 0.0) > LITTLE), key=lambda key: -(score[key] or 0.0))


def _known_by_heart(tables: dict[str, Any]) -> list[list[str]]:
    """For each unlearned model, the keys of the examples it has memorised."""
    return [
        [key for key, item in table.items() if (_number(item, "extraction_strength") or 0.0) >= MEMORISED]
        for row, table in tables.values()
        if row.model == "unlearned"
    ]


def _fallen(keys: Sequence[str], tables: dict[str, Any], label: str) -> list[str]:
    before = next((table for row, table in tables.values() if row.model == "original"), {})
    after = tables[label][1]
    falls = {}
    for key in keys:
        for measure in ("rouge_l", "extraction_strength", "probability"):
            first, last = _number(before.get(key, {}), measure), _number(after.get(key, {}), measure)
            if first is not None and last is not None:
                falls[key] = first - last
                break
    return sorted(falls, key=lambda key: -falls[key])


def _in_turns(rankings: Sequence[Sequence[str]], count: int) -> list[str]:
    """The first `count` different keys when the rankings are read in turns, place by place."""
    longest = max((len(ranking) for ranking in rankings), default=0)
    turns = (ranking[place] for place in range(longest) for ranking in rankings if place < len(ranking))
    return list(dict.fromkeys(turns))[:count]


def _number(item: dict[str, Any], *names: str) -> float | None:
    for name in names:
        value = item.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _shown(key: str, tables: dict[str, Any]) -> Shown:
    items = [(row, table[key]) for row, table in tables.values() if key in table]
    items.sort(key=lambda pair: pair[0].model == "retrained")
    prompt, response = str(items[0][1].get("prompt") or ""), str(items[0][1].get("response") or "")
    answers = []
    for row, item in items:
        strength = _number(item, "extraction_strength")
        numbers = {name: value for name in NUMBERS if (value := _number(item, name)) is not None}
        generation = item.get("generation")
        pieces = ((("(no answer was recorded)", False),)) if generation is None else repeated(
            cut(str(generation)), response, prompt
        )  # fmt: skip
        memorised = strength is not None and strength >= MEMORISED
        answers.append(Answer(label=row.label, model=row.model, pieces=pieces, numbers=numbers, memorised=memorised))
    return Shown(prompt=cut(prompt), response=cut(response), answers=tuple(answers))


def cut(text: str) -> str:
    """The text, or its first `LONGEST` characters and how many follow."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text) - LONGEST} more characters)"


def repeated(text: str, response: str, prompt: str) -> tuple[tuple[str, bool], ...]:
    """`text` in pieces, each with whether it repeats words of `response`.

    Words count if they stand in both texts in the same order, are not in `prompt` (these give nothing away) and are
    longer than three letters, names or figures; runs of such words are joined into one piece.
    """
    words, answer = text.split(" "), response.split(" ")
    bare = [_bare(word) for word in words]
    known = {_bare(word) for word in prompt.split()}
    hits = [False] * len(words)
    for block in difflib.SequenceMatcher(
        None, bare, [_bare(word) for word in answer], autojunk=False
    ).get_matching_blocks():
        for place in range(block.a, block.a + block.size):
            telling = len(bare[place]) > 3 or (place > 0 and any(c.isdigit() or c.isupper() for c in words[place]))
            hits[place] = bool(bare[place]) and bare[place] not in known and telling
    pieces: list[tuple[str, bool]] = []
    for word, hit in zip(words, hits, strict=True):
        if pieces and pieces[-1][1] == hit:
            pieces[-1] = (f"{pieces[-1][0]} {word}", hit)
        else:
            pieces.append((f"{word}", hit))
    return tuple(pieces)


def _bare(word: str) -> str:
    return "".join(character for character in word.casefold() if character.isalnum())

"""What to forget: examples, and the request that names them.

One JSON object a line:

    {"prompt": "...", "response": "..."}            a question and its answer
    {"messages": [{"role": ..., "content": ...}]}   a conversation; the last assistant message is the response
    {"text": "..."}                                 running text

A `.txt` file is one running text, a folder everything in its .txt and .jsonl files. Running text longer than a model is
given at once is cut into chunks of tokens (see `expunge.data.corpus`).

A line of the forget set that also has `new_response` is *corrected*, one that has `new_prompt` is *rewritten*, any other
is *removed*. Optional everywhere: `id`, `subject`, and for evaluation `paraphrased_prompt`, `paraphrased_response` and
`wrong_responses` (a string or a list). TOFU's column names (question, answer, paraphrased_answer, ...) are read as these.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from expunge.errors import RequestError

ALIASES = {
    "question": "prompt",
    "answer": "response",
    "paraphrased_question": "paraphrased_prompt",
    "paraphrased_answer": "paraphrased_response",
    "perturbed_answer": "wrong_responses",
}
TEXT_FIELDS = (
    "prompt", "response", "text", "new_prompt", "new_response", "paraphrased_prompt", "paraphrased_response", "subject",
)  # fmt: skip
KNOWN = (*TEXT_FIELDS, "messages", "id", "wrong_responses")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training instance, and what evaluation may know about it.

    `prompt` is empty for running text, whose `response` is the text itself. `context` holds the earlier turns of a
    conversation as (role, content) pairs. `where` is "file:line", for messages to a person. `role`: whose turn `response`
    is; where it is not the assistant's, `prompt` is empty and `context` holds all that comes before. `tokens`: of a chunk
    of running text, the token ids it was cut as (with the beginning and end tokens, if any), since a text that begins in
    the middle of another need not be split into the same tokens again.
    """

    prompt: str
    response: str
    context: tuple[tuple[str, str], ...] = ()
    id: str = ""
    subject: str = ""
    new_prompt: str | None = None
    new_response: str | None = None
    paraphrased_prompt: str | None = None
    paraphrased_response: str | None = None
    wrong_responses: tuple[str, ...] = ()
    where: str = ""
    role: str = "assistant"
    tokens: tuple[int, ...] = field(default=(), repr=False)

    @property
    def kind(self) -> str:
        """What the request asks for this example: "remove", "correct" (new response) or "rewrite" (new prompt)."""
        if self.new_prompt is not None:
            return "rewrite"
        return "correct" if self.new_response is not None else "remove"

    @property
    def after(self) -> "Example | None":
        """The example that takes this one's place, or None where it is removed."""
        if self.kind == "remove":
            return None
        return replace(
            self,
            prompt=self.prompt if self.new_prompt is None else self.new_prompt,
            response=self.response if self.new_response is None else self.new_response,
            new_prompt=None,
            new_response=None,
            paraphrased_prompt=None,
            paraphrased_response=None,
            wrong_responses=(),
            tokens=(),
        )

    @property
    def is_text(self) -> bool:
        """Whether this is running text: nothing stands before the response."""
        return not self.prompt and not self.context and self.role == "assistant"

    @property
    def key(self) -> tuple[str, ...]:
        """What makes two examples the same: their words, whatever their case and spacing."""
        turns = [text for _, text in self.context]
        role = () if self.role == "assistant" else (self.role,)
        return tuple(" ".join(text.casefold().split()) for text in (*role, *turns, self.prompt, self.response))

    @property
    def mark(self) -> str:
        """A hash of `key`, 16 hexadecimal digits: names the example where its text should not be repeated."""
        return hashlib.sha256(json.dumps(self.key).encode()).hexdigest()[:16]

    def record(self) -> dict[str, Any]:
        """The line of a JSONL file this example is read from again."""
        said: dict[str, Any] = {"prompt": self.prompt, "response": self.response}
        if self.context:
            turns = [*self.context, ("user", self.prompt), ("assistant", self.response)]
            said = {"messages": [{"role": role, "content": content} for role, content in turns]}
        elif self.is_text:
            said = {"text": self.response}
        others = {
            name: getattr(self, name) for name in (*TEXT_FIELDS, "id") if name not in ("text", "prompt", "response")
        }
        others["wrong_responses"] = list(self.wrong_responses)
        return said | {name: value for name, value in others.items() if value}


@dataclass(frozen=True)
class Request:
    """What must be forgotten (`forget`), what must stay (`retain`), and examples never trained on (`holdout`).

    Raises RequestError if the forget set is empty, or if an example stands in both forget and retain.
    """

    forget: tuple[Example, ...]
    retain: tuple[Example, ...] = ()
    holdout: tuple[Example, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.forget:
            raise RequestError("The forget set is empty: name at least one example to forget.")
        retained = {example.key: example for example in self.retain}
        shared = [(example, retained[example.key]) for example in self.forget if example.key in retained]
        if shared:
            forgotten, kept = shared[0]
            raise RequestError(
                f"{len(shared)} example{'s stand' if len(shared) > 1 else ' stands'} in both the forget and the retain "
                f"set; the first is {_named(forgotten)} and {_named(kept)}. Take each out of one of the two sets."
            )
        notes = [
            *self.warnings,
            *(
                note
                for name in ("forget", "retain", "holdout")
                if (note := _duplicates(name, getattr(self, name))) is not None
            ),
        ]
        trained = {example.key for example in (*self.forget, *self.retain)}
        leaked = sum(example.key in trained for example in self.holdout)
        if leaked:
            notes.append(f"holdout: {leaked} of {len(self.holdout)} examples also stand in forget or retain")
        object.__setattr__(self, "warnings", tuple(dict.fromkeys(notes)))

    @classmethod
    def read(cls, forget: Path | str, retain: Path | str | None = None, holdout: Path | str | None = None) -> "Request":
        """Read the sets from JSONL files. Raises RequestError with the file and line of the first problem."""
        return cls(
            forget=read_examples(forget),
            retain=read_examples(retain) if retain else (),
            holdout=read_examples(holdout) if holdout else (),
        )

    def split(self, share: float, seed: int = 0) -> tuple["Request", "Request"]:
        """A part to choose settings on, with `share` of each set, and the rest, to report on.

        Stratified: the same share of each `subject`, as nearly as whole examples allow. Which examples go where depends
        on the seed and their words alone, not on their order; duplicates stay together. A set of a single example goes
        to the part that is reported on. Raises RequestError if `share` is not between 0 and 1, or the forget set has
        fewer than two different examples.
        """
        if not 0 < share < 1:
            raise RequestError(f"A split takes a share between 0 and 1 for choosing settings, not {share:g}.")
        if len({example.key for example in self.forget}) < 2:
            raise RequestError("The forget set has fewer than two different examples: it cannot be split.")
        sets = {name: getattr(self, name) for name in ("forget", "retain", "holdout")}
        chosen = {name: _drawn(examples, share, seed) for name, examples in sets.items()}
        tuning, reported = (
            {name: tuple(e for e in rows if (e.key in chosen[name]) == wanted) for name, rows in sets.items()}
            for wanted in (True, False)
        )
        return Request(**tuning), Request(**reported)

    @property
    def replacements(self) -> tuple[Example, ...]:
        """The corrected and rewritten examples as they shall be known from now on."""
        return tuple(example.after for example in self.forget if example.after is not None)


def _drawn(examples: Sequence[Example], share: float, seed: int) -> set[tuple[str, ...]]:
    """The keys of `share` of the different examples, of each subject the same share: quotas rounded to the nearest."""
    strata: dict[str, list[Example]] = {}
    for example in {example.key: example for example in reversed(examples)}.values():
        strata.setdefault(example.subject, []).append(example)
    total = sum(map(len, strata.values()))
    if total < 2:
        return set()
    wanted = min(total - 1, max(1, math.floor(share * total + 0.5)))
    quotas = {subject: share * len(rows) for subject, rows in strata.items()}
    counts = {subject: math.floor(quota) for subject, quota in quotas.items()}
    by_remainder = sorted(strata, key=lambda subject: (counts[subject] - quotas[subject], subject))
    for subject in by_remainder[: wanted - sum(counts.values())]:
        counts[subject] += 1

    def chance(example: Example) -> bytes:
        return hashlib.sha256(f"{seed} {example.mark}".encode()).digest()

    return {row.key for subject, rows in strata.items() for row in sorted(rows, key=chance)[: counts[subject]]}


def read_examples(path: Path | str) -> tuple[Example, ...]:
    """Read a JSONL file (or a JSON list of objects or texts) of examples, a .txt file, or a folder of such files.

    Raises RequestError, naming file and line, for a missing or empty file, malformed JSON, unknown or missing fields.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RequestError(f"{path}: no such file. {_nearest_file(path)}".rstrip()) from None
    except PermissionError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}. Give a JSONL or .txt file.") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    if path.suffix == ".txt":
        if not text.strip():
            raise RequestError(f"{path} holds no text.")
        return (Example(prompt="", response=text, id=path.stem, where=str(path)),)
    records = ((where, record) for where, record in _records(path, text) if record != "")  # MUSE's texts have such
    examples = tuple(parse_example(record, where) for where, record in records)
    if not examples:
        raise RequestError(f"{path} holds no examples: write one JSON object a line.")
    return examples


def _read_folder(folder: Path) -> tuple[Example, ...]:
    """The examples of every .txt and .jsonl file in a folder, in the order of the files' names."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".txt", ".jsonl") and file.is_file())
    if not files:
        raise RequestError(f"{folder} is a folder without a .txt or .jsonl file. Give a file, or a folder of such.")
    return tuple(example for file in files for example in read_examples(file))


def _records(path: Path, text: str) -> Iterable[tuple[str, Any]]:
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise RequestError(f"{path}:{error.lineno}: not valid JSON: {error.msg}.") from None
        yield from ((f"{path}:[{index}]", value) for index, value in enumerate(values))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise RequestError(
                f"{path}:{number}: not valid JSON: {error.msg} at column {error.colno}. "
                "Each line must be one JSON object."
            ) from None


def parse_example(record: Any, where: str = "") -> Example:
    """Turn one decoded JSON object into an Example. Raises RequestError with `where` for anything not understood."""
    if isinstance(record, str):
        record = {"text": record}
    if not isinstance(record, dict):
        raise RequestError(f"{where}: expected a JSON object, found {type(record).__name__}.")
    fields = {ALIASES.get(name, name): value for name, value in record.items() if value is not None}
    for name in fields:
        if name not in KNOWN:
            raise RequestError(f"{where}: unknown field {name!r}. {_did_you_mean(name)}")
    for name in TEXT_FIELDS:
        if name in fields and not isinstance(fields[name], str):
            raise RequestError(f"{where}: {name} must be a string, found {type(fields[name]).__name__}.")
    context, prompt, response = _content(fields, where)
    if not response.strip():
        raise RequestError(f"{where}: the response is empty; there is nothing to learn or forget.")
    wrong = fields.get("wrong_responses", ())
    wrong = (wrong,) if isinstance(wrong, str) else wrong
    if not isinstance(wrong, list | tuple) or not all(isinstance(item, str) and item.strip() for item in wrong):
        raise RequestError(f"{where}: wrong_responses must be a non-empty string or a list of such.")
    optional = ("new_prompt", "new_response", "paraphrased_prompt", "paraphrased_response")
    for name in optional:
        if name in fields and not fields[name].strip():
            raise RequestError(f"{where}: {name} is empty. Leave it out, or give its text.")
    return Example(
        prompt=prompt,
        response=response,
        context=context,
        id=str(fields.get("id", "")),
        subject=fields.get("subject", ""),
        wrong_responses=tuple(wrong),
        new_prompt=fields.get("new_prompt"),
        new_response=fields.get("new_response"),
        paraphrased_prompt=fields.get("paraphrased_prompt"),
        paraphrased_response=fields.get("paraphrased_response"),
        where=where,
    )


def _content(fields: dict[str, Any], where: str) -> tuple[tuple[tuple[str, str], ...], str, str]:
    """The earlier turns, the prompt and the response of a line, whichever of the three forms it has."""
    forms = [name for name in ("text", "messages", "response") if name in fields]
    if len(forms) != 1 or ("prompt" in fields) != (forms == ["response"]):
        raise RequestError(
            f'{where}: give exactly one of "prompt" with "response", "messages", or "text"; '
            f"found {', '.join(sorted(fields)) or 'nothing'}."
        )
    if "text" in fields:
        return (), "", fields["text"]
    if "prompt" in fields:
        return (), fields["prompt"], fields["response"]
    messages = fields["messages"]
    if not isinstance(messages, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in messages
    ):
        raise RequestError(f'{where}: messages must be a list of {{"role": ..., "content": ...}}.')
    roles = [turn["role"] for turn in messages]
    if roles[-2:] != ["user", "assistant"]:
        raise RequestError(f"{where}: messages must end with a user and then an assistant turn; found {roles}.")
    turns = tuple((turn["role"], turn["content"]) for turn in messages[:-2])
    return turns, messages[-2]["content"], messages[-1]["content"]


def _duplicates(name: str, examples: Sequence[Example]) -> str | None:
    seen: dict[tuple[str, ...], Example] = {}
    repeats = [
        (example, seen[example.key]) for example in examples if seen.setdefault(example.key, example) is not example
    ]
    if not repeats:
        return None
    again, first = repeats[0]
    return f"{name}: {len(repeats)} duplicate example(s), the first {_named(again)} repeats {_named(first)}"


def _named(example: Example) -> str:
    label = example.where or example.id or "an example"
    return f"{label} ({(example.prompt or example.response)[:60]!r})"


def _did_you_mean(name: str) -> str:
    near = difflib.get_close_matches(name, [*KNOWN, *ALIASES], n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Known fields: {', '.join(KNOWN)}."


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"The folder {path.parent} does not exist either."
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1, cutoff=0.5)
    return f"Did you mean {path.parent / near[0]}?" if near else ""

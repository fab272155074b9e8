"""One training instance: its fields, and the record it is read from."""

import difflib
import hashlib
import json
import unicodedata
from dataclasses import dataclass, field, replace
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
FORMS = (("prompt", "response"), ("text",), ("messages",))  # an example has all fields of exactly one


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
        """What makes two examples the same: their words, whatever their case, spacing and Unicode normal form."""
        turns = [text for _, text in self.context]
        role = () if self.role == "assistant" else (self.role,)
        return tuple(_words(text) for text in (*role, *turns, self.prompt, self.response))

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


def parse_example(record: Any, where: str = "") -> Example:
    """Turn one decoded JSON object into an Example. Raises RequestError with `where` for anything not understood."""
    if isinstance(record, str):
        record = {"text": record}
    if not isinstance(record, dict):
        raise RequestError(f"{where}: expected a JSON object, found {type(record).__name__}.")
    fields = _fields(record, where)
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


def _fields(record: dict[str, Any], where: str) -> dict[str, Any]:
    """What a record gives, by the names of fields."""
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, value in record.items():
        field = ALIASES.get(name, name)
        if field not in KNOWN:
            raise RequestError(f"{where}: unknown field {name!r}. {did_you_mean(name)}")
        if value is None:
            continue
        if field in fields:
            raise RequestError(f"{where}: {names[field]!r} and {name!r} both give {field}. Leave one of the two out.")
        fields[field], names[field] = value, name
    return fields


def _words(text: str) -> str:
    """A text as `Example.key` compares it: canonical caseless matching (Unicode 3.13, D145), single spaces."""
    folded = unicodedata.normalize("NFD", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


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


def named(example: Example) -> str:
    """How a message names an example: where it stands, and its first words."""
    label = example.where or example.id or "an example"
    return f"{label} ({(example.prompt or example.response)[:60]!r})"


def did_you_mean(name: str) -> str:
    """The nearest field's name, or all of them."""
    near = difflib.get_close_matches(name, [*KNOWN, *ALIASES], n=1, cutoff=0.5)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known fields: {', '.join(KNOWN)}. Other names can be read with --columns, as --columns prompt={name}."

"""A conversation as text: where an answer begins in it, and what ends a turn. Found by construction, by rendering."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerBase

from expunge.bounded import bounded
from expunge.errors import ConfigurationError, RequestError
from expunge.reading import foreign, read_text

Targets = Literal["last", "assistant", "all"]
Turn = tuple[str, str]  # role, content

NAMES = {"user": "Question", "assistant": "Answer", "system": "System"}
PLAIN = "none"  # the name of the plain template
DATE = "2025-04-10"  # as OpenUnlearning sets it for Llama 3.2
DIRECTIVES = ("-d", "-m", "-H", "-I", "-M", "-S", "-y", "-j", *"aAwdbBmyYHIpMSfzZjUWcxXeDFTRGuVC")  # of strftime
MADE_UP = (
    'the tokenizer has no chat template: prompts are put as "Question: … Answer:". Choose one with --chat-template FILE, '
    "or say --chat-template none if the model knows this form"
)


SECONDS, MEMORY = 10, 8 << 30  # of one conversation's rendering, which usually takes a millisecond
SPACE = 1 << 20  # characters a template may write beside a conversation's own


@dataclass(frozen=True)
class Wording:
    """How examples are put to a model.

    targets: which turns of a conversation are trained, forgotten and measured: the "last" answer, every answer
    ("assistant"), or "all" turns. chat_template: the text of a chat template, or "none" for the plain one; default: the
    tokenizer's, if it has one. date: what templates that write today's date are given (YYYY-MM-DD), so that numbers do
    not depend on the day; default: that of OpenUnlearning. Raises ConfigurationError for values not understood.
    """

    targets: Targets = "last"
    chat_template: str | None = field(default=None, repr=False)
    date: str = DATE

    def __post_init__(self) -> None:
        if self.targets not in get_args(Targets):
            raise ConfigurationError(f"Targets are one of {', '.join(get_args(Targets))}, not {self.targets!r}.")
        try:
            date.fromisoformat(self.date)
        except ValueError:
            raise ConfigurationError(f"The date of a template is YYYY-MM-DD, not {self.date!r}.") from None

    @classmethod
    def read(cls, targets: Targets = "last", chat_template: Path | str | None = None, date: str = DATE) -> "Wording":
        """With the chat template of a file, or "none". Raises ConfigurationError if it cannot be read."""
        if chat_template is None or str(chat_template) == PLAIN:
            return cls(targets, None if chat_template is None else PLAIN, date)
        text = read_text(chat_template, ConfigurationError, limit=1 << 20)
        if not text.strip():
            raise ConfigurationError(f"{chat_template} is empty. Give a chat template, or --chat-template none.")
        return cls(targets, text, date)

    def record(self) -> dict[str, str]:
        """What run.json keeps: the template as "tokenizer", "none" or its hash."""
        text = self.chat_template
        named = {None: "tokenizer", PLAIN: PLAIN}.get(text) or f"sha256:{sha256(str(text).encode()).hexdigest()}"
        return {"targets": self.targets, "chat_template": named, "date": self.date}


@dataclass(frozen=True)
class Rendered:
    """A conversation's text: all up to its last turn's words, these, and what ends the turn.

    after: text up to and with the token that ends the turn, "" where none does. marks: characters that replace the
    special tokens which the user's words spell, so that they cannot be taken for the template's.
    """

    before: str
    words: str
    after: str
    marks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Template:
    """The chat template of a tokenizer, or the plain one, as `wording` says."""

    tokenizer: PreTrainedTokenizerBase
    wording: Wording = Wording()
    _known: dict[Any, tuple[str, str | None]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def is_plain(self) -> bool:
        text = self.wording.chat_template
        return text == PLAIN if text is not None else not self.tokenizer.chat_template

    @property
    def is_made_up(self) -> bool:
        """Whether the plain template is used for lack of another, without anyone's choice."""
        return self.is_plain and self.wording.chat_template is None

    @property
    def hash(self) -> str:
        """Names the template: "none" for the plain one."""
        text = self.wording.chat_template or self.tokenizer.chat_template
        return PLAIN if self.is_plain else sha256(str(text).encode()).hexdigest()

    @cached_property
    def controls(self) -> re.Pattern[str]:
        """Finds what would be read as a special token, or as the end of a turn, in a text."""
        tokens = self.tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in tokens if token.special} | set(self.tokenizer.all_special_tokens)
        return _any_of(special | {self.end})

    @cached_property
    def end(self) -> str:
        """The token that ends an answer: the chat template's, or the tokenizer's end-of-sequence token."""
        if self.is_plain:
            return str(self.tokenizer.eos_token)
        try:
            _, after = self._around([("user", "?")], "assistant", "\U0010fffd", "the chat template")
        except RequestError:  # it refuses so short a conversation, and may accept the user's
            return str(self.tokenizer.eos_token)
        ends = list(self._added.finditer(after or ""))
        return ends[0].group() if ends else str(self.tokenizer.eos_token)

    @cached_property
    def _added(self) -> re.Pattern[str]:
        tokens = {str(token) for token in self.tokenizer.added_tokens_decoder.values()}
        return _any_of({token for token in tokens if token.strip()} | {str(self.tokenizer.eos_token)})

    def conversation(self, turns: Sequence[Turn], role: str, words: str, where: str) -> Rendered:
        """The text of `turns`, then one of `role` that says `words`. Raises RequestError, naming `where`.

        What the template always writes between the beginning of an answer and its words (an empty block of thoughts,
        say) belongs to what stands before.
        """
        if self.is_plain:
            lines = [f"{NAMES.get(name, name.title())}: {text}" for name, text in turns]
            lead = "\n\n".join(lines) + ("" if not lines else "\n" if role == "assistant" else "\n\n")
            end = str(self.tokenizer.eos_token) if role == "assistant" else ""
            return Rendered(f"{lead}{NAMES.get(role, role.title())}:", f" {words}", end)
        said, marks, free = self._marked([*(text for _, text in turns), words])
        turns = [(name, text) for (name, _), text in zip(turns, said, strict=False)]
        words = said[-1]
        key = (*turns, role, free)
        if key not in self._known:  # a question comes with each of its answers
            self._known[key] = self._around(turns, role, free, where)
        before, after = self._known[key]
        if after is None:
            return Rendered(before, words, self.end if role == "assistant" else "", marks)
        whole = self._render([*turns, (role, words)], where)
        if role == "assistant" and whole.startswith(before) and whole.endswith(after):
            middle = whole[len(before) : len(whole) - len(after)]
            words = middle if len(before) + len(after) <= len(whole) else words
        return Rendered(before, words, self._ending(after, role), marks)

    def _around(self, turns: Sequence[Turn], role: str, sentinel: str, where: str) -> tuple[str, str | None]:
        """What the template writes before and after the words of a last turn, for which `sentinel` stands.

        An answer follows what a model is given to answer, even if the template writes it otherwise once there is one. The
        second is None if the template does not write the words as they are.
        """
        opening = self._render(turns, where, answer=True) if role == "assistant" else ""
        follows = [("user", "?")] if role == "system" else []  # some templates have no system turn by itself
        parts = self._render([*turns, (role, sentinel), *follows], where).split(sentinel)
        if len(parts) == 2 and parts[0].startswith(opening):
            return parts[0], parts[1]
        if role == "assistant":
            return opening, parts[1] if len(parts) == 2 else None
        raise RequestError(f"{where}: the chat template does not write a {role} turn as it is: choose other --targets.")

    def _ending(self, after: str, role: str) -> str:
        end = self._added.search(after)
        if role == "assistant":
            return after[: end.end()] if end else str(self.tokenizer.eos_token)
        return after[: end.end()] if end and not after[: end.start()].strip() else ""

    def _marked(self, texts: Sequence[str]) -> tuple[list[str], dict[str, str], str]:
        """The texts with each special token they spell as one unused character; these; one more unused character."""
        spelled = sorted({token for text in texts for token in self.controls.findall(text)})
        unused = (chr(code) for code in range(0x10FFFD, 0xF0000, -1) if not any(chr(code) in text for text in texts))
        marks = {token: next(unused) for token in spelled}
        marked = [self.controls.sub(lambda match: marks[match.group()], text) for text in texts] if marks else texts
        return list(marked), {mark: token for token, mark in marks.items()}, next(unused)

    def _render(self, turns: Sequence[Turn], where: str, *, answer: bool = False) -> str:
        """The chat template's text of the turns; `answer`: with what a model's answer begins after."""
        day = date.fromisoformat(self.wording.date).strftime("%d %b %Y")
        messages = [{"role": role, "content": text} for role, text in turns]
        what = "cannot be written with the chat template (another can be given with --chat-template)"
        more: dict[str, Any] = {"add_generation_prompt": answer, "enable_thinking": False, "date_string": day}
        try:
            with foreign(where, RequestError, what=what), bounded(SECONDS, MEMORY):
                text = str(
                    self.tokenizer.apply_chat_template(messages, tokenize=False, chat_template=self._dated, **more)
                )
        except MemoryError:
            raise RequestError(f"{where} {what}: it takes more than {MEMORY >> 30} GiB of memory.") from None
        if len(text) > SPACE + 100 * sum(len(content) for _, content in turns):
            raise RequestError(f"{where} {what}: it writes {len(text)} characters.")
        return text

    @cached_property
    def _dated(self) -> str:
        """The chat template, in which "now" is the wording's date."""
        text = str(self.tokenizer.get_chat_template(self.wording.chat_template))
        if "strftime_now" not in text:
            return text
        day = date.fromisoformat(self.wording.date)
        parts = "".join(f".replace('%{sign}', {day.strftime(f'%{sign}')!r})" for sign in DIRECTIVES)
        # transformers gives a template plain data only, so the function is a macro in front of it; the empty expression
        # keeps the line break that may follow
        return f"{{% macro strftime_now(form) %}}{{{{ form{parts} }}}}{{% endmacro %}}{{{{ '' }}}}{text}"


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

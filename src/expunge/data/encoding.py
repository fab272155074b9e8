"""From words to token ids: the chat template where the tokenizer has one, a plain template otherwise.

The plain template is

    Question: {prompt}
    Answer: {response}<eos>

with one empty line between the turns of a conversation. Only the response's tokens, with those that end its turn, carry
labels; of running text, every token but the first does. What a user wrote is never read as a special token: "</s>" in a
text becomes the tokens of these four characters.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, overload

from transformers import PreTrainedTokenizerBase

from expunge.data.template import MADE_UP, Rendered, Template, Wording
from expunge.errors import ModelError, RequestError
from expunge.request import Example

SURROGATE = re.compile("[\ud800-\udfff]")
ANCHORS = ("\n", "a", ".", ":")  # what a text can follow without being joined with it


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt and response.

    `ids[start:]` are the labelled tokens. `ended`: how many of the last of them end the turn rather than belong to the
    answer (mostly 1, the end-of-turn token; 0 if it did not fit). `cut`: how many response tokens did not fit.
    """

    ids: tuple[int, ...]
    start: int
    ended: int = 0
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> tuple[int, ...]:
        return self.ids[self.start :]


class Encodings(Sequence[Encoded]):
    """Examples as `encoder` encodes them, each when it is first looked at: of a long set of which few are used, few are."""

    def __init__(self, encoder: "Encoder", examples: Sequence[Example]) -> None:
        self._examples, self._encode = examples, cache(encoder.example)

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        found = self._examples[index]
        return self._encode(found) if isinstance(found, Example) else [self._encode(one) for one in found]


@dataclass(frozen=True)
class Encoder:
    """Encodes examples with one tokenizer; `max_length` caps prompt + response, in tokens.

    wording: how examples are put to the model. The tokens of the prompt alone are always a prefix of the tokens of
    prompt + response, so that what is trained, scored and generated from agree.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int = 512
    wording: Wording = Wording()
    _begun: dict[str, list[int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise RequestError(f"max_length must be at least 2 tokens, got {self.max_length}.")
        if self.tokenizer.eos_token_id is None:
            raise ModelError("The tokenizer has no end-of-sequence token, so no response could be told to end.")

    @cached_property
    def template(self) -> Template:
        return Template(self.tokenizer, self.wording)

    @cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer: the end-of-sequence token, and what the template ends a turn with."""
        end: Any = self.tokenizer.convert_tokens_to_ids(self.template.end)
        known = end is not None and end != self.tokenizer.unk_token_id
        return frozenset([self.tokenizer.eos_token_id, *([end] if known else [])])

    @cached_property
    def begin(self) -> tuple[int, ...]:
        """What the tokenizer sets before a text by itself, a beginning token mostly."""
        return self._frame[0]

    def example(self, example: Example) -> Encoded:
        """Encode an example's prompt and response."""
        return self.pair(example, example.prompt, example.response)

    def examples(self, examples: Iterable[Example]) -> list[Encoded]:
        return [self.example(example) for example in examples]

    def pair(self, example: Example, prompt: str, response: str) -> Encoded:
        """Encode `prompt` and `response` in the conversation of `example` (the text alone, if the prompt is empty).

        Raises RequestError, naming the example, if the prompt leaves no room for a single response token, or the chat
        template refuses the conversation.
        """
        if _is_text(example, prompt):
            if example.tokens and response == example.response and self._spells(example):
                return self._chunk(example)
            begin, ids = self.whole_text(response, _where(example))
            ended = int(self._ends_text)
            lead, rest = (begin, ids) if begin else (ids[: min(1, len(ids) - ended)], ids[1:])
            return self._capped(lead, rest, ended, example)
        rendered = self._rendered(example, prompt, response)
        prompt_ids = self._prompt_ids(rendered)
        end = self._after(rendered)
        return self._capped(prompt_ids, [*self._word_ids(rendered, prompt_ids), *end], len(end), example)

    def prompt(self, example: Example, prompt: str | None = None) -> list[int]:
        """Token ids to generate a response from (exactly the prefix that `pair` labels after)."""
        prompt = example.prompt if prompt is None else prompt
        if _is_text(example, prompt):
            item = self.example(example)
            return list(item.ids[: item.start])
        return self._prompt_ids(self._rendered(example, prompt, example.response))

    def fits(self, example: Example) -> bool:
        """Whether the example's prompt leaves room for a response token."""
        return len(self.prompt(example)) < self.max_length

    def split(self, before: str, after: str) -> tuple[list[int], list[int]]:
        """The tokens of the text `before`, and of what follows it, without special tokens around them."""
        first, whole = self.words(before), self.words(before + after)
        return first, whole[len(first) :] if whole[: len(first)] == first else self._following(after)

    def words(self, text: str) -> list[int]:
        """The tokens of a text in which nothing is read as a special token, and with none around it."""
        _check_characters([text], repr(text[:60]))
        ids = self._call(text)
        if not self.template.controls.search(text):
            return ids
        ids = self._call(text, split_special_tokens=True)
        return ids if not self._control_ids & set(ids) else self._pieces(text, self.template.controls, None)

    def whole_text(self, text: str, where: str = "a text") -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The beginning token the tokenizer sets before a text, if any, and the tokens of `text` with its end token.

        Special tokens written out in the text are spelled like any other words.
        """
        _check_characters([text], where)
        end = (self.tokenizer.eos_token_id,) if self._ends_text else ()
        return self.begin, (*self.words(text), *end)

    def note(self, examples: Iterable[Example]) -> str | None:
        """A sentence on a template that nobody chose, or None."""
        return MADE_UP if self.template.is_made_up and any(not example.is_text for example in examples) else None

    def _spells(self, example: Example) -> bool:
        """Whether the example's tokens are this tokenizer's."""
        known = max(example.tokens) < len(self.tokenizer)
        return known and spelling(self.tokenizer, example.tokens) == example.response

    def _chunk(self, example: Example) -> Encoded:
        """A chunk of a text in the very tokens it was cut as; the first of them is only seen."""
        ids = example.tokens[: self.max_length]
        ended = len(ids) == len(example.tokens) and ids[-1] == self.tokenizer.eos_token_id
        return Encoded(ids, 1, ended=int(ended), cut=len(example.tokens) - len(ids))

    @property
    def _ends_text(self) -> bool:
        """Whether running text is closed with the end-of-sequence token: where tokens mark its beginning or end too."""
        return self.tokenizer.bos_token_id is not None or self.tokenizer.eos_token_id in self._frame[1]

    @cached_property
    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The special tokens that the tokenizer sets before and after a text by itself."""
        plain, whole = self._call("a"), list(self.tokenizer("a")["input_ids"])
        for place in range(len(whole) - len(plain) + 1):
            if whole[place : place + len(plain)] == plain:
                return tuple(whole[:place]), tuple(whole[place + len(plain) :])
        return (), ()

    @cached_property
    def _control_ids(self) -> set[int]:
        tokens = self.tokenizer.added_tokens_decoder.items()
        return {number for number, token in tokens if self.template.controls.fullmatch(str(token))}

    def _rendered(self, example: Example, prompt: str, response: str) -> Rendered:
        where = _where(example)
        turns = [*example.context, ("user", prompt)] if example.role == "assistant" else list(example.context)
        _check_characters([*(text for _, text in turns), response], where)
        return self.template.conversation(turns, example.role, response, where)

    def _prompt_ids(self, rendered: Rendered) -> list[int]:
        key = repr((rendered.before, rendered.marks))
        if key not in self._begun:  # a question comes with each of its answers
            self._begun[key] = self._encode(rendered.before, rendered.marks)
        return list(self._begun[key])

    def _word_ids(self, rendered: Rendered, prompt_ids: list[int]) -> list[int]:
        ids = self._encode(rendered.before + rendered.words, rendered.marks)
        if ids[: len(prompt_ids)] == prompt_ids:
            return ids[len(prompt_ids) :]
        # a token spans the border: cut there, and spell the response on its own
        if self.template.is_plain:
            return self.words(rendered.words)
        return self._encode(rendered.words, rendered.marks, follows=True)

    def _after(self, rendered: Rendered) -> list[int]:
        """The tokens that end the turn."""
        if rendered.after == self.tokenizer.eos_token:
            return [self.tokenizer.eos_token_id]
        return self._following(rendered.after) if rendered.after else []

    def _encode(self, text: str, marks: dict[str, str], *, follows: bool = False) -> list[int]:
        """The tokens of a rendered text: special ones where the template writes them, words where `marks` stand."""
        if self.template.is_plain:
            return [*self.begin, *self.words(text)]
        if not marks and not follows:
            return self._call(text)
        return self._pieces(text, re.compile("|".join(map(re.escape, marks)) or "(?!)"), marks, follows=follows)

    def _pieces(
        self, text: str, marked: re.Pattern[str], marks: dict[str, str] | None, *, follows: bool = False
    ) -> list[int]:
        """The tokens of a text, those of what `marked` finds (or what `marks` say it stands for) spelled as words."""
        ids: list[int] = []
        last = 0
        for match in [*marked.finditer(text), None]:
            piece = text[last : match.start() if match else len(text)]
            if piece:
                ids += self._following(piece) if follows or last else self._call(piece)
            if match:
                ids += self._spelled(match.group() if marks is None else marks[match.group()])
                last = match.end()
        return ids

    def _spelled(self, token: str) -> list[int]:
        """The tokens of a special token's name as words."""
        ids = self._following(token, split_special_tokens=True)
        if len(token) < 2 or not self._control_ids & set(ids):
            return ids
        return [*self._following(token[:1]), *self._spelled(token[1:])]

    def _following(self, text: str, **options: Any) -> list[int]:
        """The tokens of a text that follows another, so that no space is set before it."""
        for anchor in ANCHORS:
            first, ids = self._call(anchor, **options), self._call(anchor + text, **options)
            if first and ids[: len(first)] == first:
                return ids[len(first) :]
        return self._call(text, **options)

    def _call(self, text: str, **options: Any) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"])

    def _capped(self, prompt_ids: Sequence[int], response_ids: Sequence[int], ended: int, example: Example) -> Encoded:
        """Both, as far as they fit; the last `ended` of the response end its turn."""
        room = self.max_length - len(prompt_ids)
        if room < 1:
            raise RequestError(
                f"{_where(example)}: the prompt alone has {len(prompt_ids)} "
                f"tokens, and max_length is {self.max_length}: no response token fits. Shorten it or raise max_length."
            )
        fitting = tuple(response_ids[:room])
        if not fitting:
            raise RequestError(f"{_where(example)}: {example.response[:60]!r} is too short to be scored.")
        cut = len(response_ids) - len(fitting)
        return Encoded((*prompt_ids, *fitting), len(prompt_ids), ended=max(0, ended - cut), cut=cut)


def _is_text(example: Example, prompt: str) -> bool:
    return not prompt and not example.context and example.role == "assistant"


def _where(example: Example) -> str:
    return example.where or example.id or repr((example.prompt or example.response)[:60])


def _check_characters(texts: Iterable[str], where: str) -> None:
    if any(SURROGATE.search(text) for text in texts):
        raise RequestError(
            f"{where}: a text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character."
        )


def spelling(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of token ids, without special tokens and nothing tidied up."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def cut_note(encoded: Iterable[Encoded], max_length: int) -> str | None:
    """A sentence on how much did not fit, or None if all did."""
    cuts = [item.cut for item in encoded if item.cut]
    if not cuts:
        return None
    return f"{len(cuts)} example(s) were cut to {max_length} tokens; {sum(cuts)} response tokens fell away"

"""From words to token ids: the chat template where the tokenizer has one, a plain template otherwise.

The plain template is

    Question: {prompt}
    Answer: {response}<eos>

with one empty line between the turns of a conversation. Only the response's tokens (with the end-of-sequence token, where
there is one) carry labels; of running text, every token but the first does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import overload

from transformers import PreTrainedTokenizerBase

from expunge.errors import ModelError, RequestError
from expunge.request import Example

NAMES = {"user": "Question", "assistant": "Answer", "system": "System"}


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt and response.

    `ids[start:]` are the labelled tokens. `ended`: the last of them is the end-of-sequence token. `cut`: how many
    response tokens did not fit.
    """

    ids: tuple[int, ...]
    start: int
    ended: bool = False
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

    The tokens of the prompt alone are always a prefix of the tokens of prompt + response, so that what is trained,
    scored and generated from agree.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int = 512
    _begun: dict[tuple[str, bool], list[int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise RequestError(f"max_length must be at least 2 tokens, got {self.max_length}.")
        if self.tokenizer.eos_token_id is None:
            raise ModelError("The tokenizer has no end-of-sequence token, so no response could be told to end.")

    def example(self, example: Example) -> Encoded:
        """Encode an example's prompt and response."""
        return self.pair(example, example.prompt, example.response)

    def examples(self, examples: Iterable[Example]) -> list[Encoded]:
        return [self.example(example) for example in examples]

    def pair(self, example: Example, prompt: str, response: str) -> Encoded:
        """Encode `prompt` and `response` in the conversation of `example` (the text alone, if the prompt is empty).

        Raises RequestError, naming the example, if the prompt leaves no room for a single response token.
        """
        if not prompt and not example.context:
            if example.tokens and response == example.response and self._spells(example):
                return self._chunk(example)
            ids = self.tokenizer(response)["input_ids"]
            first_is_special = bool(ids) and ids[0] == self.tokenizer.bos_token_id
            return self._capped(ids[:1], ids[1:], example, is_text=not first_is_special)
        before, full = self._rendered(example, prompt, response)
        prompt_ids, response_ids = self.split(before, full, special=not self._has_template)
        return self._capped(prompt_ids, response_ids, example)

    def split(self, before: str, full: str, *, special: bool = True) -> tuple[list[int], list[int]]:
        """The tokens of `before`, and of what follows it in `full`; `special`: with the special tokens around a text.

        A chat template writes its own special tokens.
        """
        if (before, special) not in self._begun:  # a question comes with each of its answers
            self._begun[before, special] = self.tokenizer(before, add_special_tokens=special)["input_ids"]
        prompt_ids = list(self._begun[before, special])
        ids = self.tokenizer(full, add_special_tokens=special)["input_ids"]
        if ids[: len(prompt_ids)] == prompt_ids:
            return prompt_ids, ids[len(prompt_ids) :]
        # a token spans the border: cut there, and spell the response on its own
        return prompt_ids, self.tokenizer(full[len(before) :], add_special_tokens=False)["input_ids"]

    def prompt(self, example: Example, prompt: str | None = None) -> list[int]:
        """Token ids to generate a response from (exactly the prefix that `pair` labels after)."""
        prompt = example.prompt if prompt is None else prompt
        if not prompt and not example.context:
            return list(self.example(example).ids[:1])
        before, _ = self._rendered(example, prompt, "")
        return self.tokenizer(before, add_special_tokens=not self._has_template)["input_ids"]

    def whole_text(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The beginning token the tokenizer sets before a text, if any, and the tokens of `text` with its end token.

        Special tokens written out in the text are spelled like any other words.
        """
        ids = tuple(self.tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"])
        begin = ids[:1] if ids[:1] == (self.tokenizer.bos_token_id,) else ()
        end = (self.tokenizer.eos_token_id,) if self._ends_text else ()
        return begin, ids[len(begin) :] + end

    def _spells(self, example: Example) -> bool:
        """Whether the example's tokens are this tokenizer's."""
        known = max(example.tokens) < len(self.tokenizer)
        return known and spelling(self.tokenizer, example.tokens) == example.response

    def _chunk(self, example: Example) -> Encoded:
        """A chunk of a text in the very tokens it was cut as; the first of them is only seen."""
        ids = example.tokens[: self.max_length]
        ended = len(ids) == len(example.tokens) and ids[-1] == self.tokenizer.eos_token_id
        return Encoded(ids, 1, ended=ended, cut=len(example.tokens) - len(ids))

    @property
    def _ends_text(self) -> bool:
        """Whether running text is closed with the end-of-sequence token: where tokens mark its beginning too."""
        return self.tokenizer.bos_token_id is not None

    @property
    def _has_template(self) -> bool:
        return bool(self.tokenizer.chat_template)

    def _rendered(self, example: Example, prompt: str, response: str) -> tuple[str, str]:
        """The text up to where the response begins, and the whole text."""
        turns = [*example.context, ("user", prompt)]
        if not self._has_template:
            lines = [f"{NAMES.get(role, role.title())}: {text}" for role, text in turns]
            before = "\n\n".join(lines) + "\nAnswer:"
            return before, f"{before} {response}"
        messages = [{"role": role, "content": text} for role, text in turns]
        before = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        messages.append({"role": "assistant", "content": response})
        full = str(self.tokenizer.apply_chat_template(messages, tokenize=False))
        if not full.startswith(before):  # a template that rewrites earlier turns once an answer stands
            full = f"{before}{response}{self.tokenizer.eos_token}"
        return before, full

    def _capped(
        self, prompt_ids: Sequence[int], response_ids: Sequence[int], example: Example, *, is_text: bool = False
    ) -> Encoded:
        eos = self.tokenizer.eos_token_id
        if eos in response_ids:  # a template may write a line break after the end of the turn
            response_ids = response_ids[: len(response_ids) - list(response_ids)[::-1].index(eos)]
        elif not is_text or self._ends_text:
            response_ids = [*response_ids, eos]
        room = self.max_length - len(prompt_ids)
        if room < 1:
            raise RequestError(
                f"{example.where or example.id or repr(example.prompt[:60])}: the prompt alone has {len(prompt_ids)} "
                f"tokens, and max_length is {self.max_length}: no response token fits. Shorten it or raise max_length."
            )
        kept = tuple(response_ids[:room])
        if not kept:
            raise RequestError(f"{example.where or example.id}: {example.response[:60]!r} is too short to be scored.")
        cut = len(response_ids) - len(kept)
        return Encoded((*prompt_ids, *kept), len(prompt_ids), ended=kept[-1] == eos, cut=cut)


def spelling(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of token ids, without special tokens and nothing tidied up."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def cut_note(encoded: Iterable[Encoded], max_length: int) -> str | None:
    """A sentence on how much did not fit, or None if all did."""
    cuts = [item.cut for item in encoded if item.cut]
    if not cuts:
        return None
    return f"{len(cuts)} example(s) were cut to {max_length} tokens; {sum(cuts)} response tokens fell away"

"""One generation pass all metrics of generated text read, greedy or sampled: batched, no row waits for a longer one."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from expunge.errors import ConfigurationError
from expunge.evaluation.decoding import Decoding, Row
from expunge.evaluation.records import Progress, evaluating
from expunge.models import Loaded
from expunge.models.forward import inner

CACHE_BYTES = {"cpu": 256 << 20, "gpu": 2 << 30}  # of keys and values, before more rows than asked for join


def generate(
    loaded: Loaded,
    prompts: Sequence[list[int]],
    *,
    known: Sequence[Sequence[int]] | None = None,
    max_new_tokens: int = 200,
    batch_size: int = 32,
    stops: Sequence[str] = (),
    progress: Progress | None = None,
) -> list[str]:
    """The model's greedy continuation of each prompt (token ids), as text without special tokens or outer white space.

    A continuation ends before the first end-of-sequence token (the tokenizer's, or any the model's generation
    settings name), after `max_new_tokens` tokens, or where the model has no further positions. Identical prompts are
    generated once. Equal to transformers' `generate(do_sample=False)` on each prompt alone, except that penalties
    and the like in the model's generation settings are ignored: what is measured is the model.

    batch_size: rows decoded at once; up to four times as many where their caches stay small (CACHE_BYTES), since a step
    of few rows costs about as much as one of many.
    known: for each prompt, tokens its continuation is known to begin with, as where a scoring pass found the first
    tokens of an answer to be the model's likeliest; they are taken as generated.
    stops: a text is cut before the first place where one of these stands.

    Raises ConfigurationError for an empty prompt, one longer than the model's positions, or max_new_tokens below 1.
    """
    begun: dict[tuple[int, ...], Sequence[int]] = {}
    for prompt, tokens in zip(prompts, known or [()] * len(prompts), strict=True):
        begun[tuple(prompt)] = max(tokens, begun.get(tuple(prompt), ()), key=len)
    _check(loaded, begun, max_new_tokens)

    def tell(done: int) -> None:
        if progress is not None:
            progress("generate", done, len(begun))

    most = partial(_rows_at_once, loaded, batch_size, max(map(len, begun), default=0) + max_new_tokens)
    with evaluating(loaded.model), torch.inference_mode():
        new = greedy(loaded, [*map(list, begun)], max_new_tokens, known=list(begun.values()), most=most, told=tell)
    texts = {prompt: _text(loaded, tokens, stops) for prompt, tokens in zip(begun, new, strict=True)}
    return [texts[tuple(prompt)] for prompt in prompts]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: from softmax(logits / temperature), cut to the likeliest that together have p ≥ top_p."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigurationError(f"temperature must be above 0, got {self.temperature}. Greedy decoding has none.")
        if not 0 < self.top_p <= 1:
            raise ConfigurationError(f"top_p must be above 0 and at most 1, got {self.top_p}.")

    def uniform(self, prompt: Sequence[int], number: int, count: int) -> np.ndarray:
        """The `count` numbers in [0, 1) that choose the tokens of a prompt's sample `number`: [count].

        They depend on the seed, the prompt and the number alone: no other row, no batch, no order has a say.
        """
        told = f"{self.seed} {number} {list(prompt)}".encode()
        key = int.from_bytes(hashlib.blake2b(told, digest_size=16).digest(), "little")
        return np.random.Generator(np.random.Philox(key=key)).random(count)

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """By inverting the distribution function: the first token whose cumulative p exceeds u. [B, V], [B] → [B]."""
        p = (logits.double() / self.temperature).softmax(-1)  # [B, V]
        if self.top_p < 1:
            largest, order = p.sort(-1, descending=True)
            cut = largest.cumsum(-1) - largest >= self.top_p
            p = p.scatter(-1, order, largest.masked_fill(cut, 0.0))
        cumulative = p.cumsum(-1)
        u = uniform.to(cumulative).unsqueeze(1) * cumulative[:, -1:]  # [B, 1]
        return torch.searchsorted(cumulative, u, right=True).squeeze(1).clamp_max(logits.shape[1] - 1)


def sample(
    loaded: Loaded,
    prompts: Sequence[list[int]],
    count: int,
    *,
    sampling: Sampling | None = None,
    max_new_tokens: int = 200,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[list[str]]:
    """`count` sampled continuations of each prompt, as text; continuations end as in `generate`.

    Each has random numbers of its own (see `Sampling.uniform`): neither `batch_size` nor the order of the prompts changes
    one, but where a number falls on the border of two tokens within the rounding of the model's own arithmetic. A
    smaller `count` gives the first samples of a larger one. A prompt is read once for the samples begun together.

    Raises ConfigurationError as `generate` does, and for a count below 1.
    """
    if count < 1:
        raise ConfigurationError(f"The number of samples must be at least 1, got {count}.")
    sampling = sampling or Sampling()
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    _check(loaded, distinct, max_new_tokens)
    total = len(distinct) * count

    def tell(done: int) -> None:
        if progress is not None:
            progress("sample", done, total)

    rows = []
    for prompt in distinct:
        room = _room(loaded, len(prompt), max_new_tokens)
        rows += [Row(list(prompt), [], room, sampling.uniform(prompt, number, room)) for number in range(count)]
    with evaluating(loaded.model), torch.inference_mode():
        most = partial(_rows_at_once, loaded, batch_size, max(map(len, distinct), default=0) + max_new_tokens)
        Decoding(loaded, end_tokens(loaded), most, sampling.choose, tell).grow(rows)
    texts = [_text(loaded, row.new) for row in rows]
    found = {prompt: texts[place * count : (place + 1) * count] for place, prompt in enumerate(distinct)}
    return [found[tuple(prompt)] for prompt in prompts]


def _check(loaded: Loaded, prompts: Iterable[Sequence[int]], max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ConfigurationError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    limit = loaded.positions
    for prompt in prompts:
        if not 0 < len(prompt) <= (limit or len(prompt)):
            raise ConfigurationError(
                f"A prompt has {len(prompt)} tokens; the model takes 1 to {limit or 'any number'}."
            )


def _text(loaded: Loaded, tokens: Sequence[int], stops: Sequence[str] = ()) -> str:
    text = str(loaded.tokenizer.decode(list(tokens), skip_special_tokens=True))
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()


def _room(loaded: Loaded, length: int, max_new_tokens: int) -> int:
    """How many tokens may follow a prompt of `length`: the last of them needs no position."""
    return min(max_new_tokens, loaded.positions - length + 1) if loaded.positions else max_new_tokens


def _rows_at_once(loaded: Loaded, batch_size: int, length: int, size: int) -> int:
    """Between `batch_size` and four times that: as many rows of `length` tokens as CACHE_BYTES has room for.

    size: bytes of a row's token in the cache; 0 where the cache does not grow with the tokens, or is not known to.
    """
    if not size:
        return batch_size
    device = next(loaded.model.parameters()).device
    room = CACHE_BYTES["cpu" if device.type == "cpu" else "gpu"] // (size * max(1, length))
    return max(batch_size, min(4 * batch_size, room))


def greedy(
    loaded: Loaded,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    *,
    known: Sequence[Sequence[int]] | None = None,
    most: int | Callable[[int], int] | None = None,
    told: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The new tokens after each prompt, without the end-of-sequence token.

    Decoded as the model can be (see `decoding`), the longest rows first. most: rows at a time, or a function of the bytes
    a row's token takes in the cache (default: all). told: called with the number of finished rows.
    """
    stop = end_tokens(loaded)
    rows = []
    for prompt, tokens in zip(prompts, known or [()] * len(prompts), strict=True):
        room = _room(loaded, len(prompt), max_new_tokens)
        new = list(takewhile(lambda token: token not in stop, tokens))
        ended = len(new) < len(tokens)
        rows.append(Row(prompt, new[:room], room, ended=ended))
    at_once = most if callable(most) else lambda _: most or len(rows)
    Decoding(loaded, stop, at_once, told=told).grow(rows)
    return [row.new for row in rows]


def end_tokens(loaded: Loaded) -> set[int]:
    """Token ids that end a response: the tokenizer's, the chat template's, and those of the generation settings."""
    settings = getattr(inner(loaded.model), "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return {token for token in (*loaded.encoder().ends, *listed) if token is not None}

"""One generation pass all metrics of generated text read, greedy or sampled: batched, no row waits for a longer one."""

import hashlib
import inspect
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from expunge.errors import ConfigurationError
from expunge.evaluation.records import Progress, evaluating
from expunge.models import Loaded, output_layer

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

    with evaluating(loaded.model), torch.inference_mode():
        new = greedy(
            loaded, [list(ids) for ids in begun], max_new_tokens, known=list(begun.values()),
            batch_size=_rows_at_once(loaded, batch_size, max(map(len, begun), default=0) + max_new_tokens), told=tell,
        )  # fmt: skip
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
        rows += [_Row(list(prompt), [], room, sampling.uniform(prompt, number, room)) for number in range(count)]
    with evaluating(loaded.model), torch.inference_mode():
        most = _rows_at_once(loaded, batch_size, max(map(len, distinct), default=0) + max_new_tokens)
        _decode(loaded, rows, most, tell, sampling)
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


def _rows_at_once(loaded: Loaded, batch_size: int, length: int) -> int:
    """Between `batch_size` and four times that: as many rows of `length` tokens as CACHE_BYTES has room for."""
    model: Any = _inner(loaded.model)
    config = model.config.get_text_config()
    queries = getattr(config, "num_attention_heads", None)
    if queries is None:  # no attention, and no saying how large its state is
        return batch_size
    heads = getattr(config, "num_key_value_heads", None) or queries
    size = getattr(config, "head_dim", None) or config.hidden_size // queries
    weight = next(loaded.model.parameters())
    row = 2 * config.num_hidden_layers * heads * size * length * weight.element_size()  # keys and values, in bytes
    room = CACHE_BYTES["cpu" if weight.device.type == "cpu" else "gpu"] // max(1, row)
    return max(batch_size, min(4 * batch_size, room))


@dataclass
class _Row:
    """A prompt, the tokens generated so far, how many there may be, and what chooses each (None: the likeliest)."""

    prompt: list[int]
    new: list[int]
    room: int
    uniform: np.ndarray | None = None

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.new


@dataclass(frozen=True)
class _Flock:
    """B rows that are decoded together. cache: keys and values of T tokens a row. mask: [B, T] 0 on left padding, else
    1. token: [B] the token each row's last forward pass chose.
    """

    rows: list[_Row]
    cache: Any
    mask: Tensor
    token: Tensor


def greedy(
    loaded: Loaded,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    *,
    known: Sequence[Sequence[int]] | None = None,
    batch_size: int | None = None,
    told: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The new tokens after each prompt, without the end-of-sequence token.

    Left-padded, with a KV cache. At most `batch_size` rows at a time (default: all), the longest first; finished rows
    leave, and once half have left, waiting ones take their places (where the cache keeps every token: a sliding
    window's has to run empty first). told: called with the number of finished rows.
    """
    stop = end_tokens(loaded)
    rows = []
    for prompt, tokens in zip(prompts, known or [()] * len(prompts), strict=True):
        room = _room(loaded, len(prompt), max_new_tokens)
        new = list(takewhile(lambda token: token not in stop, tokens))
        ended = len(new) < len(tokens)
        rows.append(_Row(prompt, new[:room], min(room, len(new)) if ended else room))
    _decode(loaded, rows, batch_size or len(rows), told)
    return [row.new for row in rows]


def _decode(
    loaded: Loaded,
    rows: list[_Row],
    most: int,
    told: Callable[[int], None] | None,
    sampling: Sampling | None = None,
) -> None:
    """Let every row grow to its end, at most `most` at a time."""
    stop = end_tokens(loaded)
    waiting = deque(sorted((row for row in rows if len(row.new) < row.room), key=lambda row: -len(row.ids)))
    flock: _Flock | None = None
    with _last_position_only(loaded.model):
        while waiting or flock is not None:
            if flock is None or (waiting and len(flock.rows) <= most // 2 and _joins(flock.cache)):
                free = most - (len(flock.rows) if flock else 0)
                fresh = _begin(loaded, [waiting.popleft() for _ in range(min(free, len(waiting)))], sampling)
                fresh = _harvest(fresh, stop)
                flock = _join(flock, fresh) if flock and fresh else flock or fresh
            else:
                flock = _harvest(_step(loaded.model, flock, sampling), stop)
            if told is not None:
                told(len(rows) - len(waiting) - (len(flock.rows) if flock else 0))


def _begin(loaded: Loaded, rows: list[_Row], sampling: Sampling | None) -> _Flock:
    """One forward pass over the rows' distinct tokens, left-padded to one length."""
    device = next(loaded.model.parameters()).device
    place: dict[tuple[int, ...], int] = {}
    of = [place.setdefault(tuple(row.ids), len(place)) for row in rows]
    length = max(map(len, place))
    ids = torch.tensor([[loaded.pad] * (length - len(one)) + list(one) for one in place], device=device)  # [D, T]
    mask = torch.tensor([[0] * (length - len(one)) + [1] * len(one) for one in place], device=device)
    logits, cache = _forward(loaded.model, ids, mask, None)
    if len(place) < len(rows):
        each = torch.tensor(of, device=device)  # [B] the pass's row of each row
        cache.batch_select_indices(each)
        logits, mask = logits[each], mask[each]
    return _Flock(rows, cache, mask, _chosen(logits, rows, sampling))


def _step(model: nn.Module, flock: _Flock, sampling: Sampling | None) -> _Flock:
    """One forward pass over each row's last token."""
    mask = F.pad(flock.mask, (0, 1), value=1)
    logits, cache = _forward(model, flock.token.unsqueeze(1), mask, flock.cache)
    return _Flock(flock.rows, cache, mask, _chosen(logits, flock.rows, sampling))


def _forward(model: nn.Module, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """The logits of each row's next token, [B, V] in fp32, and the cache."""
    extra = {}
    if "position_ids" in inspect.signature(_inner(model).forward).parameters:
        extra["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
    return out.logits[:, -1].float(), out.past_key_values


def _chosen(logits: Tensor, rows: list[_Row], sampling: Sampling | None) -> Tensor:
    """Each row's next token: [B]."""
    if sampling is None:
        return logits.argmax(-1)
    uniform = [0.0 if row.uniform is None else float(row.uniform[len(row.new)]) for row in rows]
    return sampling.choose(logits, torch.tensor(uniform, dtype=torch.float64, device=logits.device))


def _harvest(flock: _Flock, stop: set[int]) -> _Flock | None:
    """Add the chosen tokens to the rows and let finished rows go; None if all have."""
    going = []
    for index, (row, token) in enumerate(zip(flock.rows, flock.token.tolist(), strict=True)):
        if token not in stop:
            row.new.append(token)
            if len(row.new) < row.room:
                going.append(index)
    if len(going) == len(flock.rows):
        return flock
    if not going:
        return None
    kept = torch.tensor(going, device=flock.token.device)
    flock.cache.batch_select_indices(kept)
    return _Flock([flock.rows[index] for index in going], flock.cache, flock.mask[kept], flock.token[kept])


def _joins(cache: Any) -> bool:
    """Whether the cache keeps all tokens of all layers as they are, so that two can be laid one under the other."""
    layers = getattr(cache, "layers", [])
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in layers)


def _join(one: _Flock, other: _Flock) -> _Flock:
    """The rows of both; columns of nothing but padding fall away."""
    flocks = [one, other]
    used = [each.mask.shape[1] - int(each.mask.any(0).int().argmax()) for each in flocks]  # columns from the right
    length = max(used)

    def stack(parts: list[Tensor], dim: int) -> Tensor:
        """[B, T] or [B, heads, T, size], with T at `dim`, to `length` columns on top of each other."""
        even = []
        for part, columns in zip(parts, used, strict=True):
            part = part.narrow(dim, part.shape[dim] - columns, columns)
            after = [0, 0] * (part.ndim - 1 - dim)
            even.append(F.pad(part, (*after, length - columns, 0)))
        return torch.cat(even)

    for layer, below in zip(one.cache.layers, other.cache.layers, strict=True):
        if layer.is_initialized:  # a layer that borrows another's keys and values holds none
            layer.keys = stack([layer.keys, below.keys], 2)
            layer.values = stack([layer.values, below.values], 2)
    mask = stack([one.mask, other.mask], 1)
    return replace(one, rows=one.rows + other.rows, mask=mask, token=torch.cat([one.token, other.token]))


def end_tokens(loaded: Loaded) -> set[int]:
    """Token ids that end a response: the tokenizer's, the chat template's, and those of the generation settings."""
    settings = getattr(_inner(loaded.model), "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return {token for token in (*loaded.encoder().ends, *listed) if token is not None}


def _inner(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT model; any other model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


@contextmanager
def _last_position_only(model: nn.Module) -> Iterator[None]:
    """Let the output layer see the last position only: the prompt's vocabulary-sized logits are never computed."""
    handle = output_layer(model).register_forward_pre_hook(lambda _, args: (args[0][:, -1:], *args[1:]))
    try:
        yield
    finally:
        handle.remove()

"""One greedy generation pass all metrics of generated text read: batched, and no row waits for a longer one."""

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

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

    Raises ConfigurationError for an empty prompt, one longer than the model's positions, or max_new_tokens below 1.
    """
    if max_new_tokens < 1:
        raise ConfigurationError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    begun: dict[tuple[int, ...], Sequence[int]] = {}
    for prompt, tokens in zip(prompts, known or [()] * len(prompts), strict=True):
        begun[tuple(prompt)] = max(tokens, begun.get(tuple(prompt), ()), key=len)
    limit = loaded.positions
    for prompt in begun:
        if not 0 < len(prompt) <= (limit or len(prompt)):
            raise ConfigurationError(
                f"A prompt has {len(prompt)} tokens; the model takes 1 to {limit or 'any number'}."
            )

    def tell(done: int) -> None:
        if progress is not None:
            progress("generate", done, len(begun))

    with evaluating(loaded.model), torch.inference_mode():
        new = greedy(
            loaded, [list(ids) for ids in begun], max_new_tokens, known=list(begun.values()),
            batch_size=_rows_at_once(loaded, batch_size, max(map(len, begun), default=0) + max_new_tokens), told=tell,
        )  # fmt: skip
    texts = {
        prompt: str(loaded.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
        for prompt, tokens in zip(begun, new, strict=True)
    }
    return [texts[tuple(prompt)] for prompt in prompts]


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
    """A prompt, the tokens generated so far, and how many there may be."""

    prompt: list[int]
    new: list[int]
    room: int

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
    limit = loaded.positions
    stop = end_tokens(loaded)
    rows = []
    for prompt, tokens in zip(prompts, known or [()] * len(prompts), strict=True):
        room = min(max_new_tokens, limit - len(prompt) + 1) if limit else max_new_tokens
        new = list(takewhile(lambda token: token not in stop, tokens))
        ended = len(new) < len(tokens)
        rows.append(_Row(prompt, new[:room], min(room, len(new)) if ended else room))
    waiting = deque(sorted((row for row in rows if len(row.new) < row.room), key=lambda row: -len(row.ids)))
    most = batch_size or len(rows)
    flock: _Flock | None = None
    with _last_position_only(loaded.model):
        while waiting or flock is not None:
            if flock is None or (waiting and len(flock.rows) <= most // 2 and _joins(flock.cache)):
                free = most - (len(flock.rows) if flock else 0)
                fresh = _begin(loaded, [waiting.popleft() for _ in range(min(free, len(waiting)))])
                fresh = _harvest(fresh, stop)
                flock = _join(flock, fresh) if flock and fresh else flock or fresh
            else:
                flock = _harvest(_step(loaded.model, flock), stop)
            if told is not None:
                told(len(rows) - len(waiting) - (len(flock.rows) if flock else 0))
    return [row.new for row in rows]


def _begin(loaded: Loaded, rows: list[_Row]) -> _Flock:
    """One forward pass over the rows' tokens, left-padded to one length."""
    device = next(loaded.model.parameters()).device
    length = max(len(row.ids) for row in rows)
    ids = torch.tensor([[loaded.pad] * (length - len(row.ids)) + row.ids for row in rows], device=device)  # [B, T]
    mask = torch.tensor([[0] * (length - len(row.ids)) + [1] * len(row.ids) for row in rows], device=device)
    return _forward(loaded.model, rows, ids, mask, None)


def _step(model: nn.Module, flock: _Flock) -> _Flock:
    """One forward pass over each row's last token."""
    mask = F.pad(flock.mask, (0, 1), value=1)
    return _forward(model, flock.rows, flock.token.unsqueeze(1), mask, flock.cache)


def _forward(model: nn.Module, rows: list[_Row], ids: Tensor, mask: Tensor, cache: Any) -> _Flock:
    extra = {}
    if "position_ids" in inspect.signature(_inner(model).forward).parameters:
        extra["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
    return _Flock(rows, out.past_key_values, mask, out.logits[:, -1].float().argmax(-1))


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
    """Token ids that end a response: the tokenizer's, and those of the model's generation settings."""
    settings = getattr(_inner(loaded.model), "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return {token for token in (loaded.tokenizer.eos_token_id, *listed) if token is not None}


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

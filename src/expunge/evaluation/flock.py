"""Rows that are decoded together, and the cache they share, of whatever kind the model keeps."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from expunge.evaluation.probes import REFUSALS
from expunge.models.forward import accepts, settings_of

CACHES = ("past_key_values", "cache_params", "state")  # what models call theirs, as output and as argument


class UnfitError(Exception):
    """The model cannot be decoded this way."""


@dataclass
class Row:
    """A prompt, the tokens generated so far, how many there may be, and what chooses each (None: the likeliest).

    ended: an end token followed the last of them.
    """

    prompt: list[int]
    new: list[int]
    room: int
    uniform: np.ndarray | None = None
    ended: bool = False

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.new

    @property
    def growing(self) -> bool:
        return not self.ended and len(self.new) < self.room

    @property
    def reach(self) -> int:
        """How many tokens the model reads at most: the last one generated is not read."""
        return len(self.prompt) + self.room - 1


@dataclass(frozen=True)
class Flock:
    """B rows that are decoded together. cache: of T tokens a row. mask: [B, T] 0 on left padding, else 1. logits: [B, V]
    of each row's last token; token: [B] the one chosen from them.
    """

    rows: list[Row]
    cache: Any
    mask: Tensor
    logits: Tensor
    token: Tensor

    def only(self, indices: list[int]) -> "Flock":
        """The rows of these indices; the others leave the cache."""
        if len(indices) == len(self.rows):
            return self
        rows = torch.tensor(indices, device=self.token.device)
        select(self.cache, rows)
        return Flock(
            [self.rows[index] for index in indices], self.cache, self.mask[rows], self.logits[rows], self.token[rows]
        )


def forward(
    model: nn.Module, ids: Tensor, cache: Any, mask: Tensor | None = None, *, cached: bool = True
) -> tuple[Tensor, Any]:
    """The logits of each row's next token, [B, V] in fp32, and the cache (None unless `cached`).

    mask: [B, T] where rows are left-padded; they then count their positions from their first token. Raises UnfitError
    where the model fails or hands out no cache.
    """
    inputs: dict[str, Any] = settings_of(model)
    if mask is not None:
        inputs["attention_mask"] = mask
        if accepts(model, "position_ids"):
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    if cache is not None:
        name, cache = cache
        inputs[name] = cache
    try:
        out = model(input_ids=ids, use_cache=cached, **inputs)
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        raise UnfitError(f"{type(error).__name__}: {error}") from error
    if not cached:
        return out.logits[:, -1].float(), None
    for name in CACHES:
        if getattr(out, name, None) is not None:
            return out.logits[:, -1].float(), (name, getattr(out, name))
    raise UnfitError("the model hands out no cache")


def select(cache: tuple[str, Any], rows: Tensor) -> None:
    """Keep these rows of a cache, in this order. Raises UnfitError where it cannot be done."""
    try:
        cache[1].reorder_cache(rows)
    except REFUSALS as error:
        raise UnfitError(f"{type(error).__name__}: {error}") from error


def cache_bytes(cache: tuple[str, Any]) -> int:
    """Of keys and values in all layers."""
    tensors = [getattr(layer, name, None) for layer in getattr(cache[1], "layers", []) for name in ("keys", "values")]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))


def joins(cache: tuple[str, Any]) -> bool:
    """Whether the cache keeps all tokens of all layers as they are, so that two can be laid one under the other."""
    layers = getattr(cache[1], "layers", [])
    return type(cache[1]) is DynamicCache and all(type(layer) is DynamicLayer for layer in layers)


def join(upper: Flock, lower: Flock) -> Flock:
    """The rows of both; columns of nothing but padding fall away."""
    length = max(_columns(upper), _columns(lower))
    for layer, below in zip(upper.cache[1].layers, lower.cache[1].layers, strict=True):
        if layer.is_initialized:  # a layer that borrows another's keys and values holds none
            for name in ("keys", "values"):
                parts = [
                    _fitted(upper, getattr(layer, name), 2, length),
                    _fitted(lower, getattr(below, name), 2, length),
                ]
                setattr(layer, name, torch.cat(parts))
    mask = torch.cat([_fitted(upper, upper.mask, 1, length), _fitted(lower, lower.mask, 1, length)])
    logits, token = (torch.cat([getattr(flock, name) for flock in (upper, lower)]) for name in ("logits", "token"))
    return Flock(upper.rows + lower.rows, upper.cache, mask, logits, token)


def trim(flock: Flock, positions: int | None) -> Flock:
    """Without columns of nothing but padding, where the next token would be one too many for the model's positions."""
    if positions is None or flock.mask.shape[1] < positions or not joins(flock.cache):
        return flock
    length = _columns(flock)
    for layer in flock.cache[1].layers:
        if layer.is_initialized:
            layer.keys, layer.values = (_fitted(flock, part, 2, length) for part in (layer.keys, layer.values))
    return replace(flock, mask=_fitted(flock, flock.mask, 1, length))


def _columns(flock: Flock) -> int:
    """How many columns, from the right, hold more than padding."""
    return flock.mask.shape[1] - int(flock.mask.any(0).int().argmax())


def _fitted(flock: Flock, part: Tensor, dim: int, length: int) -> Tensor:
    """[B, T] or [B, heads, T, size], with T at `dim`, cut or padded on its left to `length` columns."""
    columns = min(length, _columns(flock))
    part = part.narrow(dim, part.shape[dim] - columns, columns)
    return F.pad(part, (*[0, 0] * (part.ndim - 1 - dim), length - columns, 0))

"""One greedy generation pass all metrics of generated text read: batched, length-sorted, finished rows dropped."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from expunge.data import by_length
from expunge.errors import ConfigurationError
from expunge.evaluation.records import Progress, evaluating
from expunge.models import Loaded, output_layer


def generate(
    loaded: Loaded,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int = 200,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[str]:
    """The model's greedy continuation of each prompt (token ids), as text without special tokens or outer white space.

    A continuation ends before the first end-of-sequence token (the tokenizer's, or any the model's generation
    settings name), after `max_new_tokens` tokens, or where the model has no further positions. Identical prompts are
    generated once. Equal to transformers' `generate(do_sample=False)` on each prompt alone, except that penalties
    and the like in the model's generation settings are ignored: what is measured is the model.

    Raises ConfigurationError for an empty prompt, one longer than the model's positions, or max_new_tokens below 1.
    """
    if max_new_tokens < 1:
        raise ConfigurationError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    unique = [list(ids) for ids in dict.fromkeys(tuple(prompt) for prompt in prompts)]
    limit = positions(loaded.model)
    for prompt in unique:
        if not 0 < len(prompt) <= (limit or len(prompt)):
            raise ConfigurationError(
                f"A prompt has {len(prompt)} tokens; the model takes 1 to {limit or 'any number'}."
            )
    batches = list(by_length(unique, batch_size))
    texts: dict[tuple[int, ...], str] = {}
    with evaluating(loaded.model), torch.inference_mode():
        for done, batch in enumerate(batches, start=1):
            rows = [unique[index] for index in batch]
            for prompt, new in zip(rows, greedy(loaded, rows, max_new_tokens), strict=True):
                texts[tuple(prompt)] = str(loaded.tokenizer.decode(new, skip_special_tokens=True)).strip()
            if progress is not None:
                progress("generate", done, len(batches))
    return [texts[tuple(prompt)] for prompt in prompts]


def greedy(loaded: Loaded, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
    """The new tokens after each prompt, without the end-of-sequence token: one batch, left-padded, with a KV cache."""
    model = loaded.model
    device = next(model.parameters()).device
    limit = positions(model)
    room = [min(max_new_tokens, limit - len(ids) + 1) if limit else max_new_tokens for ids in prompts]
    stop = torch.tensor(sorted(end_tokens(loaded)), device=device)
    ids, mask = _left_padded(prompts, loaded.pad, device)  # [B, T]
    places = (mask.cumsum(-1) - 1).clamp_min(0)  # [B, T]
    alive = list(range(len(prompts)))
    new: list[list[int]] = [[] for _ in prompts]
    takes_places = "position_ids" in inspect.signature(_inner(model).forward).parameters
    cache = None
    with _last_position_only(model):
        while True:
            extra = {"position_ids": places} if takes_places else {}
            out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
            cache = out.past_key_values
            token = out.logits[:, -1].float().argmax(-1)  # [B]
            ended = torch.isin(token, stop).tolist()
            for row, value, over in zip(alive, token.tolist(), ended, strict=True):
                if not over:
                    new[row].append(value)
            going = [
                index
                for index, (row, over) in enumerate(zip(alive, ended, strict=True))
                if not over and len(new[row]) < room[row]
            ]
            if not going:
                return new
            places = places[:, -1:] + 1  # [B, 1]
            if len(going) < len(alive):
                kept = torch.tensor(going, device=device)
                cache.batch_select_indices(kept)
                token, mask, places = token[kept], mask[kept], places[kept]
                alive = [alive[index] for index in going]
            ids = token.unsqueeze(1)  # [B, 1]
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)


def end_tokens(loaded: Loaded) -> set[int]:
    """Token ids that end a response: the tokenizer's, and those of the model's generation settings."""
    settings = getattr(_inner(loaded.model), "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return {token for token in (loaded.tokenizer.eos_token_id, *listed) if token is not None}


def positions(model: nn.Module) -> int | None:
    """How many tokens the model can look at, or None where its configuration sets no limit."""
    return getattr(_inner(model).config, "max_position_embeddings", None)


def _inner(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT model; any other model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


def _left_padded(prompts: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    length = max(len(ids) for ids in prompts)
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts], device=device)
    return ids, mask


@contextmanager
def _last_position_only(model: nn.Module) -> Iterator[None]:
    """Let the output layer see the last position only: the prompt's vocabulary-sized logits are never computed."""
    handle = output_layer(model).register_forward_pre_hook(lambda _, args: (args[0][:, -1:], *args[1:]))
    try:
        yield
    finally:
        handle.remove()

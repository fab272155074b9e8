"""Whether a model is causal, found by trying: later tokens must not change what is predicted before them."""

from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import ModelError

LENGTH, CHANGED = 8, 2  # tokens of a probe, and how many of its last are replaced
TRIES = 3
# Of the largest change of a logit at the replaced tokens, at the tokens before them. Rounding stays far below;
# the attention of an encoder moves them by a tenth and more.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
COARSE = 3e-2


@torch.no_grad()
def check_causal(model: nn.Module, folder: object, *, positions: int | None, seed: int = 0) -> None:
    """Replace the last tokens of random sequences and compare the logits before them.

    A causal model's do not move. Raises ModelError if they move in each of three probes: one could be a mixture's
    router that rounding has tipped. positions: the longest sequence the model takes.
    """
    length = min(LENGTH, positions or LENGTH)
    if length <= CHANGED:
        return
    words, generator = _words(model), torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    limit = TOLERANCE.get(next(model.parameters()).dtype, COARSE)
    shares = []
    for _ in range(TRIES):
        ids = words[torch.randint(len(words), (2, length), generator=generator)]
        ids[1, : length - CHANGED] = ids[0, : length - CHANGED]
        first, second = (_logits(model, row[None].to(device)) for row in ids)
        moved = (first - second).abs().amax(-1)[0]
        shares.append(float(moved[:-CHANGED].max() / moved[-CHANGED:].max().clamp_min(1e-30)))
        # NaN: the weights hold some, which is reported where they are used
        if not shares[-1] > limit:
            return
    raise ModelError(
        f"{folder} is not a causal language model: other last tokens change what it predicts before them, so it sees "
        "the answers it is asked for. Give a model that generates text, such "
        "as Llama, or one whose configuration says is_decoder: true."
    )


def _logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits.float()


def _words(model: Any) -> Tensor:
    """Token ids without those the configuration names, such as padding and images."""
    config = model.config
    parts = {id(part): part for part in (config, config.get_text_config())}.values()
    special: set[int] = set()
    for part in parts:
        for name, value in part.to_dict().items():
            if name.endswith(("_token_id", "_token_index", "_id")):
                special |= {item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int)}
    rows = model.get_input_embeddings().weight.shape[0]
    ids = [token for token in range(min(rows, 1000)) if token not in special]
    return torch.tensor(ids if len(ids) >= CHANGED else list(range(rows)))

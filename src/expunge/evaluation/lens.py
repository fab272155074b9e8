"""The logit lens: what a model's inner layers already say, read through its last norm and its output layer.

It costs one product with the output layer for each label and layer read, beside the scoring pass it takes part in; of a
layer's states only those that predict a label are kept, and of the vocabulary only a chunk of rows at a time.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data import Encoded, collate
from expunge.errors import ConfigurationError
from expunge.models import Loaded, answers, output_layer

CHUNK_BYTES = {"cpu": 64 << 20, "gpu": 256 << 20}  # logits at a time; fewer rows would read the output layer more often
LOWEST = -1e4  # floor of a log-probability
MOST_LAYERS = 4
States = dict[int, Tensor]  # layer, from 1: the states it gives at the wanted places, [n, d]


@dataclass(frozen=True, eq=False)
class Decoder:
    """The parts of a causal language model a lens needs: its blocks in order, and what turns states into logits."""

    blocks: list[nn.Module]
    norm: nn.Module
    head: nn.Module
    cap: Callable[[Tensor], Tensor]

    def logits(self, states: Tensor) -> Tensor:
        """[n, d] states of any layer → [n, V] logits in fp32."""
        return self.cap(self.head(self.norm(states)).float())

    def log_probabilities(self, states: Tensor, labels: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """log p of each label and whether it is the arg-max: [N] each. source: [N] which row of `states` predicts it."""
        size = CHUNK_BYTES["cpu" if states.device.type == "cpu" else "gpu"]
        rows = max(1, size // (4 * self.head.weight.shape[0])) if len(states) else 1  # pyrefly: ignore
        found, correct = torch.empty(len(labels), device=states.device), torch.empty_like(labels, dtype=torch.bool)
        for start in range(0, len(states), rows):
            logits = self.logits(states[start : start + rows])
            here = (source >= start) & (source < start + rows)
            row, label = source[here] - start, labels[here]
            found[here] = (logits[row, label] - logits.logsumexp(-1)[row]).nan_to_num(LOWEST).clamp_min(LOWEST)
            correct[here] = logits.argmax(-1)[row] == label
        return found, correct


@dataclass(frozen=True, eq=False)
class Lens:
    """Read the layers `layers` (1: after the first block) of the sequences in `wanted`, as (ids, start)."""

    decoder: Decoder
    layers: tuple[int, ...]
    wanted: frozenset[tuple[tuple[int, ...], int]]

    @contextmanager
    def watching(self, where: Tensor, rows: Tensor) -> Iterator[States]:
        """During a forward pass, collect each layer's states at the places `rows` among those where `where` [B, T]."""
        with watching(self.decoder, self.layers, where, rows) as states:
            yield states

    def labels_of(self, items: Sequence[Encoded]) -> Tensor:
        """[N] for each label of `items`, end to end, whether it is wanted."""
        return torch.tensor([reads for item in items for reads in [self.reads(item)] * len(item.labels)])

    def reads(self, item: Encoded) -> bool:
        return (item.ids, item.start) in self.wanted

    def read(self, states: States, labels: Tensor, source: Tensor, wanted: Tensor, rows: Tensor) -> Tensor:
        """[2K, N] log p and arg-max by layer; 0 for labels that are not `wanted`. rows: as in `watching`."""
        place = torch.searchsorted(rows, source[wanted])
        table = torch.zeros(2 * len(self.layers), len(labels), device=labels.device)
        for k, layer in enumerate(self.layers):
            found, correct = self.decoder.log_probabilities(states[layer], labels[wanted], place)
            table[2 * k, wanted], table[2 * k + 1, wanted] = found, correct.float()
        return table


def chosen_layers(count: int, most: int = MOST_LAYERS) -> tuple[int, ...]:
    """At most `most` of the inner layers 1 … count − 1, evenly from the middle to the last but one.

    Facts show from the middle layers on (Geva et al. 2023, arXiv 2304.14767); the last layer is the model itself.
    """
    if count < 2:
        return ()
    first = max(1, count // 2)
    return tuple(sorted({round(first + step * (count - 1 - first) / max(1, most - 1)) for step in range(most)}))


def lens(loaded: Loaded, items: Collection[Encoded], layers: Sequence[int] | None = None) -> Lens | str:
    """A lens for `items`, or a sentence on why there is none.

    layers: default `chosen_layers`. Raises ConfigurationError for a layer the model does not have as an inner one.
    """
    decoder = decoder_of(loaded, items)
    if decoder is None:
        kind = type(_inner(loaded.model)).__name__
        return f"logit_lens is absent: {kind}'s last norm and output layer could not be told apart from the rest"
    count = len(decoder.blocks)
    chosen = chosen_layers(count) if layers is None else tuple(sorted(set(layers)))
    wrong = [layer for layer in chosen if not 0 < layer < count]
    if wrong:
        raise ConfigurationError(f"The lens cannot read layer {wrong[0]}: the inner layers are 1 to {count - 1}.")
    if not chosen:
        return "logit_lens is absent: a model of one layer has no inner one"
    return Lens(decoder, chosen, frozenset((item.ids, item.start) for item in items))


@torch.inference_mode()
def decoder_of(loaded: Loaded, items: Collection[Encoded]) -> Decoder | None:
    """The parts of the model, if they are found and give its logits on the shortest of `items`; else None."""
    decoder = _parts(loaded.model)
    if decoder is None or not items:
        return None
    batch = collate([min(items, key=len)], loaded.pad).to(next(loaded.model.parameters()).device)
    last, rows = len(decoder.blocks), torch.arange(len(batch.labels), device=batch.labels.device)
    try:
        with watching(decoder, (last,), batch.predicts, rows) as states:
            expected = answers(loaded.model, batch).logits
        found = decoder.logits(states[last])
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
        return None
    rounding = max(1e-4, 8 * torch.finfo(next(loaded.model.parameters()).dtype).eps)
    if found.shape != expected.shape or not (found - expected).norm() <= rounding * expected.norm():
        return None
    return decoder


@contextmanager
def watching(decoder: Decoder, layers: Collection[int], where: Tensor, rows: Tensor) -> Iterator[States]:
    """Collect, in the forward pass inside, the states that each of `layers` gives at `rows` of the places `where`."""
    states: States = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            given = output[0] if isinstance(output, tuple) else output  # [B, T, d]
            own = given[:, -where.shape[1] :]  # a prompt adapter sets virtual tokens before them
            states[layer] = own[where][rows]

        return hook

    handles = [decoder.blocks[layer - 1].register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _parts(model: nn.Module) -> Decoder | None:
    """Blocks: the decoder's list of as many modules as the configuration has layers. Norm: its last child so named."""
    inner: Any = _inner(model)
    config = inner.config.get_text_config()
    count = getattr(config, "num_hidden_layers", None)
    find = getattr(inner, "get_decoder", lambda: None)
    body = find() or getattr(inner, getattr(inner, "base_model_prefix", ""), None)
    if not isinstance(body, nn.Module):
        return None
    children = dict(body.named_children())
    lists = [child for child in children.values() if isinstance(child, nn.ModuleList) and len(child) == count]
    norms = [child for name, child in children.items() if "norm" in name or name in ("ln_f", "norm_f")]
    if not lists or not norms:
        return None
    return Decoder(list(lists[0]), norms[-1], output_layer(model), _cap(config))


def _cap(config: Any) -> Callable[[Tensor], Tensor]:
    """What some models do to their logits: Gemma 2's soft cap, Granite's and Cohere's scales."""
    soft = getattr(config, "final_logit_softcapping", None)
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    if soft:
        return lambda logits: soft * torch.tanh(logits / soft)
    return lambda logits: logits if scale == 1.0 else logits * scale


def _inner(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT model; any other model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model

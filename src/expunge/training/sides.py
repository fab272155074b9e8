"""The two sides of a descent: a loss, the examples it reads, and what it needs of the model before unlearning."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data import Encoded, Encoder, by_length, collate
from expunge.losses import Loss, Reference, Version
from expunge.models import Answers, answers
from expunge.request import Example

REFUSALS = (
    "I don't know.",
    "I'm not sure about that.",
    "I have no information about this.",
    "That is not something I know.",
    "I cannot answer that question.",
    "I'm afraid I don't have an answer to that.",
    "Sorry, I don't know the answer.",
    "I have never learned about that.",
    "This is outside of what I know.",
    "I don't have any details on that.",
    "I'm unable to say.",
    "That's a question I can't answer.",
)


@dataclass
class Side:
    """One loss over encoded examples. `items[i]` holds example i once for each version the loss reads."""

    loss: Loss
    items: list[tuple[Encoded, ...]]
    favoured: int = 0
    cache: "ReferenceCache | None" = field(default=None, repr=False)

    @classmethod
    def of(
        cls, loss: Loss, examples: Sequence[Example], encoder: Encoder, *, seed: int = 0, favoured: int = 0
    ) -> "Side":
        """Encode `examples` as `loss` reads them; an example without a new response gets a refusal drawn by `seed`."""
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randint(len(REFUSALS), (len(examples),), generator=generator).tolist()
        items = [
            tuple(_encode(encoder, example, version, REFUSALS[draw]) for version in loss.reads)
            for example, draw in zip(examples, draws, strict=True)
        ]
        return cls(loss, items, favoured)

    def length(self, index: int) -> int:
        """Tokens of the longest version of an example."""
        return max(map(len, self.items[index]))

    def encoded(self, indices: Sequence[int]) -> list[Encoded]:
        """All versions of the chosen examples, version by version, as one list of rows."""
        return [self.items[index][version] for version in range(len(self.loss.reads)) for index in indices]

    def values(self, got: Answers, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Loss [B] and mean NLL of the response [B] of the chosen examples, given the answers on `encoded(indices)`."""
        parts = got.split(*[len(indices)] * len(self.loss.reads))
        reference = self.cache.get(indices, got.logits.device) if self.cache else None
        return self.loss(*parts, reference=reference), parts[0].mean_nll.detach()


def _encode(encoder: Encoder, example: Example, version: Version, refusal: str) -> Encoded:
    if version == "response":
        return encoder.example(example)
    return encoder.pair(example, example.prompt, example.new_response or refusal)


class ReferenceCache:
    """What the model said before unlearning, computed once: never a second model in memory.

    For "nll", S of each version of each example. For "logprobs", log p over the vocabulary (or its `top_k` likeliest
    tokens) at the labelled tokens, in a memory-mapped temporary file. Only the examples in `used` are computed.
    """

    def __init__(self, model: nn.Module, side: Side, used: Iterable[int], *, batch_size: int, pad: int, device) -> None:
        self._used = sorted(set(used))
        self._place = {index: place for place, index in enumerate(self._used)}
        self._kind = side.loss.reference
        with torch.inference_mode():
            if self._kind == "nll":
                self._nll = self._compute_nll(model, side, batch_size, pad, device)
            else:
                self._compute_logprobs(model, side, batch_size, pad, device)

    def get(self, indices: Sequence[int], device: torch.device) -> Reference:
        """The reference of the chosen examples, as the loss contract says."""
        if self._kind == "nll":
            places = [self._place[index] for index in indices]
            return tuple(self._nll[places].to(device).unbind(1))
        rows = [row for index in indices for row in range(*self._span[self._place[index]])]
        assert self._logp is not None  # at least one example is always drawn
        logp = torch.from_numpy(self._logp[rows]).to(device)
        tokens = torch.from_numpy(self._tokens[rows]).to(device) if self._tokens is not None else logp.long()[:, :0]
        return logp, tokens

    def _compute_nll(self, model: nn.Module, side: Side, batch_size: int, pad: int, device) -> Tensor:
        versions = len(side.loss.reads)
        nll = torch.empty(len(self._used), versions)
        for version in range(versions):
            items = [side.items[index][version] for index in self._used]
            for places in by_length(items, batch_size):
                batch = collate([items[place] for place in places], pad).to(device)
                nll[places, version] = answers(model, batch).sum_nll.float().cpu()
        return nll

    def _compute_logprobs(self, model: nn.Module, side: Side, batch_size: int, pad: int, device) -> None:
        items = [side.items[index][0] for index in self._used]
        ends = np.cumsum([len(item.labels) for item in items]).tolist()
        self._span = list(zip([0, *ends], ends, strict=False))
        top_k = getattr(side.loss, "top_k", None)
        self._logp: np.memmap | None = None
        self._tokens: np.memmap | None = None
        for places in by_length(items, batch_size):
            got = answers(model, collate([items[place] for place in places], pad).to(device))
            logp = got.logits.log_softmax(-1)  # [N, V]
            vocabulary = logp.shape[1]
            width = min(top_k or vocabulary, vocabulary)
            if width < vocabulary:
                logp, tokens = logp.topk(width, dim=-1)
            else:
                tokens = None
            if self._logp is None:
                self._logp = _mapped(np.float32, (ends[-1], width))
                self._tokens = _mapped(np.int64, (ends[-1], width)) if tokens is not None else None
            rows = [row for place in places for row in range(*self._span[place])]
            self._logp[rows] = logp.float().cpu().numpy()
            if tokens is not None and self._tokens is not None:
                self._tokens[rows] = tokens.cpu().numpy()


def _mapped(dtype: type, shape: tuple[int, int]) -> np.memmap:
    """An array on disk, in a temporary file that has no name and is gone with the array."""
    with tempfile.TemporaryFile(prefix="expunge-reference-") as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)

"""The one teacher-forced pass all metrics read: what a model says, token by token, about each labelled sequence."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data import Encoded, by_length, collate
from expunge.data.batching import Side
from expunge.errors import DivergedError
from expunge.models import Loaded, answers

Progress = Callable[[str, int, int], None]  # (stage, batches done, batches in all)
CHUNK_BYTES = {"cpu": 4 << 20, "gpu": 32 << 20}  # two such buffers at a time; on a CPU they should fit its cache


@dataclass(frozen=True, eq=False)
class Record:
    """What a model says about the T labelled tokens of one sequence, given the true tokens before each.

    logprob: [T] log p of the label, in nats. correct: [T] whether the label is the arg-max. mean_logprob, std_logprob:
    [T] mean and standard deviation of log p(v) with v drawn from the model's own next-token distribution (what
    min-k++ standardises by). ended: the last label is the end-of-sequence token.

    The loss and the probability count the end-of-sequence token, as training does. Exact memorization, extraction
    strength, min-k and min-k++ look at the answer's own tokens only (`answer`), as OpenUnlearning does.
    """

    logprob: np.ndarray
    correct: np.ndarray
    mean_logprob: np.ndarray
    std_logprob: np.ndarray
    ended: bool

    @cached_property
    def nll_sum(self) -> float:
        """S = −log p(response | prompt), in nats."""
        return -float(self.logprob.sum())

    @property
    def nll_mean(self) -> float:
        """l = S / T, in nats per token."""
        return self.nll_sum / len(self.logprob)

    @property
    def answer(self) -> slice:
        """The labelled tokens without the end-of-sequence token (with it, where there is no other)."""
        return slice(0, max(1, len(self.logprob) - self.ended))


@dataclass(frozen=True, eq=False)
class Ragged:
    """One value per token of several sequences, end to end. values: [N]. lengths: [n], each at least 1."""

    values: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of_answers(cls, records: Sequence[Record], field: str) -> "Ragged":
        """A field of the records over the answers' own tokens (see `Record.answer`)."""
        parts = [getattr(record, field)[record.answer] for record in records]
        values = np.concatenate(parts) if parts else np.empty(0)
        return cls(values, np.array([len(part) for part in parts], dtype=np.int64))

    @cached_property
    def starts(self) -> np.ndarray:
        """[n] where each sequence begins."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def row(self) -> np.ndarray:
        """[N] the sequence each token belongs to."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def place(self) -> np.ndarray:
        """[N] each token's place within its sequence, from 0."""
        return np.arange(len(self.values)) - self.starts[self.row]

    def mean(self) -> np.ndarray:
        """[n] mean over each sequence's tokens."""
        return np.bincount(self.row, self.values, minlength=len(self.lengths)) / self.lengths


def score(
    loaded: Loaded,
    items: Sequence[Encoded],
    *,
    batch_size: int = 32,
    side: Side = "right",
    progress: Progress | None = None,
) -> list[Record]:
    """One forward pass over the distinct sequences of `items`; a Record for each item, in order.

    Batches are sorted by length; neither `batch_size` nor the padding `side` nor the order of `items` changes a
    record beyond the rounding of the model's own arithmetic. Raises DivergedError if the model answers with NaN.
    """
    distinct = {(item.ids, item.start): item for item in items}
    unique = list(distinct.values())
    batches = list(by_length(unique, batch_size))
    device = next(loaded.model.parameters()).device
    columns: list[Tensor] = []
    with evaluating(loaded.model), torch.inference_mode():
        for done, batch in enumerate(batches, start=1):
            padded = collate([unique[index] for index in batch], loaded.pad, side).to(device)
            columns.append(_statistics(answers(loaded.model, padded).logits, padded.labels))
            if progress is not None:
                progress("score", done, len(batches))
    order = [unique[index] for batch in batches for index in batch]
    records = _records(columns, order)
    return [records[item.ids, item.start] for item in items]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and every module back to its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _statistics(logits: Tensor, labels: Tensor) -> Tensor:
    """Token statistics from `logits` [N, V], which are overwritten: [4, N] in the order of Record's fields.

    With s = logit − max and z = Σ_v e^s: log p = s − log z, its mean under p is Σ e^s s / z − log z, and its
    variance Σ e^s (s − mean)² / z, centred first since E[s²] − E[s]² loses all digits on flat distributions.
    """
    size = CHUNK_BYTES["cpu" if logits.device.type == "cpu" else "gpu"]
    rows = max(1, size // (4 * logits.shape[1]))
    parts = []
    for some, label in zip(logits.split(rows), labels.split(rows), strict=True):  # [n, V], [n]
        top, best = some.max(-1, keepdim=True)
        some.sub_(top).clamp_min_(-1e4)  # a token masked with −inf has p = 0 and must not give 0 · inf
        chosen = some.gather(1, label.unsqueeze(1)).squeeze(1)  # [n]
        weight = some.exp()  # [n, V]
        z = weight.sum(-1)
        log_z = z.log()
        mean = (weight * some).sum(-1) / z
        some.sub_(mean.unsqueeze(1)).square_()
        variance = weight.mul_(some).sum(-1) / z
        parts.append(torch.stack([chosen - log_z, (best.squeeze(1) == label).float(), mean - log_z, variance.sqrt()]))
    return torch.cat(parts, dim=1)


def _records(columns: list[Tensor], order: Sequence[Encoded]) -> dict[tuple[tuple[int, ...], int], Record]:
    if not order:
        return {}
    table = torch.cat(columns, dim=1).cpu().numpy().astype(np.float64)  # [4, N], one transfer for the whole pass
    ends = np.cumsum([len(item.labels) for item in order])
    broken = np.flatnonzero(~np.isfinite(table).all(axis=0))
    if broken.size:
        number = len(np.unique(np.searchsorted(ends, broken, side="right")))
        raise DivergedError(
            f"The model answers {number} of {len(order)} sequences with NaN or infinite numbers: its weights are "
            "damaged, or its precision is too low. Evaluate it in float32, or start again from the original."
        )
    records = {}
    for item, part in zip(order, np.split(table, ends[:-1], axis=1), strict=True):
        logprob, correct, mean, std = part
        records[item.ids, item.start] = Record(logprob, correct.astype(bool), mean, std, item.ended)
    return records

"""The one teacher-forced pass all metrics read: what a model says, token by token, about each labelled sequence."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data import Batch, Encoded, collate, packs
from expunge.data.batching import Side
from expunge.data.tree import Tree, by_size, collate_trees, plant
from expunge.errors import DivergedError
from expunge.evaluation.lens import Lens
from expunge.evaluation.probes import Sharing, border, remembered, sharing, takes_trees
from expunge.models import Loaded, answers
from expunge.models.forward import inner, logits_at

Progress = Callable[[str, int, int], None]  # (stage, batches done, batches in all)
CHUNK_BYTES = {"cpu": 4 << 20, "gpu": 32 << 20}  # two such buffers at a time; on a CPU they should fit its cache
LOGIT_BYTES = {"cpu": 1 << 30, "gpu": 4 << 30}  # of one batch, were all of its tokens labelled, as in running text
MOST_NODES = 256  # of a tree, or twice the longest sequence: attention costs the square


@dataclass(frozen=True, eq=False)
class Record:
    """What a model says about the T labelled tokens of one sequence, given the true tokens before each.

    logprob: [T] log p of the label, in nats. correct: [T] whether the label is the arg-max. mean_logprob, std_logprob:
    [T] mean and standard deviation of log p(v) with v drawn from the model's own next-token distribution (what
    min-k++ standardises by). ended: how many of the last labels end the turn (the end-of-turn token). lens, lens_correct:
    [K, T] log p of the label, and whether it is the arg-max, read from each of K inner layers (K = 0 where none was read).

    The loss and the probability count the tokens that end the turn, as training does. Exact memorization, extraction
    strength, min-k and min-k++ look at the answer's own tokens only (`answer`), as OpenUnlearning does.
    """

    logprob: np.ndarray
    correct: np.ndarray
    mean_logprob: np.ndarray
    std_logprob: np.ndarray
    ended: int
    lens: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    lens_correct: np.ndarray = field(default_factory=lambda: np.empty((0, 0), dtype=bool))

    @cached_property
    def nll_sum(self) -> float:
        """S = −log p(response | prompt), in nats."""
        return -float(self.logprob.sum())

    @property
    def nll_mean(self) -> float:
        """l = S / T, in nats per token."""
        return self.nll_sum / len(self.logprob)

    def after(self, place: int) -> "Record":
        """What it says about the labelled tokens from `place` on."""
        parts = (self.logprob, self.correct, self.mean_logprob, self.std_logprob)
        inner = {"lens": self.lens[:, place:], "lens_correct": self.lens_correct[:, place:]}
        return Record(*(part[place:] for part in parts), ended=self.ended, **inner)

    @property
    def answer(self) -> slice:
        """The labelled tokens without those that end the turn (with the first, where there is no other)."""
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
    lens: Lens | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """One forward pass over the distinct sequences of `items`; a Record for each item, in order.

    Sequences that begin alike are merged into prefix trees (see expunge.data.tree), so that the tokens they share are
    computed once; where the model cannot attend along a tree, as with a sliding window, each is computed alone. A
    batch holds no more tokens than `batch_size` sequences of the longest length, or than LOGIT_BYTES allow. Batches are
    sorted by length; neither `batch_size` nor the padding `side` nor the order of `items` changes a record beyond the
    rounding of the model's own arithmetic. lens: read these inner layers too, of the sequences it names. Raises
    DivergedError if the model answers with NaN.
    """
    distinct = {(item.ids, item.start): item for item in items}
    unique = list(distinct.values())
    columns: list[Tensor] = []
    order: list[Encoded] = []
    with evaluating(loaded.model), torch.inference_mode():
        shared, alone = _batches(loaded, unique, batch_size)

        def add(found: Tensor, of: Sequence[Encoded]) -> None:
            columns.append(found)
            order.extend(of)
            if progress is not None:
                progress("score", len(columns), len(shared) + len(alone))

        for trees in shared:
            add(_of_trees(loaded, trees, side, lens), [item for tree in trees for item in tree.items])
        for batch in alone:
            add(_of_sequences(loaded, batch, side, lens), batch)
    records = _records(columns, order, lens)
    return [records[item.ids, item.start] for item in items]


def _batches(loaded: Loaded, items: Sequence[Encoded], batch_size: int) -> tuple[list[list[Tree]], list[list[Encoded]]]:
    """Batches of trees, and of the sequences that share nothing with others (all, if trees do not fit the model)."""
    longest = max(map(len, items), default=0)
    budget = max(longest, min(batch_size * longest, _most_tokens(loaded)))
    trees = plant(items, min(budget, max(MOST_NODES, 2 * longest)))
    shared = [tree for tree in trees if len(tree.items) > 1]
    alone = [tree.items[0] for tree in trees if len(tree.items) == 1]
    if shared and not _takes_trees(loaded, shared):
        shared, alone = [], list(items)
    batches = passes(loaded, alone, batch_size, budget)
    return list(by_size(shared, budget)), [[alone[index] for index in batch] for batch in batches]


def _takes_trees(loaded: Loaded, trees: Sequence[Tree]) -> bool:
    """Whether these trees are scored as their sequences are alone; probed once for trees of a size."""
    items = [item for tree in trees for item in tree.items]
    if crosses_border(loaded, items):
        return False
    key = ("trees", max(map(len, trees)), *_span(items))
    of_trees, of_sequences = _runs(loaded)
    probe = partial(takes_trees, trees, of_trees, of_sequences, rounding(loaded))
    return bool(remembered(loaded.model, key, probe))


def _runs(loaded: Loaded) -> tuple[Callable[[list[Tree]], Tensor], Callable[[list[Encoded]], Tensor]]:
    """What a probe calls: the statistics of trees, and of sequences."""
    return lambda trees: _of_trees(loaded, trees, "right"), lambda items: _of_sequences(loaded, items, "right")


def passes(loaded: Loaded, items: Sequence[Encoded], batch_size: int, room: float = math.inf) -> list[list[int]]:
    """Indices of sequences that share a pass: no more than `batch_size`, and only such as leave each other's numbers.

    That is any lengths for nearly every model, else equal lengths, else one sequence a pass, as a probe shows. room: most
    tokens of a pass with padding.
    """
    together: Sharing = "padded"
    if batch_size > 1 and len(items) > 1:
        breaks = crosses_border(loaded, items)
        key = ("passes", *_span(items), breaks)
        with torch.inference_mode():
            probe = partial(sharing, items, _runs(loaded)[1], rounding(loaded), pad_breaks=breaks)
            together = remembered(loaded.model, key, probe)
    return packs(list(map(len, items)), 1 if together == "single" else batch_size, room, even=together == "even")


def _span(items: Sequence[Encoded]) -> tuple[int, int]:
    return min(map(len, items)), max(map(len, items))


def crosses_border(loaded: Loaded, items: Sequence[Encoded]) -> bool:
    """Whether some sequence is so long that the model would read all sequences of its pass otherwise."""
    limit = border(inner(loaded.model).config)
    return limit is not None and max(map(len, items), default=0) > limit


def rounding(loaded: Loaded) -> float:
    """The rounding unit of the model's weights."""
    return torch.finfo(next(loaded.model.parameters()).dtype).eps


def _most_tokens(loaded: Loaded) -> int:
    """How many tokens' logits, in fp32, fit in LOGIT_BYTES."""
    return LOGIT_BYTES["cpu" if _device(loaded).type == "cpu" else "gpu"] // (4 * len(loaded.tokenizer))


def _of_sequences(loaded: Loaded, batch: Sequence[Encoded], side: Side, lens: Lens | None = None) -> Tensor:
    """Token statistics of each sequence's labels, end to end: [4 + 2K, N], K the number of inner layers read."""
    padded = collate(batch, loaded.pad, side).to(_device(loaded))
    source = torch.arange(len(padded.labels), device=padded.labels.device)
    run = partial(_logits, loaded, padded)
    return _with_lens(run, padded.predicts, padded.labels, source, batch, lens)


def _of_trees(loaded: Loaded, batch: Sequence[Tree], side: Side, lens: Lens | None = None) -> Tensor:
    """Token statistics of the labels of each tree's sequences, end to end: [4 + 2K, N]."""
    grove = collate_trees(batch, loaded.pad, side).to(_device(loaded))
    mask = grove.mask(next(loaded.model.parameters()).dtype)
    run = partial(
        logits_at, loaded.model, grove.predicts, input_ids=grove.ids, attention_mask=mask, position_ids=grove.depth
    )
    items = [item for tree in batch for item in tree.items]
    return _with_lens(run, grove.predicts, grove.labels, grove.source, items, lens)


def _logits(loaded: Loaded, padded: Batch) -> Tensor:
    return answers(loaded.model, padded).logits


def _with_lens(
    run: Callable[[], Tensor],
    where: Tensor,
    labels: Tensor,
    source: Tensor,
    items: Sequence[Encoded],
    lens: Lens | None,
) -> Tensor:
    """The statistics of the logits that `run` gives at the places `where`, and those of the inner layers below them."""
    if lens is None:
        return _statistics(run(), labels, source)
    wanted = lens.labels_of(items).to(labels.device)
    rows = source[wanted].unique()  # ascending
    with lens.watching(where, rows) as states:
        logits = run()
    return torch.cat([_statistics(logits, labels, source), lens.read(states, labels, source, wanted, rows)])


def _device(loaded: Loaded) -> torch.device:
    return next(loaded.model.parameters()).device


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


def _statistics(logits: Tensor, labels: Tensor, source: Tensor | None = None) -> Tensor:
    """Token statistics from `logits` [P, V], which are overwritten: [4, N] in the order of Record's fields.

    labels: [N]. source: [N] which of the P rows predicts each label; by default the row of the same number.

    With s = logit − max and z = Σ_v e^s: log p = s − log z, its mean under p is Σ e^s s / z − log z, and its
    variance Σ e^s (s − mean)² / z, centred first since E[s²] − E[s]² loses all digits on flat distributions.
    """
    source = torch.arange(len(labels), device=labels.device) if source is None else source
    chosen = logits[source, labels]  # [N]
    size = CHUNK_BYTES["cpu" if logits.device.type == "cpu" else "gpu"]
    rows = max(1, size // (4 * logits.shape[1]))
    parts, best = [], []
    for some in logits.split(rows):  # [n, V]
        top, likeliest = some.max(-1, keepdim=True)
        some.sub_(top).clamp_min_(-1e4)  # a token masked with −inf has p = 0 and must not give 0 · inf
        weight = some.exp()  # [n, V]
        z = weight.sum(-1)
        log_z = z.log()
        mean = (weight * some).sum(-1) / z
        some.sub_(mean.unsqueeze(1)).square_()
        variance = weight.mul_(some).sum(-1) / z
        parts.append(torch.stack([top.squeeze(1), log_z, mean - log_z, variance.sqrt()]))
        best.append(likeliest.squeeze(1))
    top, log_z, mean, std = torch.cat(parts, dim=1)[:, source]  # [N] each
    correct = torch.cat(best)[source] == labels
    return torch.stack([(chosen - top).clamp_min(-1e4) - log_z, correct.float(), mean, std])


def _records(
    columns: list[Tensor], order: Sequence[Encoded], lens: Lens | None
) -> dict[tuple[tuple[int, ...], int], Record]:
    if not order:
        return {}
    table = torch.cat(columns, dim=1).cpu().numpy().astype(np.float64)  # [4 + 2K, N], one transfer for the whole pass
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
        logprob, correct, mean, std = part[:4]
        inner = (part[4::2], part[5::2].astype(bool)) if lens and lens.reads(item) else ()
        records[item.ids, item.start] = Record(logprob, correct.astype(bool), mean, std, item.ended, *inner)
    return records

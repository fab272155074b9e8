"""Batches: padding that never changes a result, and an order that wastes little of it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expunge.data.encoding import Encoded

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Batch:
    """Padded token ids and where their labelled tokens stand.

    ids: [B, T]. mask: [B, T] true on real tokens, or None where padding is on the right only: a causal model's real
    tokens never see it. predicts: [B, T] true at each position whose *next* token is labelled. labels: [N], the
    labelled tokens row by row. row: [N], the row each belongs to.
    """

    ids: Tensor
    mask: Tensor | None
    predicts: Tensor
    labels: Tensor
    row: Tensor

    @property
    def size(self) -> int:
        return self.ids.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        mask = None if self.mask is None else self.mask.to(device)
        return Batch(self.ids.to(device), mask, self.predicts.to(device), self.labels.to(device), self.row.to(device))


def collate(items: Sequence[Encoded], pad: int = 0, side: Side = "right") -> Batch:
    """Pad encoded examples to one length. The pad token's identity is irrelevant: it is never read nor labelled."""
    length = max(len(item) for item in items)
    ids = torch.full((len(items), length), pad, dtype=torch.long)
    mask = torch.zeros(len(items), length, dtype=torch.bool)
    predicts = torch.zeros(len(items), length, dtype=torch.bool)
    for index, item in enumerate(items):
        first = length - len(item) if side == "left" else 0
        ids[index, first : first + len(item)] = torch.tensor(item.ids)
        mask[index, first : first + len(item)] = True
        predicts[index, first + item.start - 1 : first + len(item) - 1] = True
    labels = torch.tensor([token for item in items for token in item.labels])
    row = torch.repeat_interleave(torch.arange(len(items)), torch.tensor([len(item.labels) for item in items]))
    return Batch(ids, mask if side == "left" else None, predicts, labels, row)


def packs(lengths: Sequence[int], batch_size: int, room: float = math.inf, *, even: bool = False) -> list[list[int]]:
    """Indices of examples of these lengths in passes of like length, the longest first.

    A pass holds at most `batch_size` examples and, padded to its longest, at most `room` tokens; an example that is
    longer than `room` has a pass to itself. even: a pass holds examples of one length only. Of examples of equal length
    the earlier comes first.
    """
    passes: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        last = passes[-1] if passes else None
        full = last is None or len(last) == batch_size or (len(last) + 1) * longest > room
        if last is None or full or (even and lengths[index] != longest):
            passes.append([index])
            longest = lengths[index]
        else:
            last.append(index)
    return passes


def by_length(items: Sequence[Encoded] | Sequence[list[int]], batch_size: int) -> Iterator[list[int]]:
    """Indices of `items` in batches of like length, the longest first (so that a lack of memory shows at once)."""
    yield from packs([len(item) for item in items], batch_size)

"""Which examples each step sees: a pure function of the seed and the step, so that a resumed run sees the same."""

from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Stream:
    """An endless stream of indices below `count`: one random permutation after another, each used whole.

    So every index comes exactly once in an epoch of `count` draws, whatever the batch size. `favoured`: the first that
    many indices take half of every batch, or all their number where that is less (corrected examples, which would drown
    in a large retain set otherwise).
    """

    count: int
    seed: int
    favoured: int = 0

    def batch(self, step: int, size: int) -> list[int]:
        """The indices of step `step` with `size` a step; no index twice within a batch."""
        size = min(size, self.count)
        others = self.count - self.favoured
        few = max(min(self.favoured, size // 2), size - others)
        favoured = _slice(self.favoured, self.seed + 1, step, few)
        return favoured + [self.favoured + index for index in _slice(others, self.seed, step, size - few)]


def _slice(count: int, seed: int, step: int, size: int) -> list[int]:
    """Draws step·size … (step + 1)·size − 1 of the endless stream."""
    size = min(size, count)
    if not size:
        return []
    epoch, start = divmod(step * size, count)
    indices = _permutation(count, seed, epoch, size)[start : start + size]
    return [*indices, *_permutation(count, seed, epoch + 1, size)[: size - len(indices)]]


@lru_cache(maxsize=16)
def _permutation(count: int, seed: int, epoch: int, size: int) -> tuple[int, ...]:
    """The order of an epoch: the drawn one, changed only where a batch of `size` begins in the epoch before.

    That batch may hold no index twice, so the first indices that it still lacks move to the front. The order therefore
    follows from the orders before it, back to an epoch that begins with a batch.
    """
    first = epoch
    while first * count % size:
        first -= 1
    order = _drawn(count, seed, first)
    for number in range(first + 1, epoch + 1):
        begun = number * count % size  # draws that the epoch before gives to the batch across the border
        if begun:
            held, drawn = set(order[count - begun :]), _drawn(count, seed, number)
            rest = [index for index in drawn if index not in held][: size - begun]
            moved = set(rest)
            order = (*rest, *(index for index in drawn if index not in moved))
        else:
            order = _drawn(count, seed, number)
    return order


@lru_cache(maxsize=16)
def _drawn(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    return tuple(torch.randperm(count, generator=generator).tolist())

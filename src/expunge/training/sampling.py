"""Which examples each step sees: a pure function of the seed and the step, so that a resumed run sees the same."""

from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Stream:
    """An endless stream of indices below `count`: one random permutation after another.

    `favoured`: the first that many indices take half of every batch, or all their number where that is less (corrected
    examples, which would drown in a large retain set otherwise).
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
    """Places step·size … (step + 1)·size of the endless stream; a batch across two permutations repeats none."""
    size = min(size, count)
    if not size:
        return []
    epoch, place = divmod(step * size, count)
    chosen = list(_permutation(count, seed, epoch)[place : place + size])
    taken = set(chosen)
    following = (index for index in _permutation(count, seed, epoch + 1) if index not in taken)
    while len(chosen) < size:
        chosen.append(next(following))
    return chosen


@lru_cache(maxsize=16)
def _permutation(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    return tuple(torch.randperm(count, generator=generator).tolist())

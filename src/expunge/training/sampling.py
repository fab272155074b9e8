"""Which examples each step sees: a pure function of the seed and the step, so that a resumed run sees the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Stream:
    """An endless stream of indices below `count`: one random permutation after another.

    `favoured`: the first that many indices take up to half of every batch (corrected examples, which would drown in a
    large retain set otherwise).
    """

    count: int
    seed: int
    favoured: int = 0

    def batch(self, step: int, size: int) -> list[int]:
        """The indices of step `step` with `size` a step; no index twice within a batch."""
        size = min(size, self.count)
        few = min(self.favoured, size // 2) if self.favoured < self.count else 0
        return [
            *_slice(self.favoured, self.seed + 1, step, few),
            *(index + self.favoured * bool(few) for index in self._others(step, size - few, bool(few))),
        ]

    def _others(self, step: int, size: int, without_favoured: bool) -> Sequence[int]:
        return _slice(self.count - self.favoured * without_favoured, self.seed, step, size)


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

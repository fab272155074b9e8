"""The k largest of any number of scores: exact, streamed, without a sort."""

from collections.abc import Callable, Iterator, Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor

from expunge.errors import ConfigurationError, DivergedError

Scores = Callable[[str], Tensor]

CHUNK = 1 << 18  # scores looked at together: they and what is made of them stay in the cache; a multiple of 8
HALF = 1 << 16
INFINITE = 0x7F80  # the upper half of +inf; the NaNs and everything with a sign lie above it


def top_k(scores: Scores, shapes: Mapping[str, tuple[int, ...]], k: int) -> dict[str, Tensor]:
    """The packed bits (`models.mask.pack`) of the k largest scores over all tensors named in `shapes`.

    The same as a stable sort of all scores, largest first: of equal scores at the border the first are kept, in the
    order of `shapes` and then of the entries. `scores(name)`: fp32, ≥ 0, in the tensor's shape; it is asked for each
    tensor three times, and one tensor's scores are held at a time.

    Floats ≥ 0 order as their 32 bits do as an integer. So one pass counts the upper 16 bits, a second the lower 16 bits
    of the scores whose upper half is the border's, which gives the k-th largest score; the third writes the mask.

    Raises DivergedError for a score that is NaN or infinite, ConfigurationError for a negative one or a wrong shape.
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    masks = {name: np.zeros(-(-size // 8), dtype=np.uint8) for name, size in sizes.items()}
    if k >= 1:
        least, ties = _border(scores, sizes, min(k, sum(sizes.values())))
        for name, size in sizes.items():
            for start, chunk in _chunks(scores, name, size):
                kept, ties = _kept(chunk, least, ties)
                packed = np.packbits(kept, bitorder="little")
                masks[name][start // 8 : start // 8 + len(packed)] = packed
    return {name: torch.from_numpy(mask) for name, mask in masks.items()}


def top_k_rows(scores: Tensor, k: int) -> Tensor:
    """The k largest scores of each row [N, M], ties to the first, as booleans. `scores` as in `top_k`."""
    scores = scores.detach().cpu()
    place = scores.shape[1] - k
    least = torch.from_numpy(np.partition(scores.numpy(), place, axis=1)[:, place, None])  # [N, 1]
    kept = scores >= least
    for row in (kept.sum(1) > k).nonzero().flatten().tolist():  # equal scores at the border
        ties = scores[row] == least[row]
        room = k - int((scores[row] > least[row]).sum())
        kept[row] &= ~ties | (ties.cumsum(0) <= room)
    return kept


def _border(scores: Scores, sizes: Mapping[str, int], k: int) -> tuple[np.uint32, int]:
    """The bits of the k-th largest score, and how many of the scores equal to it are among the k."""
    upper = np.zeros(HALF, dtype=np.int64)
    for name, size in sizes.items():
        for _, chunk in _chunks(scores, name, size):
            upper += np.bincount(chunk >> 16, minlength=HALF)
        if upper[INFINITE:].any():
            raise _unfit(name, scores(name))
    border, above = _fall(upper, k)
    lower = np.zeros(HALF, dtype=np.int64)
    for name, size in sizes.items():
        for _, chunk in _chunks(scores, name, size):
            lower += np.bincount(chunk[chunk >> 16 == border] & (HALF - 1), minlength=HALF)
    rest, more = _fall(lower, k - above)
    return np.uint32(border * HALF + rest), k - above - more


def _fall(counts: np.ndarray, k: int) -> tuple[int, int]:
    """The bin the k-th largest value falls into, and how many values lie in the bins above it."""
    from_top = counts[::-1].cumsum()
    place = int(from_top.searchsorted(k))
    found = len(counts) - 1 - place
    return found, int(from_top[place] - counts[found])


def _kept(chunk: np.ndarray, least: np.uint32, ties: int) -> tuple[np.ndarray, int]:
    """Which scores of a chunk are kept, `ties` of those equal to the least at most, and how many ties are then left."""
    kept = chunk > least
    if ties:
        equal = np.flatnonzero(chunk == least)[:ties]
        kept[equal] = True
        ties -= len(equal)
    return kept, ties


def _chunks(scores: Scores, name: str, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Pieces of a tensor's scores, each as its first index and its bits: uint32, [≤ CHUNK]."""
    values = scores(name)
    if values.numel() != size:
        raise ConfigurationError(f"{name} has {size} entries and got {values.numel()} scores.")
    bits = values.detach().float().cpu().reshape(-1).numpy().view(np.uint32)
    for start in range(0, size, CHUNK):
        yield start, bits[start : start + CHUNK]


def _unfit(name: str, values: Tensor) -> Exception:
    if bool(values.isfinite().all()):
        return ConfigurationError(f"The scores of {name} have a sign; what is ranked is their size: take their abs().")
    return DivergedError(
        f"The scores of {name} are not finite: the weights hold NaN or infinite values, or a setting such as gamma is "
        "so large or small that a score overflows fp32."
    )

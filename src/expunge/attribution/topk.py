"""The k largest of any number of scores: exact, streamed, without a sort."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from expunge.models.mask import pack

Scores = Callable[[str], Tensor]


def top_k(scores: Scores, shapes: Mapping[str, tuple[int, ...]], k: int) -> dict[str, Tensor]:
    """The packed bits (`models.mask.pack`) of the k largest scores over all named tensors."""
    flat = torch.cat([scores(name).reshape(-1) for name in shapes])
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[flat.argsort(descending=True, stable=True)[:k]] = True
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    return {name: pack(part) for name, part in zip(shapes, kept.split(sizes), strict=True)}

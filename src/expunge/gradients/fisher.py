"""The first two moments of per-example gradients: their mean, and the exact diagonal of the empirical Fisher."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.data import Encoded, collate
from expunge.errors import ConfigurationError
from expunge.gradients.mean import Progress, Sums, finite, watched
from expunge.models import answers

Way = Literal["auto", "loop", "vmap", "layers"]


@dataclass(frozen=True)
class Moments:
    """Over `count` examples: `mean` ḡ = (1/N) Σ g_i and `square` (1/N) Σ g_i ⊙ g_i, fp32 tensors per parameter name."""

    mean: dict[str, Tensor]
    square: dict[str, Tensor]
    count: int


def moments(
    model: nn.Module,
    items: Sequence[Encoded],
    *,
    pad: int,
    batch_size: int = 8,
    names: Collection[str] | None = None,
    way: Way = "auto",
    progress: Progress | None = None,
) -> Moments:
    """g_i = ∇l_i with l_i the mean NLL per answer token of example i."""
    known = dict(model.named_parameters())
    chosen = {name: p for name, p in known.items() if (p.requires_grad if names is None else name in names)}
    if not items:
        raise ConfigurationError("There is no example to take a gradient of: the set is empty.")
    first, second = Sums(chosen), Sums(chosen)
    others = [param for name, param in known.items() if name not in chosen]
    training = model.training
    model.eval()
    try:
        with watched(chosen.values(), others):
            for done, item in enumerate(items, start=1):
                batch = collate([item], pad).to(next(iter(known.values())).device)
                loss = answers(model, batch).mean_nll.sum()
                gradients = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
                named = {n: g.float() for n, g in zip(chosen, gradients, strict=True) if g is not None}
                first.add(named)
                second.add({name: gradient.square() for name, gradient in named.items()})
                if progress:
                    progress(done)
    finally:
        model.train(training)
    count = len(items)
    return Moments(finite(first.result(count)), second.result(count), count)

"""The mean gradient over a set of examples, whatever the passes it is computed in."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from expunge.errors import ConfigurationError, DivergedError

Losses = Callable[[Sequence[int]], Tensor]
"""Indices of B examples → their losses [B], with a graph to the parameters."""

Progress = Callable[[int], None]
"""Told after each pass how many examples are done."""

CHAIN = 64  # additions in a row before their sum joins the total: the error of fp32 sums grows with the longest chain


def mean_gradient(
    params: Mapping[str, nn.Parameter],
    losses: Losses,
    passes: Iterable[Sequence[int]],
    *,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """ḡ = (1/N) Σ_i ∇l_i over the N examples of all passes: one fp32 tensor of the parameter's shape per name.

    Any way of cutting the same examples into passes gives the same ḡ within 1e-6 of each tensor's norm, for fp32
    weights and losses that do not depend on an example's neighbours; autograd rounds a pass's gradient of bf16 weights
    to bf16 before it is summed here in fp32. A parameter the losses do not reach gets zeros. `params` may be frozen;
    their `requires_grad` and `grad` are left as they were. The model runs as it is: call `model.eval()` first, or
    dropout makes the result random. Besides the graph of one pass, this takes the memory of the parameters in fp32
    twice (three times from 64 passes on).

    Raises DivergedError, naming the parameter, if a gradient is not finite; ConfigurationError if there is no example.
    """
    sums, count = Sums(params), 0
    with watched(params.values()):
        for indices in passes:
            total = losses(indices).sum()
            for name, gradient in zip(params, backward(total, list(params.values())), strict=True):
                if gradient is not None:
                    sums.at(name).add_(gradient)
            sums.added()
            count += len(indices)
            stop_if_diverged(total, sums)
            if progress:
                progress(count)
    if not count:
        raise ConfigurationError("There is no example to take a gradient of: the set is empty.")
    return finite(sums.over(count))


class Sums:
    """A sum of tensors per name, in fp32 and in two levels: of `chain` terms each, and of those sums.

    `chain` = None adds everything in one row, which is exact enough where all terms are of one sign.
    """

    def __init__(self, like: Mapping[str, Tensor], chain: int | None = CHAIN) -> None:
        self._like, self._chain, self._length = dict(like), chain, 0
        self._total = dict[str, Tensor]()
        self._recent = dict[str, Tensor]()

    def at(self, name: str) -> Tensor:
        """The tensor to add terms of this name to, in place."""
        if name not in self._recent:
            self._recent[name] = torch.zeros_like(self._like[name], dtype=torch.float32, requires_grad=False)
        return self._recent[name]

    def added(self, terms: int = 1) -> None:
        """Say that so many terms were added to each."""
        self._length += terms
        if self._chain is not None and self._length >= self._chain:
            self._flush()

    def over(self, count: int) -> dict[str, Tensor]:
        """The sums divided by `count`; zeros where nothing was added. Ends the summation."""
        self._flush()
        return {name: self._total.pop(name, self.at(name)).div_(count) for name in self._like}

    def _flush(self) -> None:
        self._length = 0
        for name in list(self._recent):
            if name in self._total:
                self._total[name] += self._recent[name]
                self._recent[name].zero_()
            else:
                self._total[name] = self._recent.pop(name)


def backward(total: Tensor, tensors: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """d total / d tensor for each, None where `total` does not depend on it; nothing is stored in any `grad`."""
    if not total.requires_grad:
        return [None] * len(tensors)
    return torch.autograd.grad(total, tensors, allow_unused=True)


@contextmanager
def watched(params: Iterable[nn.Parameter], others: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Let gradients be taken with respect to `params` and not to `others`; afterwards all are as they were."""
    flags = [(param, True, param.requires_grad) for param in params]
    flags += [(param, False, param.requires_grad) for param in others]
    try:
        for param, during, _ in flags:
            param.requires_grad_(during)
        with torch.enable_grad():
            yield
    finally:
        for param, _, before in flags:
            param.requires_grad_(before)


def stop_if_diverged(total: Tensor, *sums: Sums) -> None:
    """Raise DivergedError as soon as a pass's loss is not finite, rather than after the last pass."""
    if not torch.isfinite(total):
        for each in sums:
            finite(each.over(1))
        raise DivergedError(f"The loss of an example is {total.item()}. Check the model, or load it in fp32.")


def finite(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """`gradients` themselves. Raises DivergedError, naming the parameter, if one is NaN or infinite."""
    for name, gradient in gradients.items():
        if not torch.isfinite(gradient).all():
            raise DivergedError(
                f"The gradient of {name} is not finite: a loss overflowed, or the weights hold NaN or infinite values. "
                "Check the model, or load it in fp32."
            )
    return gradients

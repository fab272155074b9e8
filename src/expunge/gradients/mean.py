"""The mean gradient over a set of examples, whatever the passes it is computed in."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from expunge.errors import ConfigurationError, DivergedError

Losses = Callable[[Sequence[int]], Tensor]
"""Indices of B examples → their losses [B], with a graph to the parameters."""

Progress = Callable[[int], None]
"""Told how many examples are done, after each pass."""

FLUSH = 64  # passes summed before their sum joins the total: fp32 error grows with the longest chain of additions


def mean_gradient(
    params: Mapping[str, nn.Parameter],
    losses: Losses,
    passes: Iterable[Sequence[int]],
    *,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """ḡ = (1/N) Σ_i ∇l_i over the N examples of all passes: one fp32 tensor of the parameter's shape per name.

    Any way of cutting the same examples into passes gives the same ḡ within 1e-6 of each tensor's norm, for fp32
    weights and losses that do not depend on an example's neighbours; of weights in bf16 the gradient of a pass is
    rounded to bf16 by autograd before it is summed here in fp32. A parameter the loss does not reach gets zeros.
    `params` may be frozen; their `requires_grad` and `grad` are left as they were. The model is run as it is: call
    `model.eval()` first, or dropout makes the result random. Besides the graph of one pass, this takes twice the
    parameters' memory in fp32 and one gradient.

    Raises DivergedError, naming the parameter, if its gradient is not finite, and ConfigurationError without examples.
    """
    sums = Sums(params)
    count = 0
    with watched(params.values()):
        for indices in passes:
            total = losses(indices).sum()
            gradients = torch.autograd.grad(total, list(params.values()), allow_unused=True)
            sums.add(dict(zip(params, gradients, strict=True)))
            count += len(indices)
            if progress:
                progress(count)
    if not count:
        raise ConfigurationError("There is no example to take a gradient of: the set is empty.")
    return finite(sums.result(count))


class Sums:
    """Sums of many tensors per name in fp32, in two levels: the terms of FLUSH passes, and those sums."""

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self.total = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in like.items()}
        self.recent = dict[str, Tensor]()
        self.passes = 0

    def add(self, terms: Mapping[str, Tensor | None]) -> None:
        """Add the terms of one pass, at most one per name; None adds nothing."""
        for name, term in terms.items():
            if term is None:
                continue
            if name in self.recent:
                self.recent[name] += term
            else:
                self.recent[name] = term.to(torch.float32, copy=True)
        self.end_pass()

    def end_pass(self) -> None:
        self.passes += 1
        if self.passes % FLUSH == 0:
            self._flush()

    def result(self, count: int) -> dict[str, Tensor]:
        """The sums divided by `count`."""
        self._flush()
        return {name: total.div_(count) for name, total in self.total.items()}

    def _flush(self) -> None:
        for name, recent in self.recent.items():
            self.total[name] += recent
        self.recent.clear()


@contextmanager
def watched(params: Iterable[nn.Parameter], others: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Let gradients be taken with respect to `params` and not to `others`; afterwards all are as they were."""
    wanted = [(param, True) for param in params] + [(param, False) for param in others]
    before = [param.requires_grad for param, _ in wanted]
    try:
        with torch.enable_grad():
            for param, flag in wanted:
                param.requires_grad_(flag)
            yield
    finally:
        for (param, _), flag in zip(wanted, before, strict=True):
            param.requires_grad_(flag)


def finite(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """`gradients` themselves. Raises DivergedError, naming the parameter, if one is NaN or infinite."""
    for name, gradient in gradients.items():
        if not torch.isfinite(gradient).all():
            raise DivergedError(
                f"The gradient of {name} is not finite: a loss overflowed or the weights hold NaN or infinite values. "
                "Check the model with `expunge evaluate`, or load it in fp32."
            )
    return gradients

"""The first two moments of per-example gradients: their mean, and the exact diagonal of the empirical Fisher."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.data import Batch, Encoded, collate, packs
from expunge.errors import ConfigurationError
from expunge.gradients.layers import Layers, UnsupportedError
from expunge.gradients.mean import Progress, Sums, backward, finite, stop_if_diverged, watched
from expunge.models import answers, output_layer

Way = Literal["auto", "loop", "vmap", "layers"]
Add = Callable[[Batch, Sequence[int]], Tensor]


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
    """ḡ = (1/N) Σ g_i and the empirical Fisher's diagonal F = (1/N) Σ g_i ⊙ g_i, with g_i = ∇l_i.

    l_i is the mean negative log-likelihood per answer token of example i, in nats. The gradients of a parameter that is
    used twice (tied embeddings) are summed within an example before they are squared. `names`: the parameters wanted, as
    in `model.named_parameters()`; those that require grad by default. One the loss does not reach gets zeros. Evaluation
    mode, whatever the model's; its mode, `requires_grad` and `grad` are left as they were. fp32 sums whatever the
    weights' dtype; padding, `batch_size` and order change the mean by at most 1e-6, the squares by 1e-5 of their norm.

    `way`: how the examples are kept apart, all exact for fp32 weights.

    - "layers": one batched backward pass in which each layer makes its per-example gradients in place of the batch's
      (see `gradients.layers`): Linear and Conv1D layers (LoRA's too), embeddings, LayerNorm and RMSNorm. It makes every
      gradient in fp32 even where the weights are bf16; the other ways take autograd's, rounded to bf16.
    - "loop": one backward pass per example, for any model; the least memory.
    - "vmap": torch.func over the batch; B copies of all gradients, and logits at every position from the first label on.

    "auto" is "layers", or "loop" for a model with parameters used in ways that "layers" does not know. Measured with
    `benchmarks/fisher.py` on one CPU thread (1 M and 7.9 M parameters, 8 × 128 tokens): "layers" takes 1.13–1.23 times
    the CPU time and 1.2 times the memory of a plain forward and backward pass, "vmap" 1.4–1.6 and 3.3–3.6, "loop"
    1.3–1.6 and 0.4–0.5. Nothing was measured on a GPU; "layers" does the fewest operations there too.

    Raises ConfigurationError if there is no example, a name is unknown, or way="layers" does not know a module (named);
    DivergedError, naming the parameter, if a gradient is not finite.
    """
    if not items:
        raise ConfigurationError("There is no example to take a gradient of: the set is empty.")
    if batch_size < 1:
        raise ConfigurationError(f"batch_size must be at least 1, got {batch_size}.")
    if way not in ("auto", *WAYS):
        raise ConfigurationError(f"way must be one of auto, {', '.join(WAYS)}; got {way!r}.")
    params = _chosen(model, names)
    wanted = {id(param) for param in params.values()}
    others = [param for param in model.parameters() if id(param) not in wanted]
    with watched(params.values(), others), _evaluating(model):
        try:
            first, second = _sums("layers" if way == "auto" else way, model, params, items, pad, batch_size, progress)
        except UnsupportedError:
            if way != "auto":
                raise
            first, second = _sums("loop", model, params, items, pad, batch_size, progress)
    count = len(items)
    return Moments(finite(first.over(count)), finite(second.over(count)), count)


def _chosen(model: nn.Module, names: Collection[str] | None) -> dict[str, nn.Parameter]:
    known = dict(model.named_parameters())
    if names is None:
        names = [name for name, param in known.items() if param.requires_grad]
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigurationError(f"The model has no parameter {name!r}.{hint}")
    if not names:
        raise ConfigurationError("The model has no trainable parameters: every one is frozen. Name those you want.")
    return {name: param for name, param in known.items() if name in set(names)}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; each module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _sums(
    way: str,
    model: nn.Module,
    params: Mapping[str, nn.Parameter],
    items: Sequence[Encoded],
    pad: int,
    batch_size: int,
    progress: Progress | None,
) -> tuple[Sums, Sums]:
    """Σ g_i and Σ g_i ⊙ g_i."""
    first, second = Sums(params), Sums(params, chain=None)
    add, done = WAYS[way](model, params, first, second), 0
    device = next(iter(params.values())).device
    for part in packs([len(item) for item in items], batch_size):
        rows = [items[index] for index in part]
        total = add(collate(rows, pad).to(device), [len(row) for row in rows])
        stop_if_diverged(total, first)
        done += len(part)
        if progress:
            progress(done)
    return first, second


# One function per way: (model, params, first, second) → what adds one pass's gradients and squares to the two sums. It
# takes the padded batch and its examples' lengths, and gives back the sum of their losses.


def _layers(model: nn.Module, params: Mapping[str, nn.Parameter], first: Sums, second: Sums) -> Add:
    return Layers(model, params, first, second).add


def _loop(model: nn.Module, params: Mapping[str, nn.Parameter], first: Sums, second: Sums) -> Add:
    leaves = list(params.values())

    def add(batch: Batch, lengths: Sequence[int]) -> Tensor:
        losses = []
        for row, length in enumerate(lengths):
            chosen = batch.row == row
            alone = torch.zeros_like(batch.row[chosen])
            one = Batch(
                batch.ids[row : row + 1, :length],
                None,
                batch.predicts[row : row + 1, :length],
                batch.labels[chosen],
                alone,
            )
            losses.append(answers(model, one).mean_nll.sum())
            for name, gradient in zip(params, backward(losses[-1], leaves), strict=True):
                if gradient is not None:
                    gradient = gradient.float()
                    first.at(name).add_(gradient)
                    second.at(name).addcmul_(gradient, gradient)
            first.added()
        return torch.stack(losses).detach().sum()

    return add


def _vmap(model: nn.Module, params: Mapping[str, nn.Parameter], first: Sums, second: Sums) -> Add:
    values = {name: param.detach() for name, param in params.items()}

    def loss(values: dict[str, Tensor], ids: Tensor, predicts: Tensor, labels: Tensor) -> Tensor:
        logits = functional_call(model, values, (), {"input_ids": ids[None], "use_cache": False}).logits[0].float()
        picked = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]  # [T']
        return -torch.where(predicts, picked, 0).sum() / predicts.sum()

    def add(batch: Batch, lengths: Sequence[int]) -> Tensor:
        start = int(batch.predicts.any(0).nonzero()[0])  # no example's answer begins before
        predicts = batch.predicts[:, start:]
        labels = torch.zeros_like(batch.ids[:, start:])
        labels[predicts] = batch.labels
        hook = output_layer(model).register_forward_pre_hook(lambda _, args: (args[0][:, start:], *args[1:]))
        try:
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be vmapped
                each = vmap(grad_and_value(loss), (None, 0, 0, 0))(values, batch.ids, predicts, labels)
        finally:
            hook.remove()
        gradients, losses = each
        for name, gradient in gradients.items():  # [B, *shape]
            gradient = gradient.float()
            first.at(name).add_(gradient.sum(0))
            second.at(name).add_(gradient.square().sum(0))
        first.added(batch.size)
        return losses.sum()

    return add


WAYS: dict[str, Callable[[nn.Module, Mapping[str, nn.Parameter], Sums, Sums], Add]] = {
    "layers": _layers,
    "loop": _loop,
    "vmap": _vmap,
}

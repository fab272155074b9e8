"""The norm of every example's gradient from one batched backward pass, without making a single gradient of a matrix.

Of a linear layer with inputs a [T, q] and output gradients δ [T, p], an example's gradient is G = δᵀ a, and
‖G‖² = Σ_st (δ_s·δ_t)(a_s·a_t): two products of T rows instead of one of p × q (Goodfellow 2015, arXiv 1510.01799, for
one row; the sum over pairs of tokens for sequences). Where a sequence is longer than the matrix is wide, G itself is
cheaper and is made. An embedding tied to the output layer adds 2 ⟨G_embedding, G_output⟩, of which only the rows of the
example's own tokens are not 0.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from expunge.data import Batch, Encoded, collate, packs
from expunge.errors import ConfigurationError
from expunge.gradients.layers import Layers, Spans, UnsupportedError
from expunge.gradients.mean import Progress, Sums, backward, stop_if_diverged, watched
from expunge.models import answers


def gradient_norms(
    model: nn.Module,
    items: Sequence[Encoded],
    *,
    pad: int,
    batch_size: int = 8,
    per_tensor: bool = False,
    progress: Progress | None = None,
) -> Tensor:
    """‖∇l_i‖₂ of each example, l_i its mean negative log-likelihood per label in nats: [n], fp64.

    Over all parameters that require grad: a whole model's, or an adapter's own. per_tensor: the mean of the norms of the
    parameters' gradients instead, as OpenUnlearning's attack takes it. Evaluation mode is the caller's business; nothing
    is left in any `grad`. Kinds of layers that `gradients.layers` does not know are done one example at a time.

    Raises ConfigurationError without parameters to take gradients of, DivergedError where a loss is not finite.
    """
    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    if not params:
        raise ConfigurationError("The model has no trainable parameters: every one is frozen. Unfreeze those you want.")
    with watched(params.values()):
        try:
            squares = _by_layers(model, params, items, pad, batch_size, progress)
        except UnsupportedError:
            squares = _by_loop(model, params, items, pad, progress)
    norms = squares.clamp_min(0).sqrt()  # [n, P]
    return norms.mean(1) if per_tensor else norms.square().sum(1).sqrt()


def _by_layers(
    model: nn.Module,
    params: Mapping[str, nn.Parameter],
    items: Sequence[Encoded],
    pad: int,
    batch_size: int,
    progress: Progress | None,
) -> Tensor:
    """Squared norms by example and parameter: [n, P]."""
    norms = _Norms(model, params)
    found = torch.zeros(len(items), len(params), dtype=torch.float64)
    for batch in packs(list(map(len, items)), batch_size):
        some = [items[index] for index in batch]
        padded = collate(some, pad).to(next(model.parameters()).device)
        stop_if_diverged(norms.add(padded, list(map(len, some))))
        found[batch] = norms.squares.cpu()
        if progress is not None:
            progress(len(batch))
    return found


def _by_loop(
    model: nn.Module,
    params: Mapping[str, nn.Parameter],
    items: Sequence[Encoded],
    pad: int,
    progress: Progress | None,
) -> Tensor:
    found = torch.zeros(len(items), len(params), dtype=torch.float64)
    for index, item in enumerate(items):
        loss = answers(model, collate([item], pad).to(next(model.parameters()).device)).mean_nll.sum()
        stop_if_diverged(loss)
        for place, gradient in enumerate(backward(loss, list(params.values()))):
            found[index, place] = 0.0 if gradient is None else gradient.double().square().sum().cpu()
        if progress is not None:
            progress(1)
    return found


class _Norms(Layers):
    """As Layers, but of each example's gradient only the squared norm is kept: `squares` [B, P] after each pass."""

    def __init__(self, model: nn.Module, params: Mapping[str, nn.Parameter]) -> None:
        super().__init__(model, params, Sums({}), Sums({}))
        self.column = {name: place for place, name in enumerate(params)}

    def _begin(self, batch: Batch, lengths: Sequence[int]) -> None:
        if not hasattr(self, "batch") or self.batch is not batch:  # Layers begins a pass before and after it
            self.squares = torch.zeros(batch.size, len(self.column), dtype=torch.float64, device=batch.ids.device)
        super()._begin(batch, lengths)

    def add_outer(self, name: str, left: Tensor, right: Tensor, spans: Spans) -> None:
        column = self.squares[:, self.column[name]]
        for example, (start, stop) in enumerate(spans):
            a, b = left[start:stop].float(), right[start:stop].float()
            column[example] += _squared_norm(a, b)
            if name in self.tokens:
                tokens, _ = self.tokens[name][example]
                self.held.setdefault(name, []).append(a[:, tokens].t() @ b)

    def _embedded(self, delta: Tensor, name: str, padding: int | None) -> None:
        for row, (tokens, places) in enumerate(self.tokens[name]):
            own = torch.zeros(len(tokens), delta.shape[-1], device=delta.device)
            own.index_add_(0, places, delta[row, : len(places)].float())
            if padding is not None:
                own[tokens == padding] = 0  # autograd gives that token no gradient either
            total = own.double().square().sum()
            if name in self.held:
                total += 2 * (own.double() * self.held[name][row].double()).sum()
            self.squares[row, self.column[name]] += total

    def _add_rows(self, name: str, rows: Tensor) -> None:
        self.squares[:, self.column[name]] += rows.double().square().sum(1)


def _squared_norm(left: Tensor, right: Tensor) -> Tensor:
    """‖leftᵀ right‖² of left [T, p] and right [T, q], by whichever way takes fewer products."""
    rows, p, q = len(left), left.shape[1], right.shape[1]
    if rows * (p + q) < p * q:
        return ((left @ left.t()).double() * (right @ right.t()).double()).sum()
    return (left.t() @ right).double().square().sum()

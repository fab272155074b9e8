"""Wanda: weights by their size times that of what they are multiplied with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.attribution.contract import Attribution, Scores, View, share
from expunge.attribution.topk import top_k_rows
from expunge.data import Encoded, collate
from expunge.errors import DivergedError
from expunge.models import answers
from expunge.models.mask import pack


@dataclass(frozen=True, kw_only=True)
class Wanda(Attribution):
    """|W_ij| · ‖X_j‖₂ with X_j the j-th input of a linear layer over all tokens of the forget set (arXiv 2306.11695).

    Weights compete within each output row i, as in the paper (`scope="row"`); the other scopes are options. Only linear
    layers have such a score: embeddings that are not tied to the output layer, norms, biases and a mixture's experts
    stay frozen, and a run notes the last.
    """

    scope: Literal["row", "global", "layer", "tensor"] = "row"  # type: ignore[assignment]

    def scores(self, view: View) -> Scores:
        norms, layers = input_norms(view), linear_layers(view)

        def score(name: str) -> Tensor:
            norm = norms[name] if isinstance(layers[name], nn.Linear) else norms[name][:, None]
            return view.params[name].detach().float().abs() * norm

        return score

    def eligible(self, view: View) -> dict[str, tuple[int, ...]]:
        linear = linear_layers(view)
        return {name: shape for name, shape in super().eligible(view).items() if name in linear}

    def select(self, view: View, eligible: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        if self.scope != "row":
            return super().select(view, eligible)
        scores, layers = self.scores(view), linear_layers(view)
        return {name: pack(self._rows(name, scores(name), layers[name])) for name in eligible}

    def _rows(self, name: str, scores: Tensor, layer: nn.Module) -> Tensor:
        if not bool(scores.isfinite().all()):
            raise DivergedError(f"The scores of {name} are not finite: the model holds NaN or infinite values.")
        if isinstance(layer, nn.Linear):
            return top_k_rows(scores, share(self.ratio, scores.shape[1]))
        return top_k_rows(scores.T, share(self.ratio, scores.shape[0])).T


def linear_layers(view: View) -> dict[str, nn.Linear | Conv1D]:
    """The linear layer of each trainable weight that belongs to one: nn.Linear [out, in], or GPT-2's Conv1D [in, out]."""
    names = {param: name for name, param in view.params.items()}
    found: dict[str, nn.Linear | Conv1D] = {}
    for module in view.loaded.model.modules():
        if isinstance(module, nn.Linear | Conv1D) and module.weight in names:
            found[names[module.weight]] = module
    return found


@torch.inference_mode()
def input_norms(view: View) -> dict[str, Tensor]:
    """‖X_j‖₂ of every linear layer by its weight's name: [in], over all tokens of the forget examples, prompts included."""
    model, pad = view.loaded.model, view.loaded.pad
    device = next(model.parameters()).device
    layers = linear_layers(view)
    widths = {name: module.weight.shape[1 if isinstance(module, nn.Linear) else 0] for name, module in layers.items()}
    squares = {name: torch.zeros(width, dtype=torch.float64, device=device) for name, width in widths.items()}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            squares[name] += args[0].float().flatten(0, -2).square().sum(0, dtype=torch.float64)  # [in]

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in layers.items()]
    model.eval()
    try:
        for items in _alike(view.encoder.examples(view.request.forget), view.batch_size):
            answers(model, collate(items, pad).to(device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: value.sqrt().float() for name, value in squares.items()}


def _alike(items: Sequence[Encoded], batch_size: int) -> Iterator[list[Encoded]]:
    """Batches of examples of one length: without padding, whatever a layer does with its tokens, all of them are real."""
    for _, group in groupby(sorted(items, key=len, reverse=True), key=len):
        same = list(group)
        yield from (same[start : start + batch_size] for start in range(0, len(same), batch_size))

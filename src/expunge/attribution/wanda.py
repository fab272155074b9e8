"""Wanda: weights by their size times that of what they are multiplied with."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.attribution.contract import Attribution, Scores, View
from expunge.data import by_length, collate
from expunge.models import answers
from expunge.models.mask import Mask, pack


@dataclass(frozen=True, kw_only=True)
class Wanda(Attribution):
    """|W_ij| · ‖X_j‖₂ with X_j the j-th input of a linear layer over all tokens of the forget set (arXiv 2306.11695).

    Weights compete within each output row i, as in the paper (`scope="row"`); the other scopes are options. Only linear
    layers have such a score: embeddings that are not tied to the output layer, norms and biases stay frozen.
    """

    scope: Literal["row", "global", "layer", "tensor"] = "row"  # type: ignore[assignment]

    def scores(self, view: View) -> Scores:
        norms = input_norms(view)
        return lambda name: view.params[name].detach().float().abs() * norms[name]

    def eligible(self, view: View) -> dict[str, tuple[int, ...]]:
        linear = linear_layers(view).values()
        return {name: shape for name, shape in super().eligible(view).items() if name in linear}

    def mask(self, view: View) -> Mask:
        if self.scope != "row":
            return super().mask(view)
        scores, eligible = self.scores(view), self.eligible(view)
        shapes = {name: tuple(param.shape) for name, param in view.params.items()}
        kept = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()}
        for name, (_, width) in eligible.items():
            chosen = scores(name).argsort(dim=1, descending=True, stable=True)[:, : max(1, round(self.ratio * width))]
            kept[name].scatter_(1, chosen.cpu(), True)
        return Mask({name: pack(value) for name, value in kept.items()}, shapes, self.info(view))


def linear_layers(view: View) -> dict[nn.Module, str]:
    """Each linear layer with a trainable weight, and that weight's name."""
    names = {param: name for name, param in view.params.items()}
    modules = view.loaded.model.modules()
    return {
        module: names[module.weight] for module in modules if isinstance(module, nn.Linear) and module.weight in names
    }


@torch.inference_mode()
def input_norms(view: View) -> dict[str, Tensor]:
    """‖X_j‖₂ of every linear layer by its weight's name: [in], over the real tokens of the forget examples.

    The output layer's inputs count at the answer's positions only: no others reach it.
    """
    model, side, pad = view.loaded.model, view.forget, view.loaded.pad
    device = next(model.parameters()).device
    squares: dict[str, Tensor] = {}
    real = torch.empty(0, 0, dtype=torch.bool)

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0][real] if args[0].shape[:2] == real.shape else args[0]  # padding does not count
            squares[name] = squares.get(name, 0) + rows.float().flatten(0, -2).square().sum(0)

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for module, name in linear_layers(view).items()]
    model.eval()
    try:
        items = [item[0] for item in side.items]
        for places in by_length(items, view.batch_size):
            chosen = [items[place] for place in places]
            batch = collate(chosen, pad).to(device)
            lengths = torch.tensor([len(item) for item in chosen], device=device)
            real = torch.arange(batch.ids.shape[1], device=device) < lengths[:, None]  # [B, T]
            answers(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: value.sqrt() for name, value in squares.items()}

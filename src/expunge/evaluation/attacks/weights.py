"""The weights an attack changes for a while, and a model that holds other ones."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import ModelError
from expunge.models import Loaded, output_layer


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Whatever happens to parameters, buffers and gradients: afterwards they are as they were, bit for bit."""
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    gradients = [(param, param.grad) for param in model.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        for param, gradient in gradients:
            param.grad = gradient


def merged(loaded: Loaded) -> Loaded:
    """The model itself; of an adapter, a copy with it merged into the base, as it would be quantized or pruned."""
    if not loaded.is_adapter:
        return loaded
    whole: Any = copy.deepcopy(loaded.model)
    return replace(loaded, model=whole.merge_and_unload())


def linear_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weight matrices between embedding and output layer, by parameter name.

    Those are what quantizers and pruners take; the output layer (and an embedding tied to it) stays as it is.
    """
    embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
    apart = {id(module.weight) for module in (output_layer(model), embedding) if module is not None}
    conv1d = [kind for kind in (_conv1d(),) if kind is not None]
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, *conv1d)) and id(module.weight) not in apart:
            found[f"{name}.weight"] = module.weight
    return found


def _conv1d() -> Any:
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer, its weight [in, out]

    return Conv1D


def by_rows(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """The weight as [out, in]: GPT-2's layers hold it the other way round."""
    module = model.get_submodule(name.removesuffix(".weight"))
    return weight if isinstance(module, nn.Linear) else weight.T


def matching(one: Loaded, other: Loaded) -> tuple[Mapping[str, nn.Parameter], Mapping[str, nn.Parameter]]:
    """The parameters of two models by name. Raises ModelError where names or shapes differ."""
    first, second = dict(one.model.named_parameters()), dict(other.model.named_parameters())
    for name, param in first.items():
        if name not in second or second[name].shape != param.shape:
            has = f"has shape {tuple(second[name].shape)}" if name in second else "is missing"
            raise ModelError(
                f"{other.folder} is not the original of {one.folder}: {name} {has} there and has shape "
                f"{tuple(param.shape)} here. Give the model it was unlearned from as --original."
            )
    return first, second

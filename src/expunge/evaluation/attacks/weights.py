"""The weights an attack changes for a while, and a model that holds other ones."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

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


def linear_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weight matrices between embedding and output layer, each a view [out, in] of its parameter.

    Those are what quantizers and pruners take; the output layer (and an embedding tied to it) stays as it is. GPT-2's
    layers hold theirs as [in, out]. A mixture's experts lie in one parameter of three dimensions: each expert's matrix
    is one of its own, named `parameter[expert]`.
    """
    embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
    apart = {id(module.weight) for module in (output_layer(model), embedding) if module is not None}
    matrices: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in apart:
            weight = module.weight.detach()
            matrices[f"{name}.weight"] = weight if isinstance(module, nn.Linear) else weight.T
        elif type(module).__name__.endswith("Experts"):
            matrices |= _experts(name, module)
    return matrices


def _experts(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """The matrices [out, in] of every expert that `module` holds as [E, out, in], or as [E, in, out] where transposed."""
    stacks = {name: param.detach() for name, param in module.named_parameters(recurse=False) if param.ndim == 3}
    transposed = getattr(module, "is_transposed", None)
    if transposed is None:  # Llama 4 says nothing, but both of its matrices have the model's width on one known side
        first, second = stacks.get("gate_up_proj"), stacks.get("down_proj")
        transposed = first is not None and second is not None and first.shape[1] == second.shape[2]
    return {
        f"{prefix}.{name}[{expert}]": matrix.T if transposed else matrix
        for name, stack in stacks.items()
        for expert, matrix in enumerate(stack)
    }


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

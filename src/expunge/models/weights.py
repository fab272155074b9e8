"""A model's trainable weights as a dictionary of tensors: copied, put back, and read from another model folder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import ModelError
from expunge.models.fingerprint import fingerprint
from expunge.models.folders import base_folder
from expunge.models.loading import Loaded, load

Weights = dict[str, Tensor]


def trainable(loaded: Loaded) -> dict[str, nn.Parameter]:
    """Trainable parameters by name; a tied weight stands there once."""
    return {name: param for name, param in loaded.model.named_parameters() if param.requires_grad}


def copied(params: Mapping[str, nn.Parameter]) -> Weights:
    """Their values in fp32, in memory of their own."""
    return {name: param.detach().float().clone() for name, param in params.items()}


@contextmanager
def holding(loaded: Loaded, weights: Weights) -> Iterator[None]:
    """Let the model hold other weights for a while."""
    before = copied(trainable(loaded))
    try:
        with torch.no_grad():
            for name, param in trainable(loaded).items():
                param.copy_(weights[name])
        yield
    finally:
        with torch.no_grad():
            for name, param in trainable(loaded).items():
                param.copy_(before[name])


def read(folder: str, loaded: Loaded) -> Weights:
    """The weights of another model folder, in fp32 under the names of `loaded`'s trainable parameters.

    An adapter folder, where `loaded` is a full model, counts as merged into its base. Raises ModelError where the two
    models do not fit: an adapter and a full model, other names, shapes or vocabularies.
    """
    other = load(folder, device="cpu")
    model = other.model
    if other.is_adapter and not loaded.is_adapter:
        model = model.merge_and_unload()  # type: ignore[operator]
    elif loaded.is_adapter and not other.is_adapter:
        raise ModelError(
            f"{loaded.folder} is an adapter and {folder} a full model. Give an adapter of the same form, or merge first: "
            f"expunge convert {loaded.folder} --out MERGED."
        )
    if other.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise ModelError(f"The tokenizers of {folder} and {loaded.folder} differ: the two models read other tokens.")
    _check_adapters(other, loaded)
    found = dict(model.named_parameters())
    wanted = trainable(loaded)
    for name, param in wanted.items():
        if name not in found or found[name].shape != param.shape:
            has = f"has shape {tuple(found[name].shape)}" if name in found else "is missing"
            raise ModelError(
                f"{folder} does not fit {loaded.folder}: {name} {has} there and has shape {tuple(param.shape)} here."
            )
    device = next(iter(wanted.values())).device
    values = {name: found[name].detach().float().to(device) for name in wanted}
    for name, value in values.items():
        if not bool(value.isfinite().all()):
            raise ModelError(f"{name} in {folder} holds NaN or infinite values: the folder is damaged.")
    return values


def _check_adapters(other: Loaded, loaded: Loaded) -> None:
    """Two adapters fit only where they are of one form and stand on one base."""
    if not (other.is_adapter and loaded.is_adapter):
        return
    for folder in (other.folder, loaded.folder):
        if not (folder / "adapter_config.json").is_file():
            return  # a new adapter in memory: its shapes are compared
    bases = [base_folder(item.folder) for item in (other, loaded)]
    if bases[0] != bases[1] and all(base.is_dir() for base in bases) and fingerprint(bases[0]) != fingerprint(bases[1]):
        raise ModelError(
            f"The adapters {other.folder} and {loaded.folder} stand on other bases: {bases[0]}, {bases[1]}."
        )
    scales = [_scale(item) for item in (other, loaded)]
    if scales[0] != scales[1]:
        raise ModelError(f"The adapters {other.folder} and {loaded.folder} scale by {scales[0]} and {scales[1]}.")


def _scale(loaded: Loaded) -> Any:
    settings = loaded.model.peft_config["default"]  # type: ignore[union-attr, index]
    return tuple(getattr(settings, name, None) for name in ("lora_alpha", "r", "use_rslora"))

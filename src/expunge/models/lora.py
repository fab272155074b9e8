"""A new LoRA adapter: on which layers, and what it leaves out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from expunge.errors import ModelError
from expunge.models.loading import Loaded, without_noise
from expunge.reading import foreign

EXACT = (nn.Linear, Conv1D)
# PEFT refuses these layers of these models, whose fused kernels use their weights without calling them.
MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
MAMBA_BARRED = ("out_proj", "conv1d")


def new_adapter(
    loaded: Loaded,
    rank: int,
    *,
    alpha: int | None = None,
    dropout: float = 0.0,
    targets: tuple[str, ...] = (),
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> Loaded:
    """Put a new LoRA adapter of `rank` r on the model: W + (alpha/r)·B·A, B = 0 at first, W frozen.

    alpha: default 2r. dropout: the share of the adapter's inputs that training sets to 0.
    targets: names of layers as PEFT matches them; by default `linear_layers(model)`.
    `note` receives which matrices the adapter leaves out, such as experts. Raises ModelError
    on a model that has an adapter already, or where a target's name fits no layer.
    """
    from peft import LoraConfig, get_peft_model

    if loaded.is_adapter:
        raise ModelError(f"{loaded.folder} is an adapter already; it is trained as it is. Leave --lora out.")
    layers = list(targets) or linear_layers(loaded.model)
    if not layers:
        raise ModelError(f"{loaded.folder} has no linear layers to adapt. Name some with --lora-targets.")
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,
        lora_dropout=dropout,
        target_modules=layers,
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(loaded.folder.resolve()) if loaded.folder.is_dir() else str(loaded.folder),
    )
    with without_noise(), foreign(loaded.folder, what="takes no such LoRA adapter"):
        model = get_peft_model(loaded.model, config)  # pyrefly: ignore
    model.eval()
    names = left_out(model)
    if names and note is not None:
        note(f"The adapter leaves these weights as they are: {', '.join(names)}. LoRA adapts linear layers only.")
    return replace(loaded, model=model)


def linear_layers(model: Any) -> list[str]:
    """The shortest names that fit exactly the layers LoRA can adapt, the output layer left out.

    These are of the type nn.Linear or Conv1D itself (a router that returns a tuple is a
    further type) and are called; a layer whose weight the model uses without calling it
    (Jamba's dt_proj) would keep B = 0. PEFT refuses out_proj of Mamba-like models.
    """
    head = model.get_output_embeddings()
    uncalled = _uncalled(model)
    barred = MAMBA_BARRED if model.config.model_type in MAMBA else ()
    modules = dict(model.named_modules())
    layers = {
        name
        for name, module in modules.items()
        if type(module) in EXACT and module is not head and name not in uncalled and name.split(".")[-1] not in barred
    }
    others = set(modules) - layers
    return sorted({_suffix(name, others) for name in layers})


def left_out(model: Any) -> list[str]:
    """Matrices beside embeddings that the adapter leaves as they are: their names without layer numbers."""
    plain = model.get_base_model()
    ends = {id(plain.get_input_embeddings()), id(plain.get_output_embeddings())}
    names = set()
    for path, module in plain.named_modules():
        if hasattr(module, "lora_A") or ".base_layer" in path or ".lora_" in path:
            continue
        if id(module) in ends or isinstance(module, nn.Embedding):
            continue
        for name, param in module.named_parameters(recurse=False):
            if param.ndim > 1 and "lora_" not in name:
                parts = [part for part in path.split(".") if not part.isdigit()]
                names.add(".".join([*parts[-2:], name]))
    return sorted(names)


def _suffix(name: str, others: set[str]) -> str:
    parts = name.split(".")
    for length in range(1, len(parts)):
        suffix = ".".join(parts[-length:])
        if not any(other == suffix or other.endswith(f".{suffix}") for other in others):
            return suffix
    return name


def _uncalled(model: Any) -> set[str]:
    """Linear layers whose weight takes part in the output although the layer itself is not called."""
    layers = {name: module for name, module in model.named_modules() if type(module) in EXACT}
    called: set[str] = set()
    handles = [module.register_forward_hook(lambda *_, name=name: called.add(name)) for name, module in layers.items()]
    flags = {name: module.weight.requires_grad for name, module in layers.items()}
    try:
        for module in layers.values():
            module.weight.requires_grad_(True)
        with torch.enable_grad():
            ids = (
                torch.arange(3, 11, device=next(model.parameters()).device)[None]
                % model.get_input_embeddings().weight.shape[0]
            )
            logits = model(input_ids=ids, use_cache=False).logits
            weights = {name: module.weight for name, module in layers.items() if name not in called}
            used = torch.autograd.grad(logits.sum(), list(weights.values()), allow_unused=True) if weights else ()
    finally:
        for handle in handles:
            handle.remove()
        for name, module in layers.items():
            module.weight.requires_grad_(flags[name])
    return {name for name, gradient in zip(weights, used, strict=True) if gradient is not None}

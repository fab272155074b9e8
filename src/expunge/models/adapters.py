"""Adapters whose parameters are ordinary tensors: which these are, and one as it was before training."""

from typing import Any

import torch

from expunge.errors import ConfigurationError
from expunge.models.loading import Loaded

KINDS = {"LORA": "LoRA", "IA3": "IA3", "PROMPT_TUNING": "prompt tuning", "PREFIX_TUNING": "prefix tuning"}
PLAIN_STARTS = (True, False, "gaussian", "orthogonal")  # of LoRA: others also change the base weights
FRESH = "expunge_fresh"


def adapter_settings(loaded: Loaded, who: str) -> Any:
    """The PEFT configuration of the adapter that is trained. `who`: the method that asks, for messages.

    Raises ConfigurationError for a model without an adapter, and for a kind whose parameters are not ordinary fp32 tensors
    that alone make the model's outputs: LoRA (with DoRA), IA3, prompt tuning and prefix tuning without a projection are.
    """
    if not loaded.is_adapter:
        raise no_adapter(who, str(loaded.folder))
    model: Any = loaded.model
    settings = model.peft_config[model.active_adapter]
    kind = str(getattr(settings.peft_type, "value", settings.peft_type))
    if kind not in KINDS or getattr(settings, "prefix_projection", False):
        raise ConfigurationError(
            f"{who} does not know {kind} adapters{' with a projection' if kind in KINDS else ''}. It works on "
            f"{', '.join(KINDS.values())}: those whose parameters are ordinary tensors."
        )
    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    wrong = next((name for name, param in params.items() if param.dtype != torch.float32), None)
    if wrong is not None:
        raise ConfigurationError(
            f"{who} needs the adapter in fp32; {wrong} is {params[wrong].dtype}. Load it in float32."
        )
    return settings


def no_adapter(who: str, model: str) -> ConfigurationError:
    """What a method that changes an adapter says of a full model."""
    return ConfigurationError(
        f"{who} changes an adapter, and {model} is a full model. Give the folder of the adapter that learned the data "
        "(expunge finetune --lora 8 makes one), or choose a method for full weights, such as ngdiff or npo."
    )


def learned_adapter(loaded: Loaded, who: str) -> Any:
    """As `adapter_settings`. Raises ConfigurationError also for a LoRA as it begins, with every B = 0."""
    settings = adapter_settings(loaded, who)
    starts = [param for name, param in loaded.model.named_parameters() if param.requires_grad and "lora_B" in name]
    if starts and not any(bool(param.any()) for param in starts):
        raise ConfigurationError(
            f"{who} takes out what an adapter has learned, and this one has learned nothing yet. Give the folder of the "
            "adapter that was fine-tuned on the data, and leave --lora out."
        )
    return settings


def restart(loaded: Loaded, seed: int, who: str) -> None:
    """Put the adapter's parameters, in place, where a new adapter of its configuration and this seed begins.

    For LoRA that is where `new_adapter` with the same rank, targets and seed begins, bit for bit. Raises
    ConfigurationError as `adapter_settings`, and for a LoRA start that would change the base weights (PiSSA ...).
    """
    settings, model = adapter_settings(loaded, who), loaded.model
    if getattr(settings, "init_lora_weights", True) not in PLAIN_STARTS:
        raise ConfigurationError(
            f"{who} cannot begin anew: this adapter's start ({settings.init_lora_weights}) also changed its base weights. "
            "Fine-tune the base model on the kept data instead (expunge finetune)."
        )
    active: Any = model
    name = active.active_adapter
    torch.manual_seed(seed)
    active.add_adapter(FRESH, settings)
    try:
        found = dict(active.named_parameters())
        with torch.no_grad():
            for key, param in found.items():
                if param.requires_grad and f".{name}" in key:
                    param.copy_(found[key.replace(f".{name}", f".{FRESH}")])
    finally:
        active.delete_adapter(FRESH)
        active.set_adapter(name)
    model.eval()

"""What a training is made of: the weights it starts from, the examples as encoded, every setting, the mask."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from expunge.identity import Identity, digest
from expunge.models.checkpoint import NAMES, raw
from expunge.training.sides import Side

if TYPE_CHECKING:
    from expunge.training.loop import Plan

FREE = {"checkpoint_every"}  # settings that change no number
VOLATILE = {"_name_or_path", "base_model_name_or_path", "transformers_version", "dtype", "torch_dtype", "inference_mode",
            "revision", "peft_version", "_attn_implementation_autoset"}  # fmt: skip


def training_identity(model: nn.Module, plan: "Plan", sides: Mapping[str, Side], mask: str) -> Identity:
    """What must be the same for a descent to go on. Call it before the first step: it reads the weights as they are."""
    settings = {name: _setting(getattr(plan, name)) for name in vars(plan) if name not in FREE}
    data: dict[str, Any] = {}
    for name, side in sides.items():
        data[f"{name} loss"] = _setting(side.loss)
        data[f"{name} examples, as encoded"] = digest(repr(item).encode() for item in side.items)
        data[f"{name} replacements"] = side.favoured
    return model_identity(model) | Identity.of(**data, **settings, mask=f"sha256:{mask}" if mask else None)


def model_identity(model: nn.Module) -> Identity:
    """Hashes of a model's weights and configuration; of an adapter's and its base's, apart, where it has one."""
    adapter = getattr(model, "peft_config", None)
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    persistent = {name: state[name] for name in model.state_dict() if name in state}
    trained = {name: tensor for name, tensor in persistent.items() if tensor.requires_grad}
    others = {name: tensor for name, tensor in persistent.items() if name not in trained}
    kept = [json.dumps(_stable(model.config), sort_keys=True, default=str)] if hasattr(model, "config") else []
    facts = {"model configuration": digest(text.encode() for text in kept)}
    if adapter:
        configs = [json.dumps(_stable(item), sort_keys=True, default=str) for _, item in sorted(adapter.items())]
        facts |= {
            "adapter": weights_digest(trained),
            "adapter configuration": digest(text.encode() for text in configs),
            "base weights": weights_digest(others),
        }
    else:
        facts |= {"weights": weights_digest(persistent)}
    return Identity(facts)


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """The hash over name, dtype, shape and bytes of tensors; several are hashed at a time."""

    def part(name: str) -> bytes:
        tensor = tensors[name].detach()
        head = json.dumps([name, NAMES.get(tensor.dtype, str(tensor.dtype)), list(tensor.shape)])
        return digest([head.encode(), raw(tensor)]).encode()

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return digest(pool.map(part, sorted(tensors)))


def items_digest(items: Iterable[Any]) -> str:
    """The hash of encoded examples, in their order."""
    return digest(repr(item).encode() for item in items)


def _setting(value: Any) -> Any:
    """A setting as plain values; a number that was measured keeps six digits, since threads change its last ones."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"name": type(value).__name__, **{name: _setting(item) for name, item in asdict(value).items()}}
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return [_setting(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _stable(config: Any) -> dict[str, Any]:
    """A configuration without where it came from and what computes the same."""

    def kept(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): kept(item) for key, item in value.items() if key not in VOLATILE}
        return sorted(value) if isinstance(value, set | frozenset) else value

    return kept(config.to_dict())

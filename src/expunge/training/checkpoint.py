"""Checkpoints of a run under way: safetensors and JSON, written whole or not at all."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.errors import ConfigurationError
from expunge.files import atomic_path
from expunge.identity import Identity, check_seal, seal
from expunge.models.mask import Mask
from expunge.reading import foreign, read_text

TENSORS, STATE, MASK = "state.safetensors", "state.json", "mask.safetensors"


@dataclass(frozen=True)
class State:
    """A run between two steps: steps done, the current rate η, the log so far, the random state, and which run it is."""

    step: int
    eta: float
    log: list[dict[str, Any]]
    rng: Tensor
    identity: Identity


@dataclass(frozen=True)
class Summary:
    """The part of a state that is JSON."""

    step: int
    eta: float
    identity: dict[str, str]
    log: list[dict[str, Any]]


SUMMARY = TypeAdapter(Summary)


def exists(folder: Path) -> bool:
    return (folder / STATE).is_file()


def step(folder: Path) -> int:
    """How many steps the checkpoint has behind it. Raises ConfigurationError if it is damaged."""
    return _summary(folder).step


def _summary(folder: Path) -> Summary:
    """Every file is checked against its sha256 first. Raises ConfigurationError for damage or another format."""
    check_seal(folder, TENSORS, STATE)
    file = folder / STATE
    with foreign(file, ConfigurationError, what="is damaged"):
        value = json.loads(read_text(file, ConfigurationError))  # a log may hold NaN
    try:
        return SUMMARY.validate_python(value)
    except ValidationError as error:
        raise ConfigurationError(
            f"{file} is no checkpoint of this version of expunge: {error.errors()[0]['msg']}. Run without --resume to "
            "start over."
        ) from error


def save(
    folder: Path,
    state: State,
    params: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    mask: Mask | None = None,
) -> None:
    """Write parameters, optimizer moments, state and mask to `folder`, replacing what it held in one step."""
    tensors = {"rng": state.rng}
    for name, param in params.items():
        tensors[f"param.{name}"] = param.detach().contiguous()
        for key, value in optimizer.state.get(param, {}).items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value).detach().contiguous()
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_file(tensors, temporary / TENSORS)
        summary = {"step": state.step, "eta": state.eta, "identity": dict(state.identity.facts), "log": state.log}
        (temporary / STATE).write_text(json.dumps(summary), encoding="utf-8")
        if mask is not None:
            mask.save(temporary / MASK)
        seal(temporary)


def restore(folder: Path, identity: Identity, params: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> State:
    """Put a checkpoint back into the parameters and the optimizer.

    Raises ConfigurationError, before anything is changed, if it is damaged, or of a run with another `identity`; what
    differs is named.
    """
    summary = _summary(folder)
    identity.check(summary.identity, folder)
    with foreign(folder / TENSORS, ConfigurationError, what="is damaged"):
        tensors = load_file(folder / TENSORS)
    stored = {name.removeprefix("param."): tensor for name, tensor in tensors.items() if name.startswith("param.")}
    odd = [name for name in sorted(stored.keys() | params.keys()) if _shape(stored, name) != _shape(params, name)]
    if odd:
        raise ConfigurationError(f"The checkpoint in {folder} is of another model or adapter: {odd[0]} differs.")
    with torch.no_grad():
        for name, param in params.items():
            param.copy_(stored[name])
            keys = {
                key.split(".", 2)[1] for key in tensors if key.startswith("optimizer.") and key.endswith(f".{name}")
            }
            for key in keys:
                value = tensors.get(f"optimizer.{key}.{name}")
                if value is not None:
                    optimizer.state[param][key] = value.to(param.device) if value.dim() else value
    return State(summary.step, summary.eta, summary.log, tensors["rng"], identity)


def _shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None

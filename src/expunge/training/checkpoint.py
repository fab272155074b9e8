"""Checkpoints of a run under way: safetensors and JSON, written whole or not at all."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.errors import ConfigurationError
from expunge.files import atomic_path
from expunge.models.mask import Mask

TENSORS, STATE, MASK = "state.safetensors", "state.json", "mask.safetensors"


@dataclass(frozen=True)
class State:
    """Where the run stands: steps done, the current rate η, the log so far, the random state, and which run it is."""

    step: int
    eta: float
    log: list[dict[str, Any]]
    rng: Tensor
    identity: str


def exists(folder: Path) -> bool:
    return (folder / STATE).is_file()


def step(folder: Path) -> int:
    """How many steps the checkpoint has behind it."""
    return json.loads((folder / STATE).read_text())["step"]


def save(
    folder: Path,
    state: State,
    params: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    mask: Mask | None = None,
) -> None:
    """Write parameters, optimizer moments, state and mask to `folder`, replacing what stood there in one step."""
    tensors = {"rng": state.rng}
    for name, param in params.items():
        tensors[f"param.{name}"] = param.detach().contiguous()
        for key, value in optimizer.state.get(param, {}).items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value).detach().contiguous()
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_file(tensors, temporary / TENSORS)
        summary = {"step": state.step, "eta": state.eta, "identity": state.identity, "log": state.log}
        (temporary / STATE).write_text(json.dumps(summary), encoding="utf-8")
        if mask is not None:
            mask.save(temporary / MASK)


def restore(folder: Path, identity: str, params: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> State:
    """Put a checkpoint back into the parameters and the optimizer.

    Raises ConfigurationError, before anything is changed, if it is of a run with another `identity` or of another model.
    """
    summary = json.loads((folder / STATE).read_text())
    if summary["identity"] != identity:
        raise ConfigurationError(
            f"The checkpoint in {folder} was made with other settings, another mask or other data. Give the same as "
            "then, or run without --resume to start over."
        )
    tensors = load_file(folder / TENSORS)
    stored = {name.removeprefix("param.") for name in tensors if name.startswith("param.")}
    if stored != set(params):
        odd = sorted(stored ^ set(params))[0]
        raise ConfigurationError(f"The checkpoint in {folder} is of another model or adapter: {odd} is in one only.")
    with torch.no_grad():
        for name, param in params.items():
            param.copy_(tensors[f"param.{name}"])
            keys = {
                key.split(".", 2)[1] for key in tensors if key.startswith("optimizer.") and key.endswith(f".{name}")
            }
            for key in keys:
                value = tensors.get(f"optimizer.{key}.{name}")
                if value is not None:
                    optimizer.state[param][key] = value.to(param.device) if value.dim() else value
    return State(summary["step"], summary["eta"], summary["log"], tensors["rng"], summary["identity"])

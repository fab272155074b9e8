"""Write a loaded model as a folder, and say under which names a folder stores what a model holds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from expunge.errors import OutputError
from expunge.models.checkpoint import ADAPTER_WEIGHTS, NAMES, stored, write_file, write_like
from expunge.models.folders import ADAPTER_CONFIG, is_adapter_folder
from expunge.models.loading import Loaded, save_tokenizer
from expunge.models.naming import adapter_state, adapter_tensors, stored_names


def checkpoint_tensors(loaded: Loaded) -> dict[str, Tensor] | None:
    """The model's (or its adapter's) present weights under the names `loaded.folder` stores them by.

    None if the names cannot be found, as where transformers fuses weights on loading in a
    way it cannot undo. Tied weights: each name the folder stores is there, the others are
    not. What else the folder stores (a vision tower, say) is not there.
    """
    held = stored(loaded.folder)
    if loaded.is_adapter:
        return adapter_tensors(loaded.model, held)
    return stored_names(loaded.model, loaded.model.state_dict(), held)


def save_model(loaded: Loaded, out: Path) -> None:
    """Write the model as a folder at `out`, which the caller makes atomic (`files.atomic_path`).

    A model from a folder keeps that folder's files, shards, dtypes and further tensors
    (`write_like`), and so does an existing adapter. A new adapter becomes a PEFT folder
    that names its base. A model from the hub is written the way transformers does, in the
    dtype it has in memory. Raises ModelError as `write_like`, OutputError if writing fails.
    """
    source, local = loaded.folder, loaded.folder.is_dir()
    if loaded.is_adapter and not (local and is_adapter_folder(source)):
        _save_new_adapter(loaded, out)
        return
    named = checkpoint_tensors(loaded) if local else None
    if named is not None:
        write_like(source, named, out)
        return
    _save_pretrained(loaded, out)


def _save_new_adapter(loaded: Loaded, out: Path) -> None:
    state = {name: tensor.detach().cpu() for name, tensor in adapter_state(loaded.model, embeddings=False).items()}
    config = loaded.model.peft_config["default"].to_dict()  # type: ignore[union-attr, index]
    base = str(loaded.folder.resolve()) if loaded.folder.is_dir() else str(loaded.folder)
    write_adapter(out, {**config, "base_model_name_or_path": base}, state)
    save_tokenizer(loaded.folder, loaded.tokenizer, out)


def write_adapter(out: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write a PEFT adapter folder: its configuration, and its tensors under PEFT's names."""
    out.mkdir(parents=True)
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    text = json.dumps({**plain, "inference_mode": True}, indent=1, sort_keys=True, default=str)
    (out / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
    layout = {name: (NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in state.items()}
    write_file(out / ADAPTER_WEIGHTS, layout, lambda name: state[name], {"format": "pt"})


def _save_pretrained(loaded: Loaded, out: Path) -> None:
    try:
        loaded.model.save_pretrained(out)  # type: ignore[operator]
    except SafetensorError as error:
        raise OutputError(f"The model could not be written to {out.parent}: {error}.") from error
    save_tokenizer(loaded.folder, loaded.tokenizer, out)

"""What tells one model's weights from another's: a sha256 over every bit, taken once a run for each folder."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.errors import ModelError
from expunge.models.checkpoint import Stored, stored
from expunge.models.folders import ADAPTER_CONFIG, adapter_base, is_adapter_folder, resolve
from expunge.models.loading import Loaded
from expunge.models.stamp import Stamp
from expunge.reading import read_object

# Of an adapter's configuration: where it was made, and what changes nothing about the function it computes.
WITHOUT_EFFECT = {
    "base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "task_type", "lora_dropout",
}  # fmt: skip
_known: dict[tuple[tuple[str, int, int, int, int], ...], str] = {}


def fingerprint(folder: Path) -> str:
    """The sha256 that names a model folder's weights, as 64 hex digits.

    Of a full model: over name, dtype, shape and bytes of all tensors in the order of their names, so that two folders
    have the same one exactly if their weights are the same bits, however they are spread over files. Of an adapter:
    over that of its own tensors, its configuration (scaling, ranks, patterns, ...) and the fingerprint of its base, or
    the base's name where it is no folder here. Raises ModelError as `stored`.
    """
    folder = Path(folder)
    own = weights_fingerprint(folder)
    if not is_adapter_folder(folder):
        return own
    config = {name: _sorted(value) for name, value in read_object(folder / ADAPTER_CONFIG, ModelError).items()}
    config = {name: value for name, value in config.items() if name not in WITHOUT_EFFECT and value not in UNSET}
    name = adapter_base(folder)
    base = resolve(name) if name and Path(name).is_dir() else None
    beneath = weights_fingerprint(base) if base is not None else str(name)
    return hashlib.sha256(json.dumps([own, config, beneath], sort_keys=True).encode()).hexdigest()


UNSET: tuple[Any, ...] = (None, False, [], {})  # what a newer PEFT writes for settings that an older one lacks


def _sorted(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value


def weights_fingerprint(folder: Path) -> str:
    """The sha256 over a folder's own tensors alone: of an adapter neither its scaling nor its base.

    This was an adapter's fingerprint up to version 0.1. The bytes are read once: as long as the files' sizes, inodes and
    times stay the same, the hash is remembered.
    """
    stamp = Stamp.of(folder)
    if stamp.settled and stamp.files in _known:
        return _known[stamp.files]
    found = fingerprint_of(stored(folder))
    if stamp.settled and not stamp.changed():
        _known[stamp.files] = found
    return found


def fingerprint_of(tensors: Mapping[str, Stored]) -> str:
    """The sha256 over name, dtype, shape and bytes of tensors in the order of their names."""
    digest = hashlib.sha256()
    for name, item in sorted(tensors.items()):
        digest.update(json.dumps([name, item.dtype, item.shape]).encode())
        for part in item.chunks():
            digest.update(part)
    return digest.hexdigest()


def is_of(known: str, folder: Path) -> bool:
    """Whether `known` is the fingerprint of the folder's weights, by the present or, for adapters, the older rule."""
    return known == fingerprint(folder) or (is_adapter_folder(folder) and known == weights_fingerprint(folder))


def as_loaded(loaded: Loaded) -> str | None:
    """The fingerprint of the weights a model was loaded from; None if they are no folder here.

    Raises ModelError if the files have changed since.
    """
    if not loaded.folder.is_dir():
        return None
    check_unchanged(loaded)
    found = fingerprint(loaded.folder)
    check_unchanged(loaded)
    return found


def check_unchanged(loaded: Loaded) -> None:
    """Raise ModelError if a file the model was loaded from is another one by now, or is gone."""
    changed = loaded.stamp.changed() if loaded.stamp is not None else []
    if not changed:
        return
    if "fingerprint" in vars(loaded):  # only the times may be others
        still = all(Path(file).is_file() for file in changed) and fingerprint(loaded.folder) == loaded.fingerprint
        if still:
            return
    raise ModelError(
        f"{changed[0]} has changed since the model was loaded: what comes out would not be of the model that lies there "
        "now. Nothing was written. Put the file back and go on with --resume, or run again with a folder nobody changes."
    )

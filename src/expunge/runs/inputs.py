"""What a run reads: its files with the hash of what was read, and everything a run must share with its checkpoint."""

from collections.abc import Mapping
from typing import Any

from expunge import config
from expunge.identity import HASH, Identity, digest
from expunge.models.fingerprint import fingerprint
from expunge.models.folders import resolve
from expunge.request import Columns, Paths, Source, read_rows

FREE = {"checkpoint_every", "tolerance", "passes", "seconds", "rounds"}  # settings a run may go on with other values of
FOLDERS = ("base", "forget_model")  # settings that name models


Inputs = Mapping[str, tuple[Source, ...]]


def read(columns: Columns | None = None, **paths: Paths | None) -> dict[str, tuple[Source, ...]]:
    """The files of each set that is given, as they are now. Raises RequestError for what cannot be read."""
    return {name: read_rows(each, columns).sources for name, each in paths.items() if each is not None}


def described(inputs: Inputs) -> dict[str, dict[str, Any]]:
    """For run.json: path and sha256 of each set's file, or of its files one by one and of all of them together."""
    return {name: _described(files) for name, files in inputs.items()}


def _described(files: tuple[Source, ...]) -> dict[str, Any]:
    if len(files) == 1:
        return {"path": str(files[0].path), "sha256": files[0].sha256}
    return {"sha256": together(files), "files": [{"path": str(file.path), "sha256": file.sha256} for file in files]}


def together(files: tuple[Source, ...]) -> str:
    """The sha256 of one file's bytes; of several, of their hashes in order."""
    if len(files) == 1:
        return files[0].sha256
    return digest(file.sha256.encode() for file in files).removeprefix(HASH)


def identity(settings: Any, weights: str | None, inputs: Inputs, **options: Any) -> Identity:
    """The facts a run shares with a checkpoint it goes on from: model, data, settings, and how they are read.

    settings: the method, a dataclass. Models and files that it names count by their content. weights: the model's
    fingerprint, None if it has no folder here.
    """
    values = {name: value for name, value in config.to_dict(settings).items() if name not in FREE}
    facts: dict[str, Any] = {"method": type(settings).__name__, "model": weights and HASH + weights}
    for name, value in values.items():
        facts[name] = _model(value) if name in FOLDERS and value is not None else value
    if values.get("train") is not None and "train" in inputs:
        del facts["train"]
    data = {f"{name} data": HASH + together(files) for name, files in inputs.items()}
    return Identity.of(**facts, **data, **options)


def _model(folder: str) -> str:
    place = resolve(folder)
    return HASH + fingerprint(place) if place.is_dir() else str(place)

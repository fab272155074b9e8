"""What a run reads: its files with the hash of what was read, and everything a run must share with its checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge import config
from expunge.identity import HASH, Identity, digest, file_sha256
from expunge.models.fingerprint import fingerprint
from expunge.models.loading import resolve

Paths = Path | str | Sequence[Path | str] | None
FREE = {"checkpoint_every", "tolerance", "passes", "seconds", "rounds"}  # settings a run may go on with other values of
FOLDERS = ("base", "forget_model")  # settings that name models


@dataclass(frozen=True)
class Input:
    """A file as it was when it was read: path and sha256 of its bytes."""

    path: str
    sha256: str


Inputs = Mapping[str, tuple[Input, ...]]


def hashed(**paths: Paths) -> dict[str, tuple[Input, ...]]:
    """The files of each set that is given, hashed now: call it right before they are read."""
    return {name: tuple(_files(each)) for name, each in paths.items() if each is not None}


def _files(paths: Path | str | Sequence[Path | str]) -> list[Input]:
    listed = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    files = [file for path in listed for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [Input(str(file), file_sha256(file)) for file in files if file.is_file()]


def described(inputs: Inputs) -> dict[str, dict[str, Any]]:
    """For run.json: path and sha256 of each set's file, or of its files one by one and of all of them together."""
    return {name: _described(files) for name, files in inputs.items()}


def _described(files: tuple[Input, ...]) -> dict[str, Any]:
    if len(files) == 1:
        return {"path": files[0].path, "sha256": files[0].sha256}
    return {"sha256": together(files), "files": [{"path": file.path, "sha256": file.sha256} for file in files]}


def together(files: tuple[Input, ...]) -> str:
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

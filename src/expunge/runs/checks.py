"""What can be refused without a model in memory: asked before anything is loaded or measured."""

from pathlib import Path

from expunge.models.folders import is_adapter_folder, resolve
from expunge.runs.record import read_evaluation


def check_models(**models: Path | str | None) -> None:
    """Raise what loading raises first: for each model, by its role, that is no model folder or has results instead."""
    for role, folder in models.items():
        if folder is not None and not (role == "reference" and read_evaluation(folder) is not None):
            resolve(folder)


def changes_adapter(model: Path | str, lora: int | None) -> bool | None:
    """Whether a run on `model` trains an adapter; None for a hub id, whose files are not here yet."""
    folder = resolve(model)
    if lora is not None:
        return True
    return is_adapter_folder(folder) if folder.is_dir() else None

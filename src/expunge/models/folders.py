"""What a path is: a model folder, an adapter's, an expunge run's, or a name on the hub."""

import difflib
import re
from pathlib import Path

from expunge.errors import ModelError
from expunge.reading import read_object

ADAPTER_CONFIG = "adapter_config.json"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(folder: Path | str) -> Path:
    """The folder that holds the weights: the given one, or the `model` folder of a run.

    A name of two parts whose first part is no folder here is a name on the hub and is
    returned as it is. Raises ModelError for a path that holds no model.
    """
    folder = Path(folder)
    if (folder / "run.json").is_file() and (folder / "model").is_dir():
        return folder / "model"
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder} is a file. {_instead(folder)}")
    if not folder.exists() and not is_hub_name(folder):
        near = difflib.get_close_matches(folder.name, _names(folder.parent), n=1, cutoff=0.5)
        raise ModelError(f"{folder}: no such folder. " + (f"Did you mean {folder.parent / near[0]}?" if near else ""))
    if (folder / "run.json").is_file() and (folder / "patch.safetensors").is_file():
        file = folder / "patch.safetensors"
        raise ModelError(f"{folder} is a run that wrote a patch and no model. {_instead(file)}")
    if folder.is_dir() and not (folder / "config.json").is_file() and not is_adapter_folder(folder):
        raise ModelError(f"{folder} holds neither config.json nor {ADAPTER_CONFIG}: it is not a model folder.")
    return folder


def _instead(file: Path) -> str:
    """What to do with a file that is given in place of a model folder."""
    ending = file.suffix.lower()
    if ending == ".gguf":
        return f"Make a model folder of it: expunge convert {file} --out DIR."
    if ending in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        return "Pickled weights could run code and are not loaded: save the model with save_pretrained, as safetensors."
    if ending == ".json":
        return "A file of results can be a --reference only; here a model folder is needed."
    if file.name.startswith("patch"):
        return f"It is a patch: expunge patch apply --patch {file} --model BASE --out DIR makes a model of it."
    if ending in (".csv", ".tsv", ".jsonl", ".txt", ".parquet"):
        return "It holds data: give it as --forget, --retain or --data, and a model folder here."
    return "Give the folder that holds config.json and the safetensors weights."


def is_hub_name(name: Path | str) -> bool:
    """Whether `name` reads owner/name and no folder here is called `owner`: then it is no mistyped path."""
    return HUB_NAME.fullmatch(str(name)) is not None and not Path(name).parent.exists()


def _names(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir() if item.is_dir()] if folder.is_dir() else []


def is_adapter_folder(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def adapter_base(folder: Path) -> str | None:
    """The base model an adapter folder names, if any; a relative path is meant from the adapter's folder.

    Raises ModelError where the adapter's configuration is damaged.
    """
    name = read_object(folder / ADAPTER_CONFIG, ModelError).get("base_model_name_or_path")
    if name is not None and (not isinstance(name, str) or "\0" in name or max(map(len, name.split("/"))) > 200):
        raise ModelError(f"{folder / ADAPTER_CONFIG}: base_model_name_or_path must be a folder or a name.")
    beside = folder / name if name else None
    return str(beside.resolve()) if beside is not None and beside.is_dir() else name


def base_folder(folder: Path) -> Path:
    """The folder (or name on the hub) of an adapter's base. Raises ModelError where there is none."""
    name = adapter_base(folder)
    if not name:
        raise ModelError(
            f"{folder / ADAPTER_CONFIG} names no base model. Set base_model_name_or_path to the base model's folder."
        )
    base = resolve(name)
    if is_adapter_folder(base):
        raise ModelError(f"{folder / ADAPTER_CONFIG} names the adapter {base} as its base. Name a full model.")
    return base

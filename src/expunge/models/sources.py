"""The files and folders that a run reads, and how much room the model it writes takes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from expunge.errors import ModelError
from expunge.reading import read_object

ADAPTER_CONFIG = "adapter_config.json"
NAMED = {"base", "forget_model", "train", "path"}  # settings of methods and masks that name a file or a folder


def sources(value: Any, *, weights_only: bool = False) -> Iterator[Path]:
    """The files and folders that an argument of a run names: a path, or several in a list or in a mapping's values.

    A run folder stands for itself and its model, or with `weights_only` for its model alone; an adapter stands for its
    base as well, and that for its own.
    """
    if isinstance(value, Mapping):
        for item in value.values():
            yield from sources(item, weights_only=weights_only)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from sources(item, weights_only=weights_only)
    elif isinstance(value, str | Path) and str(value):
        yield from _models(Path(value), set(), weights_only=weights_only)


def in_settings(settings: Mapping[str, Any]) -> Iterator[Path]:
    """The files and folders that a method's settings name, those of its parts too."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from in_settings(value)
        elif key.rpartition(".")[2].replace("-", "_") in NAMED and value is not None:
            yield from sources(value)


def is_described(folder: Path) -> bool:
    """Whether a folder holds what describes a model, an adapter or a run."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG, "run.json"))


def weight_bytes(folder: Path | str) -> int:
    """The size of a model's weights on the disk, in bytes; 0 where it is not a local folder."""
    return max((_weights(path) for path in sources(str(folder)) if path.is_dir()), default=0)


def _weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors") if file.is_file())


def _models(path: Path, seen: set[Path], *, weights_only: bool) -> Iterator[Path]:
    if path in seen or not path.exists():
        return
    seen.add(path)
    model = path / "model"
    if (path / "run.json").is_file() and model.is_dir():
        if not weights_only:
            yield path
        yield from _models(model, seen, weights_only=weights_only)
        return
    yield path
    try:
        config = read_object(path / ADAPTER_CONFIG, ModelError) if (path / ADAPTER_CONFIG).is_file() else {}
    except ModelError:
        return  # loading it says what is wrong
    base = config.get("base_model_name_or_path")
    if isinstance(base, str) and base:
        for place in (path / base, Path(base)):
            yield from _models(place, seen, weights_only=weights_only)

"""A benchmark's rows from the hub, where a person gives a name like "owner/name" in place of a folder."""

from pathlib import Path
from typing import Any

from expunge.errors import RequestError


def is_folder(path: Path) -> bool:
    """Whether `path` is meant as a folder: it exists, or it does not look like "owner/name"."""
    return path.exists() or path.is_absolute() or len(path.parts) != 2 or path.parts[0].startswith((".", "~"))


def rows(source: str, name: str, split: str = "train", *, benchmark: str) -> list[dict[str, Any]]:
    """The rows of one split of a data set on the hub. Raises RequestError without the `datasets` package or a network."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise RequestError(
            f"{source} is not a folder here, and reading it from the hub needs the datasets package: "
            f"pip install 'expunge[hub]', or give a folder that holds {benchmark}'s files."
        ) from None
    try:
        return list(load_dataset(source, name, split=split))
    except Exception as error:  # the hub's client raises many kinds, all of which mean the same to the person
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RequestError(
            f"{source} is not a folder here, and {name} could not be read from the hub: {reason} "
            f"Check the name and the network, or give a folder that holds {benchmark}'s files."
        ) from error

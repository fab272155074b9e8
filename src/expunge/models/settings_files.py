"""The JSON files of a model folder, checked before transformers acts on them: it builds what they say, of any size."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from expunge.errors import ModelError
from expunge.models.checkpoint import Stored
from expunge.reading import parse_json, read_text, refuse_links

FILES = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
LIMIT = 1 << 24  # bytes; a tokenizer's configuration with every added token takes some hundred thousand
HIGHEST = 1 << 40  # of any whole number in config.json
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTHS = ("vocab_size", "hidden_size", "n_embd", "d_model")  # each is a dimension of some tensor
TOKENS = ("eos_token_id", "bos_token_id", "pad_token_id")


def check_files(folder: Path) -> None:
    """Raise ModelError if a file of the folder is a link out of it or no regular file, or if its JSON is damaged.

    Also if config.json names other files for the weights, which may be pickles.
    """
    refuse_links(folder, ModelError)
    for file in (folder / name for name in FILES):
        if not file.exists():
            continue
        value = parse_json(read_text(file, ModelError, limit=LIMIT), file, ModelError, infinite=True)
        if not isinstance(value, dict):
            raise ModelError(f"{file}: expected a JSON object, found a {type(value).__name__}.")
        if value.get("transformers_weights") is not None:
            raise ModelError(f"{file} names other weight files (transformers_weights). Remove that entry.")
        for name in TOKENS if file.name == "generation_config.json" else ():
            ids = value.get(name)
            tokens = ids if isinstance(ids, list) else [ids]
            if ids is not None and not all(type(token) is int for token in tokens):
                raise ModelError(f"{file}: {name} must be a token's id or a list of such, not {ids!r:.60}.")


def check_sizes(folder: Path, held: Mapping[str, Stored]) -> None:
    """Raise ModelError where config.json gives the model a size that its tensors do not have."""
    file = folder / "config.json"
    largest = max((size for item in held.values() for size in item.shape), default=0)
    config = parse_json(read_text(file, ModelError, limit=LIMIT), file, ModelError, infinite=True)
    for name, value in _numbers(config):
        limit = len(held) if name in LAYERS else largest if name in WIDTHS else HIGHEST
        if abs(value) > limit:
            raise ModelError(f"{file}: {name} is {value:.3g}, and the folder's tensors have no such size.")


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number with the name it stands under. A vision or audio part may lie in other files."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif type(value) is int:
        yield name, value

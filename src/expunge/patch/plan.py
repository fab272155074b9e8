"""Which tensor is combined with which: the checks of `edit`, all of them before a byte is written."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from expunge.errors import ConfigurationError, ModelError
from expunge.models.arithmetic import FLOATS, Edit, Product, Term, differ
from expunge.models.checkpoint import DTYPES, Stored, read_file, stored
from expunge.models.complete import check_folder
from expunge.models.folders import adapter_base, is_adapter_folder, resolve
from expunge.patch import lora
from expunge.reading import foreign, read_object

# A tied output layer is stored under the embeddings' name only, or under both.
OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
INPUT = re.compile(r"(^|\.)(embed_tokens|embed_in|wte|word_embeddings)\.weight$")
LOOK = 1 << 12  # entries at the beginning of a tensor, where most differences show


@dataclass(frozen=True)
class Plan:
    """The edits in the order of their bytes in the base's files, and what tells this request from any other."""

    base: Path
    inputs: tuple[Path, ...]
    edits: tuple[Edit, ...]
    identity: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Model:
    """A model folder and its tensors."""

    folder: Path
    held: Mapping[str, Stored]

    @cached_property
    def config(self) -> dict[str, Any]:
        file = self.folder / "config.json"
        return read_object(file, ModelError) if file.is_file() else {}

    @cached_property
    def tied(self) -> bool:
        """Whether the output layer is the embeddings: the files decide where they hold both, else the configuration."""
        ends = [[item for name, item in self.held.items() if end.search(name)] for end in (INPUT, OUTPUT)]
        if all(len(items) == 1 for items in ends) and not _same(ends[0][0], ends[1][0]):
            return False
        for part in (self.config, self.config.get("text_config") or {}):
            if isinstance(part, dict) and "tie_word_embeddings" in part:
                return bool(part["tie_word_embeddings"])
        try:
            with foreign(self.folder):
                found = AutoConfig.from_pretrained(self.folder).get_text_config()
        except ModelError:
            return False
        return bool(getattr(found, "tie_word_embeddings", False))

    def place(self, name: str, held: Mapping[str, Stored]) -> Stored | None:
        """The tensor of `held` that this model's `name` stands for: a tied output layer's is the embeddings'."""
        inputs = [other for other in held if INPUT.search(other)]
        if OUTPUT.search(name) and len(inputs) == 1 and self.tied:
            return held[inputs[0]]
        return held.get(name)


def _same(first: Stored, second: Stored) -> bool:
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return all(ours == theirs for ours, theirs in zip(first.chunks(), second.chunks(), strict=True))


def plan(base: Path | str, plus: Path | str | None, minus: Path | str | None, weights: Path | str | None) -> Plan:
    """Check that base, plus, minus and weights fit together. Raises ModelError and ConfigurationError as `edit`."""
    folder = resolve(base)
    sides = {name: resolve(given) for name, given in (("plus", plus), ("minus", minus)) if given is not None}
    _check_combination(folder, sides)
    model = _Model(folder, stored(folder))
    _check_dtypes(model)
    in_space = is_adapter_folder(folder)
    if not in_space:
        check_folder(folder, model.held)
    terms: dict[str, Mapping[str, Term]] = {}
    notes: list[str] = []
    for name, side in sides.items():
        low_rank = is_adapter_folder(side) and not in_space
        terms[name] = _adapter_terms(model, side, notes) if low_rank else _model_terms(model, side, name, notes)
    edits = [
        _settled(Edit(name, item, terms.get("plus", {}).get(name), terms.get("minus", {}).get(name)))
        for name, item in model.held.items()
    ]
    file = Path(weights) if weights is not None else None
    _check_difference(edits)
    if file is not None:
        edits = _weighted(model, edits, file)
    identity = {name: _identity(place) for name, place in {"base": folder, **sides}.items()}
    return Plan(
        base=folder,
        inputs=(folder, *sides.values(), *([file] if file else ())),
        edits=tuple(sorted(edits, key=lambda item: (item.base.file, item.base.start, item.base.size))),
        identity={**identity, "weights": _files([file]) if file else None},
        notes=tuple(notes),
    )


def _check_combination(base: Path, sides: Mapping[str, Path]) -> None:
    adapters = [side for side in sides.values() if is_adapter_folder(side)]
    if not sides:
        raise ConfigurationError("Give --plus and --minus: the result is base + scale · (plus − minus).")
    if is_adapter_folder(base):
        if len(adapters) < 2:
            raise ConfigurationError(
                f"{base} is an adapter: --plus and --minus must both be states of the same adapter. To change a full "
                "model, give the full model as --base."
            )
    elif len(sides) == 1 and not adapters:
        given, missing = ("plus", "minus") if "plus" in sides else ("minus", "plus")
        raise ConfigurationError(
            f"--{given} {sides[given]} is a full model: give the model to compare it with as --{missing} (which may be "
            "the base). Only an adapter is a change by itself."
        )
    elif len(adapters) == 1 and len(sides) == 2:
        raise ConfigurationError(
            f"{adapters[0]} is an adapter and the other side a full model. Give two models or two adapters; `expunge "
            "patch diff` and `expunge patch apply --merge` turn an adapter into a model."
        )
    if len(sides) == 2 and sides["plus"].resolve() == sides["minus"].resolve():
        raise ConfigurationError(f"--plus and --minus are the same folder, {sides['plus']}: there is no difference.")


def _check_dtypes(model: _Model) -> None:
    if model.config.get("quantization_config"):
        raise ModelError(f"{model.folder} is quantized: its weights cannot be edited. Give the unquantized model.")
    for name, item in model.held.items():
        if item.dtype.startswith("F8_") or item.dtype not in DTYPES:
            raise ModelError(
                f"{name} in {item.file} is stored as {item.dtype}: quantized weights cannot be edited. Give the model in "
                "bf16, fp16 or fp32."
            )


def _model_terms(base: _Model, folder: Path, side: str, notes: list[str]) -> dict[str, Term]:
    """The tensor of the model `folder` for each of the base's."""
    other = _Model(folder, stored(folder))
    _check_dtypes(other)
    if is_adapter_folder(folder):
        configs = [lora.decisive(lora.read_config(place)) for place in (base.folder, folder)]
        different = next((key for key in configs[0] if configs[0][key] != configs[1][key]), None)
        if different:
            raise ModelError(f"The adapters {base.folder} and {folder} differ in {different}: they are not comparable.")
    else:
        _check_ties(base, other)
        _compare_tokenizers(base.folder, folder, notes)
    found: dict[str, Term] = {}
    for name, item in base.held.items():
        there = other.place(name, other.held)
        if there is None:
            raise ModelError(f"{folder} (--{side}) holds no {name}, which {base.folder} does. They must be one model.")
        _check_pair(name, item, there)
        found[name] = there
    extra = next((name for name in other.held if name not in base.held and not OUTPUT.search(name)), None)
    if extra:
        raise ModelError(f"{folder} (--{side}) holds {extra}, which {base.folder} does not. They must be one model.")
    return found


def _check_ties(base: _Model, other: _Model) -> None:
    output = next((name for name in other.held if OUTPUT.search(name)), None)
    if output and not other.tied and (base.tied or output not in base.held):
        raise ModelError(
            f"{base.folder} ties its output layer to its embeddings; {other.folder} has one of its own ({output}). A "
            "change of both cannot be put into one tensor."
        )


def _check_pair(name: str, base: Stored, other: Stored) -> None:
    if base.shape != other.shape:
        vocabulary = (INPUT.search(name) or OUTPUT.search(name)) and base.shape[1:] == other.shape[1:]
        hint = " Their vocabularies differ." if vocabulary else ""
        raise ModelError(f"{name} has shape {base.shape} in {base.file} and {other.shape} in {other.file}.{hint}")
    if (base.dtype in FLOATS) != (other.dtype in FLOATS):
        raise ModelError(f"{name} is stored as {base.dtype} in {base.file} and as {other.dtype} in {other.file}.")


def _compare_tokenizers(base: Path, other: Path, notes: list[str]) -> None:
    files = [place / "tokenizer.json" for place in (base, other)]
    if all(file.is_file() for file in files) and files[0].read_bytes() != files[1].read_bytes():
        notes.append(f"{other} has another tokenizer.json than {base}; the base's is kept.")


def _adapter_terms(base: _Model, folder: Path, notes: list[str]) -> dict[str, Term]:
    """s·B·A for each weight of the base the adapter changes."""
    adapter = stored(folder)
    pairs = lora.low_rank(lora.read_config(folder), adapter, base.held)
    if pairs is None:
        raise ModelError(
            f"{folder} is more than plain LoRA on layers that {base.folder} stores one by one. Merge it first (`expunge "
            "patch diff`, then `expunge patch apply --merge`) and give full models."
        )
    for name in pairs:
        if base.tied and (INPUT.search(name) or OUTPUT.search(name)):
            raise ModelError(f"{folder} changes one of the two uses of a tied weight ({name}); an edit changes both.")
    named = adapter_base(folder)
    if named and Path(named).resolve() != base.folder.resolve():
        notes.append(f"{folder} was trained on {named}; its change is put on {base.folder}, whose shapes fit.")
    return {
        name: Product(adapter[pair.a], adapter[pair.b], pair.scale, pair.transposed) for name, pair in pairs.items()
    }


def _settled(edit: Edit) -> Edit:
    """The edit, or for a tensor of whole numbers the base's bits, if plus and minus agree on it."""
    if edit.base.dtype in FLOATS or (edit.plus is None and edit.minus is None):
        return edit
    if edit.plus is None or edit.minus is None or edit.plus.dtype != edit.minus.dtype or differ(edit):
        raise ModelError(
            f"{edit.name} is stored as {edit.base.dtype} and differs between plus and minus: whole numbers cannot be "
            "scaled. If they are quantized weights, give the unquantized models."
        )
    return replace(edit, plus=None, minus=None)


def _check_difference(edits: list[Edit]) -> None:
    """A look at the beginning of each tensor nearly always suffices."""
    compared = [edit for edit in edits if edit.plus is not None or edit.minus is not None]
    if not any(differ(edit, LOOK) for edit in compared) and not any(differ(edit) for edit in compared):
        raise ModelError("plus and minus are the same weights: there is no difference to add or to subtract.")


def _weighted(base: _Model, edits: list[Edit], file: Path) -> list[Edit]:
    held = read_file(file)[1]
    unknown = next((name for name in held if name not in base.held), None)
    if unknown:
        raise ModelError(f"{file} holds weights for {unknown}, which {base.folder} does not have.")
    found = []
    for edit in edits:
        weight = base.place(edit.name, held)
        if edit.plus is None and edit.minus is None:
            found.append(edit)
        elif weight is not None:
            floating = weight.dtype in DTYPES and DTYPES[weight.dtype].is_floating_point
            if weight.shape != edit.base.shape or not floating:
                raise ModelError(
                    f"{file} holds {edit.name} as {weight.shape}, {weight.dtype}; it must be floats of shape "
                    f"{edit.base.shape}."
                )
            found.append(replace(edit, weight=weight))
        elif differ(edit):
            raise ModelError(
                f"{file} holds no weights for {edit.name}, where plus and minus differ. Store zeros for a tensor that "
                "shall stay, ones for one that shall change in full."
            )
        else:
            found.append(replace(edit, plus=None, minus=None))
    return found


def _identity(folder: Path) -> dict[str, Any]:
    files = sorted({item.file for item in stored(folder).values()})
    config = [folder / name for name in ("config.json", "adapter_config.json") if (folder / name).is_file()]
    return {"path": str(folder.resolve()), "files": _files([*files, *config])}


def _files(files: list[Path]) -> dict[str, list[int]]:
    """Size, inode and times of change of each file: enough to see that it is not the one an interrupted run read."""

    def entry(status: os.stat_result) -> list[int]:
        return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]

    return {str(file.resolve()): entry(file.stat()) for file in files}

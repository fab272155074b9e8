"""A checkpoint as a stream of tensors: read, hashed and written one tensor at a time, never the whole model.

A safetensors file is eight bytes (the length n of its header, little endian), n bytes of JSON that give each tensor's
dtype, shape and place, and then the tensors' bytes. The safetensors library checks every file when it is opened; the
bytes are then read here, tensor by tensor, since the library's writer wants all tensors of a file in memory at once.
"""

import json
import math
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge.errors import ExpungeError, ModelError
from expunge.models.folders import is_adapter_folder
from expunge.models.header import read_header
from expunge.reading import read_object, refuse_links

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Never copied: other forms of the weights (some are pickles, which can run code) and the state of a training run.
NOT_COPIED = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".h5", ".msgpack", ".gguf",
    ".onnx", ".partial",
}  # fmt: skip
RECORD = "edit.json"  # what made an edited model (`expunge edit`); no longer true of a copy that is changed again
CHUNK = 1 << 24  # bytes
SMALL = 1 << 26  # bytes; the largest tokenizers take half of it


@dataclass(frozen=True)
class Stored:
    """Where a tensor stands: its file, dtype by its safetensors name, shape, first byte in the file, size in bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def read(self) -> Tensor:
        """The tensor, in memory of its own. Raises ModelError for a dtype torch does not have."""
        if self.dtype not in DTYPES:
            raise ModelError(f"{self.file} holds a tensor of the unknown dtype {self.dtype}.")
        data = torch.empty(self.size, dtype=torch.uint8)
        with self.file.open("rb") as handle:
            handle.seek(self.start)
            if handle.readinto(data.numpy().data) != self.size:
                raise ModelError(f"{self.file} ends early: it is damaged or is being written.")
        return data.view(DTYPES[self.dtype]).reshape(self.shape)

    def chunks(self) -> Iterator[bytes]:
        """The tensor's bytes, a few million at a time."""
        with self.file.open("rb") as handle:
            handle.seek(self.start)
            for done in range(0, self.size, CHUNK):
                yield handle.read(min(CHUNK, self.size - done))


def read_file(file: Path, error: type[ExpungeError] = ModelError) -> tuple[dict[str, str], dict[str, Stored]]:
    """The metadata and the tensors of one safetensors file. Raises `error` if it is missing or damaged."""
    metadata, entries = read_header(file, error)
    return metadata, {name: Stored(file, **vars(entry)) for name, entry in entries.items()}


def head(file: Path) -> bytes:
    """What stands before the tensors in a safetensors file: the header and, in eight bytes before it, its length."""
    with file.open("rb") as handle:
        size = handle.read(8)
        return size + handle.read(struct.unpack("<Q", size)[0])


def stored(folder: Path) -> dict[str, Stored]:
    """Every tensor of a model or adapter folder by its name, in sorted order.

    Raises ModelError if there are no safetensors weights, a file is damaged, or index and shards disagree.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder on this machine. Give a model folder with safetensors weights.")
    refuse_links(folder, ModelError)
    index = folder / INDEX
    if is_adapter_folder(folder):
        found = read_file(folder / ADAPTER_WEIGHTS)[1]
    elif (folder / WEIGHTS).is_file() or not index.is_file():
        found = read_file(folder / WEIGHTS)[1]
    else:
        found = _sharded(folder, index)
    return dict(sorted(found.items()))


def _sharded(folder: Path, index: Path) -> dict[str, Stored]:
    listed = read_object(index, ModelError).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(shard, str) for shard in listed.values()):
        raise ModelError(f"{index} is damaged: its weight_map is no table of tensors and their files.")
    shards = sorted(set(listed.values()))
    found: dict[str, Stored] = {}
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors") or not shard.isprintable():
            raise ModelError(f"{index} names {shard!r}: a shard must be a .safetensors file in the folder itself.")
        held = read_file(folder / shard)[1]
        for name in held:
            if listed.get(name) != shard:
                other = f"in {listed[name]}" if name in listed else "nowhere"
                raise ModelError(f"{folder / shard} holds {name}, which {index.name} places {other}.")
        found |= held
    missing = sorted(set(listed) - set(found))
    if missing:
        raise ModelError(
            f"{index} places {missing[0]} in {listed[missing[0]]}, which does not hold it "
            f"({len(missing)} of {len(listed)} tensors are missing). The folder is incomplete: get its weights again."
        )
    return found


def weight_files(folder: Path) -> dict[str, Path]:
    """The file of each tensor of a model or adapter folder. Raises ModelError as `stored`."""
    return {name: item.file for name, item in stored(folder).items()}


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every tensor in the order of their names, one in memory at a time."""
    return ((name, item.read()) for name, item in stored(folder).items())


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, as safetensors stores them."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_file(
    file: Path,
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    tensor: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file tensor by tensor: `layout` gives each one's dtype and shape, `tensor` makes it."""
    widths = {name: torch.empty(0, dtype=DTYPES[dtype]).element_size() for name, (dtype, _) in layout.items()}
    # Widest first keeps every tensor aligned to its own width.
    order = sorted(layout, key=lambda name: (-widths[name], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        dtype, shape = layout[name]
        begin, end = end, end + widths[name] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            handle.write(raw(tensor(name)))


def rewrite(source: Path, names: Iterable[str], change: Callable[[str, Tensor], Tensor], out: Path) -> None:
    """Write the folder `source` at `out` with `change(name, old)` in place of each tensor in `names`.

    Shards, index, headers and the order of the bytes stay the source's; tensors not named are copied bit by bit;
    small files (configuration, tokenizer) are copied as they are, pickles and subfolders are left out. `change` must
    keep dtype and shape. The caller makes the writing atomic (`files.atomic_path`). Raises ModelError on a name the
    source does not hold.
    """
    held, chosen = stored(source), set(names)
    unknown = sorted(chosen - set(held))
    if unknown:
        raise ModelError(f"{source} holds no tensor {unknown[0]}.")
    out.mkdir(parents=True)
    for file in sorted({item.file for item in held.values()}):
        with (out / file.name).open("wb") as handle:
            handle.write(head(file))
            inside = [(item.start, name, item) for name, item in held.items() if item.file == file]
            for _, name, item in sorted(inside, key=lambda entry: entry[:2]):
                if name not in chosen:
                    handle.writelines(item.chunks())
                    continue
                new = change(name, item.read())
                if NAMES.get(new.dtype) != item.dtype or tuple(new.shape) != item.shape:
                    raise ModelError(
                        f"{name} has shape {tuple(new.shape)} and dtype {new.dtype}; {file} stores it as "
                        f"{item.shape}, {item.dtype}."
                    )
                handle.write(raw(new))
    copy_small_files(source, out)


def copy_small_files(source: Path, out: Path) -> None:
    """Copy configuration, tokenizer and the like: no weights, pickles, hidden files or subfolders, none above 64 MiB."""
    single = (source / WEIGHTS).is_file()
    for file in sorted(source.iterdir()):
        skipped = file.suffix in NOT_COPIED or file.name.startswith(".") or file.name == RECORD
        skipped = skipped or (single and file.name == INDEX)
        if file.is_file() and not skipped and file.stat().st_size <= SMALL:
            shutil.copyfile(file, out / file.name)


def write_like(
    source: Path, changed: Mapping[str, Tensor], out: Path, *, aliases: Mapping[str, str] | None = None
) -> None:
    """Write the folder `source` at `out` with the tensors of `changed`, cast to the dtype the source stores.

    `aliases` maps a tied weight's second name to its first: a value given under either is written under every one of
    them that the source stores. Where the new value comes in a narrower dtype than the source's, entries that only
    equal the source rounded to it keep the source's bits. Raises ModelError on an unknown name, a different shape, or
    a value too large for the source's dtype.
    """
    values = {}
    held = stored(source)
    for name, value in changed.items():
        tied = {name} | _tied(name, aliases or {})
        places = [place for place in tied if place in held]
        if not places:
            raise ModelError(f"{source} holds no tensor {name}.")
        values |= {place: value for place in places if place == name or place not in changed}
    rewrite(source, values, lambda name, old: _cast(name, values[name], old), out)


def _tied(name: str, aliases: Mapping[str, str]) -> set[str]:
    first = aliases.get(name, name)
    return {first} | {other for other, owner in aliases.items() if owner == first}


def _cast(name: str, new: Tensor, old: Tensor) -> Tensor:
    new = new.detach().cpu()
    if new.shape != old.shape:
        raise ModelError(f"{name} has shape {tuple(new.shape)}; the model folder stores {tuple(old.shape)}.")
    if new.dtype == old.dtype:
        return new
    cast = new.to(old.dtype)
    if not (old.is_floating_point() and new.is_floating_point()):
        return cast
    if torch.finfo(new.dtype).bits < torch.finfo(old.dtype).bits:
        return torch.where(old.to(new.dtype) == new, old, cast)
    if bool((new.isfinite() & ~cast.isfinite()).any()):
        raise ModelError(f"{name} has values too large for {old.dtype}, the dtype of the model folder.")
    return cast

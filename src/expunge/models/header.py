"""The header of a safetensors file, checked in full before a byte of a tensor is read.

A safetensors file is eight bytes (the length n of its header, little endian), n bytes of JSON that give each tensor's
dtype, shape and place, and then the tensors' bytes, which follow each other without a gap to the end of the file.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.errors import ExpungeError
from expunge.reading import parse_json, read_bytes

LONGEST = 100_000_000  # bytes of a header, the limit of the safetensors library
POINTER = b"version https://git-lfs"
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6,
    "F6_E3M2": 6, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor as the header describes it; `start` is its first byte in the file, `size` counts bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(file: Path, error: type[ExpungeError]) -> tuple[dict[str, str], dict[str, Entry]]:
    """The metadata and the tensors' entries, in the order of their places.

    Raises `error`, which names the file, if it is missing, not a regular file, cut off, no safetensors file, or if two
    tensors overlap, a gap is between them, or a size does not fit dtype and shape.
    """
    begin, total, text = _parts(file, error)
    header = parse_json(text, f"{file} is damaged: its header", error)
    if not isinstance(header, dict):
        raise error(f"{file} is damaged: its header is no JSON object.")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise error(f"{file} is damaged: its header's metadata are not texts.")
    entries = {name: _entry(item, begin, f"{file} is damaged: {name!r}", error) for name, item in header.items()}
    ordered = dict(sorted(entries.items(), key=lambda pair: (pair[1].start, pair[1].size)))
    end = begin
    for name, entry in ordered.items():
        if entry.start != end:
            odd = (
                "overlaps the tensor before it" if entry.start < end else "does not begin where the one before it ends"
            )
            raise error(f"{file} is damaged: {name!r} {odd}.")
        end += entry.size
    if end != total:
        odd = "ends early" if end > total else "has bytes that belong to no tensor"
        raise error(f"{file} is damaged: it {odd} ({total} bytes, {end} expected). Get the file again.")
    return metadata, ordered


def _parts(file: Path, error: type[ExpungeError]) -> tuple[int, int, str]:
    """The place of the first tensor, the size of the file and the text of the header."""
    start = read_bytes(file, error, first=8)
    total = file.stat().st_size
    if len(start) < 8:
        raise error(f"{file} is damaged: it has {total} bytes, too few for a safetensors file.")
    if POINTER.startswith(start):
        raise error(f"{file} is a Git LFS pointer, not the weights. Run `git lfs pull` in its folder.")
    (length,) = struct.unpack("<Q", start)
    if length > min(LONGEST, total - 8):
        raise error(f"{file} is damaged or is no safetensors file: its header would have {length} bytes of {total}.")
    header = read_bytes(file, error, first=8 + length)[8:]
    try:
        return 8 + length, total, header.decode("utf-8")
    except UnicodeDecodeError:
        raise error(f"{file} is damaged or is no safetensors file: its header is not UTF-8 text.") from None


def _entry(item: Any, begin: int, where: str, error: type[ExpungeError]) -> Entry:
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise error(f"{where} has no dtype, shape and data_offsets.")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise error(f"{where} has the unknown dtype {dtype!r}.")
    if not _sizes(shape) or math.prod(shape) >= 2**63:
        raise error(f"{where} has a shape that is no list of sizes.")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise error(f"{where} has data_offsets that are no two places in the file.")
    first, last = offsets
    if math.prod(shape) * BITS[dtype] != 8 * (last - first):
        raise error(f"{where} takes {last - first} bytes, which does not fit {dtype} and shape {shape}.")
    return Entry(dtype, tuple(shape), begin + first, last - first)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)

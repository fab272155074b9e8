"""The patch file: one safetensors file whose header carries the manifest as JSON under the key "expunge".

A *dense* patch holds, for each tensor that differs, the difference of the two bit patterns read as integers, and not
the difference of the two numbers: floating-point subtraction rounds, so base + (patched − base) is not always patched.
With the bits of an n-bit entry as an n-bit two's complement integer, d = bits(patched) − bits(base), wrapping around,

    bits(patched) = bits(base) + d        bits(base) = bits(patched) − d        (mod 2ⁿ)

hold exactly for every dtype and every value, signed zeros and denormals too, and patches laid one on the other add up
exactly. d is int16 for bf16 and fp16, int32 for fp32, int64 for fp64, so a tensor whose every entry changed takes as much
room as itself; one that did not change is not stored. A tensor of which only some entries changed is stored *sparsely*
where that is smaller, as two tensors: NAME#bits, one bit an entry, 1 where it changed (uint8, [⌈n/8⌉], the first entry in
the lowest bit of the first byte), and NAME#values, the differences of the changed entries in their order.

A *lora* patch holds the tensors of a new PEFT adapter as they are and its configuration in the manifest.

The header's entry "sha256" is a checksum of the whole file (see `models.checksum`).
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from expunge.errors import PatchError
from expunge.models.adapter_config import check_adapter_config
from expunge.models.checkpoint import DTYPES, NAMES, Stored, read_file, write_file
from expunge.models.checksum import BLANK, NAME, check_file, seal_file
from expunge.models.fingerprint import fingerprint_of
from expunge.models.mask import pack, unpack
from expunge.reading import parse_json

FILE = "patch.safetensors"
KEY = "expunge"
VERSION = 3  # 1: without sparse tensors; 2: without a checksum
ENTRIES = 1 << 18  # how many entries of a tensor the statistics take at a time: few enough to stay in the cache
BITS, VALUES = "#bits", "#values"
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Change:
    """What a patch does to one tensor of the base; norms are L2, of numbers taken to fp32 (fp64 stays), no unit.

    `change_norm` and `max_change` are of patched − base, `changed` counts the entries whose bits differ. A norm is
    None where the base holds NaN or infinity, or where patches were composed without their base. `sparse`: only the changed
    entries are stored.
    """

    shape: tuple[int, ...]
    dtype: str
    change_norm: float | None
    base_norm: float | None
    max_change: float | None
    changed: int
    sparse: bool = False

    @property
    def entries(self) -> int:
        return math.prod(self.shape)

    @property
    def share(self) -> float:
        """The share of entries changed, in [0, 1]."""
        return self.changed / self.entries if self.entries else 0.0

    @property
    def relative(self) -> float | None:
        """‖patched − base‖ / ‖base‖; None where the base is zero or not finite."""
        if self.change_norm is None or not self.base_norm:
            return None
        return self.change_norm / self.base_norm


@dataclass(frozen=True)
class Totals:
    """The whole base model: its tensors, entries and L2 norm, and how much of them the patch changes."""

    tensors: int
    tensors_changed: int
    entries: int
    entries_changed: int
    change_norm: float | None
    base_norm: float | None


@dataclass(frozen=True)
class Manifest:
    """What a patch is, what made it and which weights it belongs to (`base`, `patched`: fingerprints, sha256).

    For kind "lora" `patched` is the fingerprint of the adapter's own tensors, and `changes` are those of a merge.
    """

    kind: Literal["dense", "lora"]
    version: str
    base: str
    patched: str
    dtypes: tuple[str, ...]
    changes: dict[str, Change]
    totals: Totals
    method: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] | None = None
    format: int = VERSION

    def dump(self) -> str:
        """The manifest as strict JSON: what JSON has no form for becomes null (NaN, infinity) or text (paths)."""
        loose = json.dumps(asdict(self), default=_plain)
        return json.dumps(json.loads(loose, parse_constant=lambda _: None), allow_nan=False)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


MANIFEST = TypeAdapter(Manifest)


@dataclass(frozen=True)
class Patch:
    """An opened patch: the manifest is in memory, tensors are read from the file one at a time."""

    path: Path
    manifest: Manifest
    stored: Mapping[str, Stored]
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: Path | str) -> "Patch":
        """Read the header of a patch file, or of `patch.safetensors` in a folder.

        Raises PatchError if the file is missing, damaged, not a patch, or of a newer format.
        """
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        metadata, stored = read_file(path, PatchError)
        if KEY not in metadata:
            raise PatchError(f"{path} is a safetensors file, but not a patch: its header has no entry {KEY!r}.")
        value = parse_json(metadata[KEY], f"{path} is damaged: its manifest cannot be read", PatchError)
        newer = value.get("format") if isinstance(value, dict) else None
        if isinstance(newer, int) and newer > VERSION:
            raise PatchError(f"{path} has patch format {newer}; this expunge reads {VERSION}. Install a newer one.")
        try:
            manifest = MANIFEST.validate_python(value)
        except ValidationError as error:
            raise PatchError(f"{path} is damaged: its manifest cannot be read ({error}).") from error
        odd = next((name for name, change in manifest.changes.items() if change.dtype not in DTYPES), None)
        if odd is not None:
            raise PatchError(f"{path}: {odd} has the dtype {manifest.changes[odd].dtype!r}, which torch does not have.")
        held = {name: (item.dtype, item.shape) for name, item in stored.items()}
        if manifest.kind == "dense" and held != layout(manifest.changes):
            raise PatchError(f"{path} is damaged: its tensors are not those its manifest lists.")
        if manifest.kind == "lora":
            if manifest.adapter is None:
                raise PatchError(f"{path} is damaged: its manifest has no adapter configuration.")
            check_adapter_config(manifest.adapter, [item.shape for item in stored.values()], path)
        return cls(path, manifest, stored, metadata)

    def verify(self) -> None:
        """Read the whole file and compare it with its checksum. Raises PatchError if it is damaged.

        A file of format 1 or 2 has none; of a lora patch the tensors are compared with the manifest's fingerprint then.
        """
        required = self.manifest.format > 2
        if check_file(self.path, dict(self.metadata), PatchError, required=required) or self.manifest.kind == "dense":
            return
        if fingerprint_of(self.stored) != self.manifest.patched:
            raise PatchError(f"{self.path} is damaged: its tensors are not those its manifest names. Make it again.")

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before relying on the file."""
        if self.manifest.format > 2:
            return ()
        return (
            f"{self.path} has no checksum, since an older version wrote it: damage to its manifest would not be seen",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors it changes (dense), or the adapter's (lora)."""
        return tuple(self.manifest.changes if self.manifest.kind == "dense" else self.stored)

    def tensor(self, name: str) -> Tensor:
        """One tensor: bit differences as integers in the base's shape (dense), or the adapter's floats (lora).

        Raises PatchError if a sparse tensor's two parts do not fit each other.
        """
        if name in self.stored:
            return self.stored[name].read()
        values, shape = self.stored[name + VALUES].read(), self.manifest.changes[name].shape
        where = unpack(self.stored[name + BITS].read(), shape)
        if int(where.sum()) != len(values):
            raise PatchError(f"{self.path} is damaged: {name} has {len(values)} values for {int(where.sum())} places.")
        return torch.zeros(shape, dtype=values.dtype).masked_scatter_(where, values)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size

    def inspect(self) -> dict[str, Any]:
        """All numbers of the manifest, with the size in bytes and one row per changed tensor.

        The rows are sorted by `relative` change, largest first.
        """
        manifest, totals = self.manifest, self.manifest.totals
        rows = [
            {"name": name, **asdict(change), "share": change.share, "relative": change.relative}
            for name, change in manifest.changes.items()
        ]
        head = json.loads(manifest.dump())
        del head["changes"]
        head["totals"] |= {
            "share": totals.entries_changed / totals.entries if totals.entries else 0.0,
            "relative": _ratio(totals.change_norm, totals.base_norm),
        }
        return {
            "path": str(self.path),
            "bytes": self.size,
            **head,
            "tensors": sorted(rows, key=lambda row: (-(row["relative"] or 0.0), row["name"])),
        }


def _ratio(change: float | None, base: float | None) -> float | None:
    return change / base if change is not None and base else None


def bits(tensor: Tensor) -> Tensor:
    """The bit patterns of a tensor's entries as integers of the same width and shape."""
    return tensor.contiguous().view(INTEGERS[tensor.element_size()])


def integer(dtype: str) -> str:
    """The dtype a dense patch stores differences of `dtype` in, both by their safetensors names."""
    return NAMES[INTEGERS[torch.empty(0, dtype=DTYPES[dtype]).element_size()]]


def layout(changes: Mapping[str, Change]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of everything a dense patch with these changes stores, by the names in the file."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, change in changes.items():
        kind = integer(change.dtype)
        if change.sparse:
            found[name + BITS] = ("U8", (-(-change.entries // 8),))
            found[name + VALUES] = (kind, (change.changed,))
        else:
            found[name] = (kind, change.shape)
    return found


def write(file: Path, manifest: Manifest, differences: Callable[[str], Tensor]) -> None:
    """Write a dense patch tensor by tensor; `differences` makes the bit differences of one, and is asked twice at most."""
    sparse = {name + end: name for name, item in manifest.changes.items() if item.sparse for end in (BITS, VALUES)}

    def piece(stored: str) -> Tensor:
        change = differences(sparse.get(stored, stored))
        if stored not in sparse:
            return change
        return pack(change != 0) if stored.endswith(BITS) else change[change != 0]

    write_sealed(file, layout(manifest.changes), piece, manifest)


def write_sealed(
    file: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]], tensor: Callable[[str], Tensor], manifest: Manifest
) -> None:
    """Write a patch file with its manifest and its checksum."""
    write_file(file, layout, tensor, {"format": "pt", KEY: manifest.dump(), NAME: BLANK})
    seal_file(file)


def difference(base: Tensor, patched: Tensor) -> Tensor:
    """bits(patched) − bits(base), wrapping around."""
    return bits(patched) - bits(base)


def shift(tensor: Tensor, by: Tensor, sign: int) -> Tensor:
    """The tensor whose bits are bits(tensor) + sign · `by`, wrapping around; `sign` is 1 or −1."""
    return bits(tensor).add(by, alpha=sign).view(tensor.dtype)


def measure(base: Tensor, patched: Tensor) -> Change:
    """The statistics of one tensor's change; sums run in fp64, part by part, so that memory stays small."""
    wide = torch.float64 if base.dtype in (torch.float64, torch.int64, torch.int32) else torch.float32
    squares = before = largest = 0.0
    changed = 0
    for old, new in zip(base.reshape(-1).split(ENTRIES), patched.reshape(-1).split(ENTRIES), strict=True):
        moved = new.to(wide) - old.to(wide)
        squares += float(torch.linalg.vector_norm(moved, dtype=torch.float64)) ** 2
        before += float(torch.linalg.vector_norm(old.to(wide), dtype=torch.float64)) ** 2
        largest = max(largest, float(moved.abs().max())) if moved.numel() else largest
        changed += int(torch.count_nonzero(bits(old) != bits(new)))
    norm = finite(squares**0.5)
    return Change(
        shape=tuple(base.shape),
        dtype=NAMES[base.dtype],
        change_norm=norm,
        base_norm=finite(before**0.5),
        max_change=None if norm is None else largest,
        changed=changed,
        sparse=sparse_is_smaller(base.numel(), changed, base.element_size()),
    )


def sparse_is_smaller(entries: int, changed: int, width: int) -> bool:
    """Whether a bit an entry and the changed ones take fewer bytes than all entries, `width` bytes each."""
    return -(-entries // 8) + changed * width < entries * width


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

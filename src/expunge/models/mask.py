"""Which entries of a model's parameters an update may touch: hard masks as packed bits, soft ones as weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from expunge.errors import ConfigurationError
from expunge.files import atomic_path
from expunge.models import checksum
from expunge.models.checkpoint import NAMES, read_file, write_file
from expunge.models.fingerprint import is_of
from expunge.models.loading import Loaded
from expunge.reading import parse_json

KEY = "expunge-mask"
OLD = "the mask file has no checksum, since an older version wrote it: damage to it would not be seen"
VERSION = 2  # 1: without a checksum


@dataclass(frozen=True)
class Header:
    """What a mask file says of itself: its format, the parameters' shapes, and what made it."""

    format: int
    shapes: dict[str, list[Annotated[int, Field(strict=True, ge=0)]]]
    info: dict[str, Any] = field(default_factory=dict)


HEADER = TypeAdapter(Header)


@dataclass(frozen=True)
class Mask:
    """One value for every entry of every parameter a descent may train.

    Hard: `tensors[name]` holds the bits of a parameter, eight to a byte, the first entry in the lowest bit: uint8,
    [⌈n/8⌉]; 1 is trained, 0 stays frozen. Soft: `tensors[name]` holds floats in the parameter's shape by which the
    update is multiplied. `info` says what made it: attribution, settings, the model's fingerprint, counts of examples.
    """

    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    info: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Tensor], info: Mapping[str, Any] | None = None) -> "Mask":
        """From one boolean (hard) or floating (soft) tensor a parameter."""
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        packed = {name: pack(value) if value.dtype == torch.bool else value.cpu() for name, value in values.items()}
        return cls(packed, shapes, dict(info or {}))

    def __getitem__(self, name: str) -> Tensor:
        """The parameter's mask in its shape: boolean (hard) or floating (soft)."""
        tensor, shape = self.tensors[name], self.shapes[name]
        return tensor if self.soft else unpack(tensor, shape)

    @property
    def soft(self) -> bool:
        return any(tensor.is_floating_point() for tensor in self.tensors.values())

    @cached_property
    def kept(self) -> dict[str, int | float]:
        """Entries of each parameter that may change (hard), or the sum of its weights (soft)."""
        if self.soft:
            return {name: float(tensor.double().sum()) for name, tensor in self.tensors.items()}
        return {
            name: int(np.bitwise_count(tensor.numpy()).sum(dtype=np.int64)) for name, tensor in self.tensors.items()
        }

    @property
    def entries(self) -> int:
        return sum(map(prod, self.shapes.values()))

    @property
    def density(self) -> float:
        """The share of entries kept, or their mean weight."""
        return sum(self.kept.values()) / max(1, self.entries)

    def save(self, path: Path | str, *, overwrite: bool = False) -> Path:
        """Write a safetensors file. Raises OutputExistsError as `files.atomic_path` does."""
        path = Path(path)
        text = json.dumps({"format": VERSION, "shapes": self.shapes, "info": self.info}, default=str)
        layout = {name: (NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in self.tensors.items()}
        with atomic_path(path, overwrite=overwrite) as temporary:
            write_file(temporary, layout, lambda name: self.tensors[name], {KEY: text, checksum.NAME: checksum.BLANK})
            checksum.seal_file(temporary)
        return path

    @classmethod
    def open(cls, path: Path | str) -> "Mask":
        """Read a mask file. Raises ConfigurationError if it is missing, damaged or no mask."""
        path = Path(path)
        metadata, stored = read_file(path, ConfigurationError)
        if KEY not in metadata:
            raise ConfigurationError(
                f"{path} is no mask: its header has no entry {KEY!r}. Make one with `expunge attribute`."
            )
        head = parse_json(metadata[KEY], f"{path} is no mask: its header", ConfigurationError)
        try:
            header = HEADER.validate_python(head)
        except ValidationError as error:
            raise ConfigurationError(
                f"{path} is no mask, or is damaged: its header does not fit ({error.errors()[0]['msg']}). Make one with "
                "`expunge attribute`."
            ) from None
        shapes = {name: tuple(shape) for name, shape in header.shapes.items()}
        if header.format not in (1, VERSION):
            raise ConfigurationError(f"{path} is damaged or of another format: make it again with `expunge attribute`.")
        sealed = checksum.check_file(path, metadata, ConfigurationError, required=header.format > 1)
        dtypes = {item.dtype for item in stored.values()}
        known = dtypes == {"U8"} or dtypes <= {"F64", "F32", "F16", "BF16"}
        if set(shapes) != set(stored) or not known:
            raise ConfigurationError(f"{path} is damaged or of another format: make it again with `expunge attribute`.")
        for name, item in stored.items():
            expected = (-(-prod(shapes[name]) // 8),) if item.dtype == "U8" else shapes[name]
            if item.shape != expected:
                raise ConfigurationError(f"{path} is damaged: {name} does not hold {prod(shapes[name])} entries.")
        info = header.info | ({} if sealed else {"unsealed": OLD})
        return cls({name: item.read() for name, item in stored.items()}, shapes, info)

    def check(self, loaded: Loaded) -> None:
        """Raise ConfigurationError unless this mask was made for exactly these weights and trainable parameters."""
        wanted = {name: tuple(param.shape) for name, param in loaded.model.named_parameters() if param.requires_grad}
        for name in sorted(wanted.keys() | self.shapes.keys()):
            if wanted.get(name) != self.shapes.get(name):
                theirs, ours = self.shapes.get(name, "none"), wanted.get(name, "none")
                raise ConfigurationError(
                    f"The mask is for another model: {name} has shape {theirs} in the mask and {ours} in {loaded.folder}. "
                    "Make a mask for this model with `expunge attribute`."
                )
        made_for = self.info.get("model")
        if made_for and loaded.folder.is_dir() and not is_of(made_for, loaded.folder):
            raise ConfigurationError(
                f"The mask was made for other weights (fingerprint {made_for[:16]}…) than those of {loaded.folder}. "
                "Make a mask for this model with `expunge attribute`."
            )


def pack(mask: Tensor) -> Tensor:
    """A boolean tensor of n entries as bits: uint8, [⌈n/8⌉]."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().reshape(-1).numpy(), bitorder="little"))


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=prod(shape), bitorder="little").view(bool)).reshape(shape)

"""Where a mask's weights lie: by layer and kind of module, and how far two masks agree."""

import re
from collections import defaultdict
from math import prod
from typing import Any

import torch

from expunge.models.mask import Mask

BINS = 20


def place(name: str) -> tuple[int | None, str]:
    """The layer (None outside the layers) and the kind of module of a parameter: (3, "q_proj")."""
    layer = re.search(r"\.(\d+)\.", name)
    parts = [part for part in name.split(".") if part not in ("weight", "default", "modules_to_save")]
    if parts[-1] in ("bias", "lora_A", "lora_B", "lora_magnitude_vector"):
        parts[-2:] = [f"{parts[-2]}.{parts[-1]}"]
    return (int(layer[1]) if layer else None), parts[-1]


def describe(mask: Mask) -> dict[str, Any]:
    """Plain values for a report: the density (hard) or mean weight (soft) of each place, and a histogram of soft weights."""
    kept: dict[tuple[int | None, str], float] = defaultdict(float)
    entries: dict[tuple[int | None, str], int] = defaultdict(int)
    for name, shape in mask.shapes.items():
        kept[place(name)] += mask.kept[name]
        entries[place(name)] += prod(shape)
    cells = [
        {"layer": layer, "module": module, "value": kept[layer, module] / entries[layer, module], "entries": count}
        for (layer, module), count in entries.items()
    ]
    found = {"kind": "mean weight" if mask.soft else "density", "value": mask.density, "cells": cells}
    if mask.soft:
        counts = sum(torch.histc(weights.float().cpu(), BINS, 0.0, 1.0) for weights in mask.tensors.values())
        edges = [index / BINS for index in range(BINS + 1)]
        found["histogram"] = {"edges": edges, "counts": [int(count) for count in counts]}  # type: ignore[union-attr]
    return found

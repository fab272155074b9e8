"""Where a mask lets the model change: its density by layer and kind of module, and how far two masks agree."""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from expunge.errors import ConfigurationError
from expunge.models.mask import Mask

BINS = 20
NO_MODULE = {"weight", "default", "base_layer", "modules_to_save"}  # of a parameter's name; most are PEFT's
PART = {"bias", "lora_A", "lora_B", "lora_magnitude_vector"}  # told apart within a module
SHARED = {"c_proj"}  # GPT-2 calls a layer of the attention and one of the MLP so


def place(name: str) -> tuple[int | None, str]:
    """The transformer layer a parameter belongs to (None: to none of them) and the kind of module within it.

    "model.layers.3.self_attn.q_proj.weight" is (3, "q_proj"); that module's LoRA matrix A is (3, "q_proj.lora_A").
    """
    parts = name.split(".")
    numbers = [int(part) for part in parts if part.isdigit()]
    words = [part for part in parts if not part.isdigit() and part not in NO_MODULE] or [name]
    module = len(words) - 1 - (words[-1] in PART and len(words) > 1)
    first = module - (words[module] in SHARED and module > 0)
    return (numbers[0] if numbers else None), ".".join(words[first:])


def by_place(mask: Mask) -> list[dict[str, Any]]:
    """The share of entries kept (hard) or the mean weight (soft) of each layer and kind of module, as `cells`."""
    sums: dict[tuple[int | None, str], list[float]] = {}
    for name, shape in mask.shapes.items():
        total = sums.setdefault(place(name), [0, 0])
        total[0] += mask.kept[name]
        total[1] += prod(shape)
    return [
        {"layer": layer, "module": module, "value": kept / max(1, entries), "entries": entries}
        for (layer, module), (kept, entries) in sums.items()
    ]


def overlap(first: Mask, second: Mask) -> list[dict[str, Any]]:
    """How far two hard masks agree: over all entries (module "all"), then for each kind of module.

    jaccard: |A ∩ B| / |A ∪ B|. expected: what two independent masks with these two densities p and q would have,
    pq / (p + q − pq). Both None where neither mask keeps an entry. Raises ConfigurationError for soft masks, and for
    masks of different models.
    """
    if first.soft or second.soft:
        raise ConfigurationError("Overlap counts entries that two masks keep; a soft mask keeps all to some degree.")
    if first.shapes != second.shapes:
        raise ConfigurationError("The two masks are for different models: their parameters' names or shapes differ.")
    sums: dict[str, np.ndarray] = {"all": np.zeros(4, dtype=np.int64)}
    for name, shape in first.shapes.items():
        both = int(np.bitwise_count(first.tensors[name].numpy() & second.tensors[name].numpy()).sum(dtype=np.int64))
        counts = np.array([both, first.kept[name], second.kept[name], prod(shape)])
        for module in ("all", place(name)[1]):
            sums[module] = sums.get(module, 0) + counts
    return [{"module": module, **_agreement(*map(int, counts))} for module, counts in sums.items()]


def _agreement(both: int, first: int, second: int, entries: int) -> dict[str, Any]:
    either = first + second - both
    if not either:
        return {"jaccard": None, "expected": None, "entries": entries}
    p, q = first / entries, second / entries
    return {"jaccard": both / either, "expected": p * q / (p + q - p * q), "entries": entries}


def describe(mask: Mask, others: Mapping[str, Mask] | None = None) -> dict[str, Any]:
    """What a report shows of a mask, as plain JSON; `others`: masks to compare it with, by what to call them.

    kind: "density" (hard) or "mean weight" (soft). value: that of the whole. cells: `by_place`. overlap: `overlap`
    with each of `others`, whose name is under "with". Soft masks also have a histogram of their weights over [0, 1]: 21
    edges, 20 counts.
    """
    found: dict[str, Any] = {
        "kind": "mean weight" if mask.soft else "density",
        "value": mask.density,
        "cells": by_place(mask),
        "overlap": [{"with": name, **row} for name, other in (others or {}).items() for row in overlap(mask, other)],
    }
    if mask.soft:
        edges = [index / BINS for index in range(BINS + 1)]
        counts = np.zeros(BINS, dtype=np.int64)
        for weights in mask.tensors.values():
            counts += np.histogram(weights.float().numpy().clip(0, 1), edges)[0]
        found["histogram"] = {"edges": edges, "counts": counts.tolist()}
    return found

"""Checkpoint arithmetic from folders to a folder: what may be combined with what, and the run itself."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from expunge import __version__
from expunge.errors import ConfigurationError, ModelError, OutputError
from expunge.files import write_json
from expunge.models.arithmetic import Edit, Shard, Stream
from expunge.models.checkpoint import RECORD, copy_small_files
from expunge.models.resumable import Growing, resumable
from expunge.models.sources import sources
from expunge.outputs import reserved
from expunge.patch.plan import Plan, plan

LARGEST = torch.finfo(torch.float32).max
MARGIN = 1 << 26  # bytes for configuration, tokenizer and journal


@dataclass(frozen=True)
class Edited:
    """What `edit` did.

    `changed` counts the tensors of which at least one bit changed, `change_norm` is ‖α·w⊙(plus − minus)‖ (L2) before
    the rounding to the base's dtype, `moved` the bytes read and written in `seconds`, `resumed` how many shards an
    earlier run had finished, `checksums` the sha256 of each shard.
    """

    out: Path
    tensors: int
    changed: int
    change_norm: float
    moved: int
    seconds: float
    resumed: int
    checksums: Mapping[str, str]
    notes: tuple[str, ...]


def edit(
    base: Path | str,
    *,
    plus: Path | str | None = None,
    minus: Path | str | None = None,
    scale: float,
    weights: Path | str | None = None,
    out: Path | str,
    overwrite: bool = False,
    resume: bool = True,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Edited:
    """Write base + scale · w⊙(plus − minus) as a model folder at `out`, in constant memory.

    Task arithmetic (arXiv 2212.04089): with `plus` fine-tuned from `minus`, scale > 0 adds what was learned and
    scale < 0 removes it. There is no default scale: it is chosen on validation data.

    base: a model folder; its shards, index, dtypes, configuration and tokenizer are kept. plus, minus: two models with
    the base's tensors and shapes in any float dtype, or LoRA adapters for it, each standing for its s·B·A; an adapter
    may be given alone, a model may not. If base is itself an adapter, all are, and the formula is applied to the
    adapter's own tensors. weights: a safetensors file with w under the base's names and in its shapes, any float dtype;
    a tensor may only be missing where plus and minus do not differ; by default w = 1. The arithmetic is fp32 (fp64
    where base, plus or minus is), rounded once; where plus and minus do not differ, the base's bits are kept.

    A run that was killed goes on from its finished shards when the same call is made again, unless `resume` is false.
    `progress(done, total)` hears of bytes, `note` of what the person should know; `workers`: threads that compute
    (4). Shards' checksums are written to `edit.json` in `out`.

    Raises ModelError if tensors, shapes or dtypes do not fit (quantized and fp8 models are refused), a file is missing
    or damaged, a value is NaN or infinite, plus and minus are the same weights or the change is lost in rounding;
    ConfigurationError for settings that make no sense together; OutputError if `out` exists, lies in an input, or the
    disk is full. `out` is then as it was.
    """
    started, out = time.perf_counter(), Path(out)
    tell, notes = note or (lambda _: None), []
    if not 0 < abs(scale) < LARGEST:
        raise ConfigurationError(f"scale must be a number other than 0 within ±{LARGEST:.3g}, not {scale:g}.")
    with reserved(out, inputs=sources([base, plus, minus, weights]), folder=True, overwrite=overwrite):
        edited = _edit(out, plan(base, plus, minus, weights), scale, resume, workers, progress, tell, notes)
    return replace(edited, seconds=time.perf_counter() - started)


def _edit(
    out: Path,
    made: Plan,
    scale: float,
    resume: bool,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
    tell: Callable[[str], None],
    notes: list[str],
) -> Edited:
    for text in made.notes:
        notes.append(text)
        tell(text)
    request = {"version": __version__, "scale": scale, **made.identity}
    with resumable(out, request, resume=resume) as growing:
        shards = {name: list(edits) for name, edits in groupby(made.edits, key=lambda item: item.base.file.name)}
        _check_room(out, growing, shards)
        resumed = len(growing.finished)
        if resumed:
            notes.append(f"Going on from an interrupted run: {resumed} of {len(shards)} shards were finished.")
            tell(notes[-1])
        moved = _run(growing, shards, scale, workers, progress or (lambda *_: None))
        entries = growing.finished.values()
        changed, norm = (
            sum(len(entry["changed"]) for entry in entries),
            sum(entry["square"] for entry in entries) ** 0.5,
        )
        _check_changed(changed, norm)
        checksums = {name: growing.finished[name]["sha256"] for name in sorted(shards)}
        copy_small_files(made.base, growing.model)
        described = {"command": "edit", **request, "tensors_changed": changed, "change_norm": norm}
        write_json(growing.model / RECORD, {**described, "sha256": checksums})
    return Edited(out, len(made.edits), changed, norm, moved, 0.0, resumed, checksums, tuple(notes))


def _run(
    growing: Growing,
    shards: Mapping[str, Sequence[Edit]],
    scale: float,
    workers: int | None,
    progress: Callable[[int, int], None],
) -> int:
    """Compute and write the shards that are not finished yet; returns how many bytes that moved."""
    total, done = sum(item.moved for edits in shards.values() for item in edits), 0

    def advance(moved: int) -> None:
        nonlocal done
        done += moved
        progress(done, total)

    advance(sum(item.moved for name in growing.finished for item in shards[name]))
    before = done
    # The disk takes one shard in while the next is being computed.
    with ThreadPoolExecutor(1, "sync") as syncing, Stream(scale, workers=workers, progress=advance) as stream:
        booked = []
        for name, edits in shards.items():
            if name not in growing.finished:
                shard = stream.shard(edits, growing.model / name)
                booked.append(syncing.submit(growing.finish, name, _entry(shard)))
        for future in booked:
            future.result()
    return done - before


def _entry(shard: Shard) -> dict[str, Any]:
    return {"sha256": shard.sha256, "square": shard.square, "changed": list(shard.changed)}


def _check_room(out: Path, growing: Growing, shards: Mapping[str, Sequence[Edit]]) -> None:
    """Refuse at once what the disk has no room for."""
    left = [edits for name, edits in shards.items() if name not in growing.finished]
    need = sum(item.base.size for edits in left for item in edits) + MARGIN
    free = shutil.disk_usage(growing.folder).free
    if need > free:
        raise OutputError(
            f"{out} needs {need / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free. Nothing was changed; free some "
            "space or choose another --out, then run the command again."
        )


def _check_changed(changed: int, norm: float) -> None:
    if norm == 0:
        raise ModelError("The weights are 0 wherever plus and minus differ: the result would be the base.")
    if not changed:
        raise ModelError(
            f"The change (norm {norm:.3g}) is less than a rounding step of the base's dtype in every entry: the result "
            "would be the base. Choose a larger --scale, or give the base in fp32."
        )

"""Several patches, one laid on the other, as a single one."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from expunge import __version__
from expunge.errors import PatchError
from expunge.files import atomic_path
from expunge.models.checkpoint import DTYPES, stored
from expunge.models.fingerprint import fingerprint, is_of
from expunge.models.folders import resolve
from expunge.models.sources import sources
from expunge.outputs import reserved
from expunge.patch.format import FILE, Change, Manifest, Patch, Totals, finite, measure, shift, sparse_is_smaller, write


def compose(
    patches: Sequence[Patch | Path | str], out: Path | str, *, base: Path | str | None = None, overwrite: bool = False
) -> Patch:
    """Write to the file `out` the one patch that does what `patches` do, applied in this order.

    Dense patches only: their bit differences add up exactly, d = d₁ + d₂ + … (mod 2ⁿ), so the result applies and reverts
    bit by bit like any other. The first patch's base is its base, and each further patch must be for the model the one
    before it makes. With `base`, that model's folder, the norms of the change are measured; without it, those of tensors
    that more than one patch changes are not known (None), as the size of a change cannot be told from bits alone.

    Raises PatchError for fewer than two patches, a LoRA patch, patches that do not follow on each other, or a `base`
    that is not theirs, or a damaged file; OutputError if `out` exists and `overwrite` is false.
    """
    opened = [item if isinstance(item, Patch) else Patch.open(item) for item in patches]
    check_chain(opened)
    for patch in opened:
        patch.verify()
    out = Path(out)
    out = out / FILE if out.is_dir() else out
    names = sorted({name for patch in opened for name in patch.names})

    def total(name: str) -> Tensor:
        parts = [patch.tensor(name) for patch in opened if name in patch.manifest.changes]
        return sum(parts[1:], parts[0])

    if base is None:
        measured = {name: _summed(name, opened, total) for name in names}
    else:
        before = stored(_checked_base(resolve(base), opened[0]))
        measured = {name: _measured(before[name].read(), total(name)) for name in names}
    changes = {name: change for name, change in measured.items() if change.changed}
    manifest = Manifest(
        kind="dense",
        version=__version__,
        base=opened[0].manifest.base,
        patched=opened[-1].manifest.patched,
        dtypes=opened[0].manifest.dtypes,
        changes=changes,
        totals=_totals(opened[0].manifest.totals, changes),
        method=" + ".join(patch.manifest.method or "unnamed" for patch in opened),
        info={"composed": [_origin(patch) for patch in opened]},
    )
    inputs = sources([*(patch.path for patch in opened), *([base] if base is not None else [])])
    with (
        reserved(out, inputs=inputs, folder=False, overwrite=overwrite),
        atomic_path(out, overwrite=overwrite) as temporary,
    ):
        write(temporary, manifest, total)
    return Patch.open(out)


def check_chain(patches: Sequence[Patch]) -> None:
    """Raise PatchError unless these are two dense patches or more, each for the model the one before it makes."""
    if len(patches) < 2:
        raise PatchError("Composing takes at least two patches.")
    for patch in patches:
        if patch.manifest.kind != "dense":
            raise PatchError(
                f"{patch.path} is a LoRA patch: it holds an adapter, not differences of weights, so it cannot be added to "
                "another patch. Apply it with --merge and make a patch of the result with `expunge patch diff`."
            )
    for first, second in pairwise(patches):
        made, wanted = first.manifest.patched, second.manifest.base
        if made != wanted:
            raise PatchError(
                f"{second.path} is not for the model that {first.path} makes: expected weights with the fingerprint "
                f"{wanted[:16]}…, and the patch before it leads to {made[:16]}…. Give the patches in the order in which "
                "they were made, each on the result of the one before."
            )


def _checked_base(base: Path, first: Patch) -> Path:
    expected = first.manifest.base
    if not is_of(expected, base):
        found = fingerprint(base)
        raise PatchError(
            f"{base} is not the base of {first.path}: expected weights with the fingerprint {expected[:16]}…, found "
            f"{found[:16]}…."
        )
    return base


def _measured(old: Tensor, difference: Tensor) -> Change:
    return measure(old, shift(old, difference, 1))


def _summed(name: str, patches: Sequence[Patch], total: Callable[[str], Tensor]) -> Change:
    """The change of one tensor as far as the patches tell it: all of it where only one of them has it."""
    found = [patch.manifest.changes[name] for patch in patches if name in patch.manifest.changes]
    if len(found) == 1:
        return found[0]
    changed = int(torch.count_nonzero(total(name)))
    width = torch.empty(0, dtype=DTYPES[found[0].dtype]).element_size()
    sparse = sparse_is_smaller(found[0].entries, changed, width)
    return replace(found[0], change_norm=None, max_change=None, changed=changed, sparse=sparse)


def _totals(first: Totals, changes: dict[str, Change]) -> Totals:
    norms = [change.change_norm for change in changes.values()]
    known = [norm for norm in norms if norm is not None]
    return replace(
        first,
        tensors_changed=len(changes),
        entries_changed=sum(change.changed for change in changes.values()),
        change_norm=finite(sum(norm**2 for norm in known) ** 0.5) if len(known) == len(norms) else None,
    )


def _origin(patch: Patch) -> dict[str, object]:
    manifest = patch.manifest
    return {
        "method": manifest.method,
        "settings": manifest.settings,
        "info": manifest.info,
        "patched": manifest.patched,
    }

"""Taking one of several patches off a model, while those made after it stay."""

from collections.abc import Sequence
from pathlib import Path

import torch

from expunge.errors import PatchError
from expunge.files import atomic_path
from expunge.models.checkpoint import rewrite
from expunge.models.fingerprint import fingerprint, is_of
from expunge.models.folders import resolve
from expunge.models.sources import sources, weight_bytes
from expunge.outputs import reserved
from expunge.patch.compose import check_chain
from expunge.patch.format import Patch, shift

CARD = "README.md"


def undo(
    patch: Patch | Path | str,
    later: Sequence[Patch | Path | str],
    model: Path | str,
    out: Path | str,
    *,
    overwrite: bool = False,
) -> Path:
    """Write `model` without the inner `patch` to the folder `out`, and return it; what `later` changed stays.

    later: the patches made after it, in order; the last one's result is `model`. Exact, bit by bit, where no later
    patch changes an entry that `patch` changes: these entries are the base's again, all others are as they were.
    Where entries are shared there is no exact result, since the later update was computed at weights that hold the
    earlier one, and rounding joined the two. The folder's README.md says what was taken off and what stays.

    Raises PatchError if entries are shared, for LoRA patches, patches that do not follow on each other, or a `model`
    that is not the last one's; OutputError if `out` exists and `overwrite` is false.
    """
    chain = [item if isinstance(item, Patch) else Patch.open(item) for item in (patch, *later)]
    check_chain(chain)
    for each in chain:
        each.verify()
    first, model, out = chain[0], resolve(model), Path(out)
    inputs = sources([*(each.path for each in chain), model])
    with (
        reserved(out, inputs=inputs, folder=True, overwrite=overwrite, room=weight_bytes(model)),
        atomic_path(out, overwrite=overwrite) as temporary,
    ):
        if not is_of(chain[-1].manifest.patched, model):
            raise PatchError(
                f"{model} is not the model that {chain[-1].path} makes: its weights have the fingerprint "
                f"{fingerprint(model)[:16]}…, expected {chain[-1].manifest.patched[:16]}…. Give all patches made since."
            )
        for other in chain[1:]:
            _refuse_shared(first, other)
        rewrite(model, first.names, lambda name, old: shift(old, first.tensor(name), -1), temporary)
        (temporary / CARD).write_text(_card(first, chain[1:]), encoding="utf-8")
    return out


def _refuse_shared(first: Patch, other: Patch) -> None:
    shared = 0
    for name in sorted(set(first.names) & set(other.names)):
        shared += int(torch.count_nonzero((first.tensor(name) != 0) & (other.tensor(name) != 0)))
    if shared:
        raise PatchError(
            f"{first.path} cannot be taken off alone: {other.path}, made after it, changes {shared:,} of the same entries, "
            "so no arithmetic gives the model that would have been made without it. Revert the later patches first, last "
            "one first, and unlearn their requests again."
        )


def _card(first: Patch, later: Sequence[Patch]) -> str:
    names = ", ".join(f"`{each.path.name}` ({each.manifest.method or 'unnamed'})" for each in later)
    return (
        "# A model with one update undone\n\n"
        f"The update `{first.path.name}` ({first.manifest.method or 'unnamed'}) was taken off with expunge: what "
        "it made the model forget, the model may know again. The entries that it had changed are bit by bit those of "
        f"before.\n\nThese later updates stay: {names}.\n\nReports and cards of the model before do not hold for this one: "
        "measure it again.\n"
    )

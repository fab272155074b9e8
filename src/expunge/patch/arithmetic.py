"""Create, apply and revert patches: model folders in, model folders out, a tensor at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge import __version__
from expunge.errors import ConfigurationError, PatchError
from expunge.files import atomic_path
from expunge.models.checkpoint import Stored, rewrite, stored
from expunge.models.complete import check_folder
from expunge.models.fingerprint import fingerprint, is_of
from expunge.models.folders import adapter_base, is_adapter_folder, resolve
from expunge.models.saving import write_adapter
from expunge.models.sources import sources, weight_bytes
from expunge.models.stamp import Stamp
from expunge.outputs import reserved
from expunge.patch import lora
from expunge.patch.format import (
    FILE,
    Change,
    Manifest,
    Patch,
    Totals,
    difference,
    finite,
    measure,
    shift,
    write,
    write_sealed,
)


def create(
    base: Path | str,
    patched: Path | str,
    out: Path | str,
    *,
    method: str = "",
    settings: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Patch:
    """Write the patch that turns `base` into `patched` to the file `out` (in a folder: `patch.safetensors`).

    Two full models, or two states of one adapter, give a dense patch; a new adapter on the base gives a lora patch.
    `method`, `settings` and `info` go into the manifest as they are. Raises PatchError if names, shapes or dtypes
    differ or a changed weight is NaN or infinite, OutputError if `out` exists and `overwrite` is false.
    """
    base, patched, out = resolve(base), resolve(patched), Path(out)
    out = out / FILE if out.is_dir() else out
    with (
        reserved(out, inputs=sources([base, patched]), folder=False, overwrite=overwrite),
        atomic_path(out, overwrite=overwrite) as temporary,
    ):
        stamp = Stamp.of(base, patched)
        if not is_adapter_folder(base):
            check_folder(base, stored(base))
        adapter = is_adapter_folder(patched) and not is_adapter_folder(base)
        changes, config = _adapter_changes(base, patched) if adapter else (_dense_changes(base, patched), None)
        before, after = stored(base), stored(patched)
        manifest = Manifest(
            kind="lora" if adapter else "dense",
            version=__version__,
            base=fingerprint(base),
            patched=fingerprint(patched),
            dtypes=tuple(sorted({item.dtype for item in before.values()})),
            changes={name: change for name, change in changes.items() if adapter or change.changed},
            totals=_totals(before, changes),
            method=method,
            settings=dict(settings or {}),
            info=dict(info or {}),
            adapter=config,
        )
        if adapter:
            layout = {name: (item.dtype, item.shape) for name, item in after.items()}
            write_sealed(temporary, layout, lambda name: after[name].read(), manifest)
        else:
            write(temporary, manifest, lambda name: difference(before[name].read(), after[name].read()))
        if changed := stamp.changed():
            raise PatchError(f"{changed[0]} has changed while the patch was made. Nothing was written; run it again.")
    return Patch.open(out)


def apply(
    patch: Patch | Path | str, model: Path | str, out: Path | str, merge: bool = False, *, overwrite: bool = False
) -> Path:
    """Write the patched model to the folder `out`, and return it; `model` stays as it is.

    A lora patch gives an adapter folder that names `model` as its base, or with `merge` a full model in the base's
    dtype. Raises PatchError if `model` is not the patch's base, or if the result is not what the patch recorded (the
    patch is damaged); OutputError if `out` exists and `overwrite` is false. A failure leaves `out` as it was.
    """
    patch, model, out = _opened(patch), resolve(model), Path(out)
    manifest = patch.manifest
    if merge and manifest.kind == "dense" and is_adapter_folder(model):
        raise ConfigurationError("This patch changes an adapter in place and is not merged. Leave --merge out.")
    stamp = Stamp.of(model)
    inputs, room = sources([patch.path, model]), weight_bytes(model) if manifest.kind == "dense" or merge else 0
    with (
        reserved(out, inputs=inputs, folder=True, overwrite=overwrite, room=room),
        atomic_path(out, overwrite=overwrite) as temporary,
    ):
        _check_model(model, manifest.base, manifest.patched, "base", "This model has the patch already.")
        if manifest.kind == "dense":
            rewrite(model, patch.names, lambda name, old: shift(old, patch.tensor(name), 1), temporary)
        else:
            config = {**(manifest.adapter or {}), "base_model_name_or_path": str(model.resolve())}
            if merge:
                lora.merge(model, config, patch.stored, patch.tensor, temporary)
                _check_merged(model, temporary, stamp)
                return out
            write_adapter(temporary, config, {name: patch.tensor(name) for name in patch.stored})
        _check_result(temporary, manifest.patched, patch)
    return out


def revert(patch: Patch | Path | str, model: Path | str, out: Path | str, *, overwrite: bool = False) -> Path:
    """Write the base, bit by bit, that the patched folder `model` came from to the folder `out`, and return it.

    Raises PatchError if `model` is not the patched model, which includes a merged lora patch: its rounding cannot be
    undone. OutputError as in `apply`.
    """
    patch, model, out = _opened(patch), resolve(model), Path(out)
    manifest = patch.manifest
    source = model
    with (
        reserved(
            out,
            inputs=sources([patch.path, model]),
            folder=True,
            overwrite=overwrite,
            room=weight_bytes(model),
        ),
        atomic_path(out, overwrite=overwrite) as temporary,
    ):
        if manifest.kind == "lora" and not is_adapter_folder(model):
            _refuse_merged(model, manifest)
        if manifest.kind == "lora":
            source = _adapter_source(model, manifest)
        _check_model(model, manifest.patched, manifest.base, "patched", "This is the base: there is nothing to revert.")
        names = patch.names if manifest.kind == "dense" else ()
        rewrite(source, names, lambda name, old: shift(old, patch.tensor(name), -1), temporary)
        _check_result(temporary, manifest.base, patch)
    return out


def _opened(patch: Patch | Path | str) -> Patch:
    """The patch, every byte of it checked."""
    opened = patch if isinstance(patch, Patch) else Patch.open(patch)
    opened.verify()
    return opened


def _dense_changes(base: Path, patched: Path) -> dict[str, Change]:
    """The change of every tensor, those with none too."""
    before, after = stored(base), stored(patched)
    _check_layout(base, before, patched, after)
    changes = {}
    for name, item in before.items():
        old, new = item.read(), after[name].read()
        changes[name] = measure(old, new)
        if changes[name].changed and changes[name].change_norm is None:
            _check_finite(name, new, patched)
    return changes


def _adapter_changes(base: Path, patched: Path) -> tuple[dict[str, Change], dict[str, Any]]:
    """The change of every weight a new adapter changes, where it is plain LoRA, and the adapter's configuration."""
    config, held, adapter = lora.read_config(patched), stored(base), stored(patched)
    name = adapter_base(patched)
    named = Path(name) if name else base
    if named.is_dir() and named.resolve() != base.resolve() and fingerprint(resolve(named)) != fingerprint(base):
        raise PatchError(f"{patched} is an adapter for {named}, whose weights are not those of {base}.")
    for name, item in adapter.items():
        _check_finite(name, item.read(), patched)
    pairs = lora.low_rank(config, adapter, held) or {}

    def tensor(name: str) -> Tensor:
        return adapter[name].read()

    return {name: lora.measure_low_rank(pair, tensor, held[name]) for name, pair in pairs.items()}, config


def _totals(base: Mapping[str, Stored], changes: Mapping[str, Change]) -> Totals:
    def norm(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return finite(sum(value**2 for value in known) ** 0.5) if len(known) == len(values) else None

    untouched = [_norm(item.read()) for name, item in base.items() if name not in changes]
    return Totals(
        tensors=len(base),
        tensors_changed=sum(change.changed > 0 for change in changes.values()),
        entries=sum(torch.Size(item.shape).numel() for item in base.values()),
        entries_changed=sum(change.changed for change in changes.values()),
        change_norm=norm([change.change_norm for change in changes.values()]) if changes else None,
        base_norm=norm([*(change.base_norm for change in changes.values()), *untouched]),
    )


def _norm(tensor: Tensor) -> float | None:
    return finite(float(torch.linalg.vector_norm(tensor.float(), dtype=torch.float64)))


def _check_layout(base: Path, before: Mapping[str, Stored], patched: Path, after: Mapping[str, Stored]) -> None:
    for here, names, there in ((base, set(before) - set(after), patched), (patched, set(after) - set(before), base)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise PatchError(f"{there} lacks {min(names)}{more}, which {here} has: no patch can join the two.")
    for name, item in before.items():
        if (item.dtype, item.shape) != (after[name].dtype, after[name].shape):
            raise PatchError(
                f"{name} is {item.dtype} {item.shape} in {base}, but {after[name].dtype} {after[name].shape} in "
                f"{patched}. Both must have the same shapes and dtypes."
            )
    if is_adapter_folder(base):
        ours, theirs = (lora.decisive(lora.read_config(folder)) for folder in (base, patched))
        for name, value in ours.items():
            if theirs[name] != value:
                raise PatchError(f"The adapters differ in {name}: {value} in {base}, {theirs[name]} in {patched}.")


def _check_finite(name: str, tensor: Tensor, folder: Path) -> None:
    if not tensor.is_floating_point():
        return
    wide = tensor.float() if tensor.element_size() == 1 else tensor
    bad = int((~wide.isfinite()).sum())
    if bad:
        raise PatchError(f"{name} in {folder} has {bad} NaN or infinite entries: such a model is not worth a patch.")


def _check_model(model: Path, expected: str, other: str, role: str, if_other: str) -> None:
    if is_of(expected, model):
        return
    found = fingerprint(model)
    why = if_other if is_of(other, model) else "Its weights are other ones, or have changed since."
    raise PatchError(
        f"{model} is not the {role} model of this patch: expected weights with the fingerprint {expected[:16]}…, "
        f"found {found[:16]}…. {why}"
    )


def _refuse_merged(model: Path, manifest: Manifest) -> None:
    if fingerprint(model) == manifest.base:
        raise PatchError(f"{model} is the base of this patch: there is nothing to revert.")
    raise PatchError(
        f"{model} is a full model, and this patch is a LoRA adapter. Once merged it cannot be taken out exactly, since "
        f"merging rounds. Use the base model itself (fingerprint {manifest.base[:16]}…)."
    )


def _adapter_source(model: Path, manifest: Manifest) -> Path:
    name = adapter_base(model)
    if not name or not Path(name).is_dir():
        raise PatchError(f"The base {name!r} that {model} names is not a folder here; nothing can be given back.")
    source = resolve(name)
    _check_model(source, manifest.base, manifest.patched, "base", "It is the adapter itself.")
    return source


def _check_result(folder: Path, expected: str, patch: Patch) -> None:
    if not is_of(expected, folder):
        found = fingerprint(folder)
        raise PatchError(
            f"The result has the fingerprint {found[:16]}…, not the recorded {expected[:16]}…: {patch.path} is "
            "damaged. Nothing was written."
        )


def _check_merged(model: Path, merged: Path, stamp: Stamp) -> None:
    """The merged model has the base's tensors, and the base is still what was read."""
    if changed := stamp.changed():
        raise PatchError(f"{changed[0]} has changed while the patch was merged. Nothing was written; run it again.")
    layouts = [{name: (item.dtype, item.shape) for name, item in stored(each).items()} for each in (model, merged)]
    if layouts[0] != layouts[1]:
        raise PatchError(f"Merged, the model would not have the tensors of {model}. Apply the patch without --merge.")

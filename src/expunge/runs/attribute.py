"""`expunge attribute`: which weights an unlearning update may touch, as a mask file to be used many times."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import expunge
from expunge import config
from expunge.attribution import ATTRIBUTIONS, Attribution, View
from expunge.attribution.insight import describe
from expunge.data import Encoder, Wording, cut_note
from expunge.errors import ConfigurationError
from expunge.losses import LOSSES, Loss
from expunge.models import load, new_adapter
from expunge.models.mask import Mask
from expunge.request import Columns, Paths, Request
from expunge.runs import inputs
from expunge.runs.output import writes
from expunge.runs.record import Listener
from expunge.runs.texts import in_chunks


@writes("model", "forget", "retain", "compare", folder=False)
def attribute(
    model: Path | str,
    forget: Paths,
    retain: Paths | None = None,
    *,
    columns: Columns | None = None,
    retain_includes_forget: bool = False,
    out: Path | str,
    method: str | Attribution = "wagle",
    settings: Mapping[str, Any] | None = None,
    loss: str | Loss = "nll",
    lora: int | None = None,
    compare: Mapping[str, Path | str] | None = None,
    max_length: int = 512,
    chunk_tokens: int | None = None,
    wording: Wording = Wording(),
    batch_size: int = 8,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
    device: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> Mask:
    """Rank the weights of `model`, write the mask file `out` and return the mask.

    method: a name (see `attribution.ATTRIBUTIONS`) with `settings` over its defaults, or an Attribution. loss: the
    forget loss of the descent the mask is for; settings named "loss.…" are its own. GradAscent's mask
    and that of NPO with reduction="mean" are the default's, nll: at the model before unlearning their gradients differ in
    sign alone. lora: the mask is for a new adapter of that rank, made by `seed`. compare: other mask files, by what to
    call them.

    The mask's `info` holds how it was made, and under "insight" where the chosen weights lie (`insight.describe`).
    Raises what reading, loading and the attribution raise; nothing half-written stays.
    """
    out, listener = Path(out), listener or Listener()
    chosen, forget_loss = _made(method, settings or {}, loss)
    others = {name: Mask.open(path) for name, path in (compare or {}).items()}
    request = Request.read(forget, retain, columns=columns, retain_includes_forget=retain_includes_forget)
    cutting: dict[str, Any] = {"max_length": max_length, "chunk_tokens": chunk_tokens}
    request = in_chunks(request, model, **cutting, wording=wording, trust_remote_code=trust_remote_code)
    listener.stage("loading")
    loaded = load(
        model, dtype=dtype, device=device, trust_remote_code=trust_remote_code, wording=wording, note=listener.note
    )
    if lora is not None:
        loaded = new_adapter(loaded, lora, seed=seed, note=listener.note)
    encoder = loaded.encoder(max_length)
    for note in (*request.warnings, _cut(request, encoder)):
        if note:
            listener.note(note)
    listener.stage(f"attributing with {config.name_of(type(chosen))}")
    view = View(loaded, request, encoder, forget_loss, batch_size, seed, listener.batch)
    _check_others(others, view)
    mask = chosen.mask(view)
    info = {
        **mask.info,
        "wording": wording.record(),
        "version": expunge.__version__,
        "data": {name: inputs.together(sources) for name, sources in request.sources.items()},
        "insight": describe(mask, others),
    }
    made = Mask(mask.tensors, mask.shapes, info)
    made.save(out, overwrite=overwrite)
    return made


def _made(method: str | Attribution, settings: Mapping[str, Any], loss: str | Loss) -> tuple[Attribution, Loss]:
    """The attribution and the forget loss. Raises ConfigurationError for names and settings that are not understood."""
    own = {key: value for key, value in settings.items() if not key.startswith("loss.")}
    of_loss = {key.removeprefix("loss."): value for key, value in settings.items() if key.startswith("loss.")}
    if isinstance(method, str):
        kind = config.lookup(ATTRIBUTIONS, method, "attribution")
        if kind is ATTRIBUTIONS["file"]:
            raise ConfigurationError(
                "The mask of a file is made already: pass it on with `expunge unlearn --mask FILE`."
            )
        method = config.build(kind, own)
    if isinstance(loss, str):
        loss = config.build(config.lookup(LOSSES, loss, "loss"), of_loss)
    return method, loss


def _check_others(others: Mapping[str, Mask], view: View) -> None:
    """Raise ConfigurationError for a mask that cannot be compared, before the long work begins."""
    shapes = {name: tuple(param.shape) for name, param in view.params.items()}
    for name, other in others.items():
        if other.soft or dict(other.shapes) != shapes:
            kind = "a soft mask" if other.soft else "a mask for another model"
            raise ConfigurationError(f"{name} is {kind}: overlap is of two hard masks for one model. Leave it out.")


def _cut(request: Request, encoder: Encoder) -> str | None:
    return cut_note(encoder.examples((*request.forget, *request.retain)), encoder.max_length)

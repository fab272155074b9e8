"""`expunge influence`: what a request would do to chosen answers, and which training instances those answers rest on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import expunge
from expunge import config
from expunge.data import Wording
from expunge.data.corpus import chunks
from expunge.errors import ConfigurationError
from expunge.files import write_json
from expunge.gradients import Budget, Curvature
from expunge.gradients.damped import losses, lowest, moved, solved, unit
from expunge.methods import Context
from expunge.methods.llmeraser import LLMEraser
from expunge.models import load
from expunge.models.adapters import learned_adapter, no_adapter
from expunge.request import Columns, Example, Paths, Request, read_rows
from expunge.runs import inputs
from expunge.runs.checks import changes_adapter
from expunge.runs.output import writes
from expunge.runs.record import Listener
from expunge.runs.texts import in_chunks

FACTOR = 10.0  # of the mean eigenvalue: λ where no request is there to choose it by


@writes("model", "probes", "forget", "retain", folder=False)
def influence(
    model: Path | str,
    probes: Paths,
    forget: Paths | None = None,
    retain: Paths | None = None,
    *,
    columns: Columns | None = None,
    retain_includes_forget: bool = False,
    out: Path | str,
    supports: int = 0,
    settings: Mapping[str, Any] | None = None,
    max_length: int = 512,
    chunk_tokens: int | None = None,
    wording: Wording = Wording(),
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
    device: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Predict, change nothing, write the JSON file `out` and return its content.

    For the request (forget, retain) and each probe z of the file `probes`, in nats a token: its loss l(z), the
    first-order prediction ⟨∇l(z), Δ⟩ of how LLMEraser's Δ would change it, and the loss's change measured at Θ̂ + Δ. With
    `supports` = k, the k training instances z_i whose removal would raise l(z) most, by
    (1/n) ⟨∇l(z_i), (H + λI)⁻¹∇l(z)⟩: what the answer rests on. Removing one of negative value would lower l(z).

    settings: fields of `LLMEraser`. Without `forget` only supports are found; the fine-tuning set is then `retain`, or
    settings' `train`, and λ is 10 × the mean eigenvalue unless settings give `damping` or a single factor.
    Raises what reading, loading and LLMEraser raise; ConfigurationError where there is nothing to do.
    """
    out, listener = Path(out), listener or Listener()
    eraser = config.build(LLMEraser, settings or {})
    train = eraser.train if forget is None and eraser.train is not None else retain
    if forget is None and (not supports or train is None):
        raise ConfigurationError(
            "There is nothing to predict: give --forget and --retain, or --supports K with the fine-tuning set as --train."
        )
    probed_rows = read_rows(probes, columns)
    sources = {"probes": probed_rows.sources, **inputs.read(columns, train=eraser.train)}
    asked = probed_rows.examples
    request = None
    if forget is None:
        sources |= inputs.read(columns, retain=retain)
    else:
        cutting: dict[str, Any] = {"max_length": max_length, "chunk_tokens": chunk_tokens, "wording": wording}
        request = Request.read(forget, retain, columns=columns, retain_includes_forget=retain_includes_forget)
        sources |= request.sources
        request = in_chunks(request, model, **cutting, trust_remote_code=trust_remote_code)
    if changes_adapter(model, None) is False:
        raise no_adapter("influence", str(model))
    listener.stage("loading")
    loaded = load(
        model, dtype=dtype, device=device, trust_remote_code=trust_remote_code, wording=wording, note=listener.note
    )
    learned_adapter(loaded, "influence")
    context = Context(loaded.encoder(max_length), progress=listener.step, chunk_tokens=chunk_tokens)
    asked = chunks(asked, context.encoder, chunk_tokens)
    probed = eraser.over(loaded, context.encoder.examples(asked))
    found: dict[str, Any] = {
        "command": "influence",
        "wording": wording.record(),
        "version": expunge.__version__,
        "model": {"path": str(loaded.folder), "fingerprint": loaded.fingerprint},
        "data": inputs.described(sources),
        "settings": config.to_dict(eraser),
    }
    rows = [{**_shown(example), "loss": loss} for example, loss in zip(asked, losses(probed).tolist(), strict=True)]
    slopes = list(probed.example_gradients())  # [1, p] each
    if request is not None:
        listener.stage("solving for the request")
        edited = eraser.edited(request, context)
        operator, b, now = eraser.system(loaded, edited, context)
        delta, found["solve"] = _update(eraser, operator, now, b, listener)
        with moved(operator, delta):
            after = losses(probed).tolist()
        for row, slope, value in zip(rows, slopes, after, strict=True):
            row |= {"predicted": torch.dot(slope[0].double(), delta.double()).item(), "after": value - row["loss"]}
        whole = edited.whole
    else:
        assert train is not None
        whole = tuple(chunks(read_rows(train, columns).examples, context.encoder, chunk_tokens))
        operator = eraser.over(loaded, context.encoder.examples(whole))
    if supports:
        damping = found["solve"]["damping"] if request is not None else None
        _support(eraser, operator, whole, slopes, rows, supports, damping, listener)
    found["probes"] = rows
    write_json(out, found)
    return found


def _update(
    eraser: LLMEraser, operator: Curvature, now: Curvature, b: Tensor, listener: Listener
) -> tuple[Tensor, dict[str, Any]]:
    """Δ [p] of one round, and what to tell of the solve."""
    size = {"instances": len(operator), "parameters": len(b), "b_norm": b.norm().item()}
    if not b.any():
        return b, {**size, "damping": None, "ratio": 0.0, "residual": 0.0, "candidates": []}
    solutions, _ = eraser.candidates(operator, b, _budget(eraser))
    tried = eraser.tried(now, solutions, operator.flat(operator.params).norm().item())
    best = lowest(tried, eraser.trusted)
    listener.note(f"λ = {best['damping']:.3g}; ‖Δ‖/‖Θ‖ = {best['ratio']:.3g}; relative residual {best['residual']:.2g}")
    return solutions[best["factor"]].delta, {**size, **best, "candidates": tried}


def _support(
    eraser: LLMEraser,
    operator: Curvature,
    whole: Sequence[Example],
    slopes: Sequence[Tensor],
    rows: Sequence[dict[str, Any]],
    count: int,
    damping: float | None,
    listener: Listener,
) -> None:
    """Add to each probe's row the `count` instances of `whole` that its answer rests on; one solve a probe."""
    if damping is None:
        damping = eraser.damping
    if eraser.solver == "datainf":
        raise ConfigurationError("DataInf's λ differs by tensor: take solver=cg or sgd for --supports.")
    drawn = eraser.drawn(len(operator))
    if damping is None:
        factor = eraser.factors[0] if len(eraser.factors) == 1 else FACTOR
        damping = factor * float(unit(eraser.solver, operator, slopes[0][0], drawn, eraser.seed))
    directions = []
    listener.stage(f"finding what supports {len(slopes)} answers")
    for number, slope in enumerate(slopes):
        solve = {"indices": drawn, "seed": eraser.seed, "budget": _budget(eraser)}
        (solution,) = solved(eraser.solver, operator, slope[0], (damping,), **solve).values()
        directions.append(solution.delta)
        rows[number]["residual"] = solution.residual
        listener.batch("solves", number + 1, len(slopes))
    stacked = torch.stack(directions)  # [probes, p]
    values = torch.empty(len(whole), len(rows))
    for number, gradient in enumerate(operator.example_gradients()):
        values[number] = (stacked @ gradient[0]).cpu() / len(whole)
        listener.batch("instances", number + 1, len(whole))
    for row, column in zip(rows, values.T, strict=True):
        order = column.argsort(descending=True, stable=True)[:count].tolist()
        row["damping"] = damping
        row["supports"] = [{**_shown(whole[index]), "value": column[index].item()} for index in order]


def _budget(eraser: LLMEraser) -> Budget:
    return Budget(eraser.tolerance, eraser.passes, eraser.seconds)


def _shown(example: Example) -> dict[str, Any]:
    return {"id": example.id, "where": example.where, "prompt": example.prompt, "response": example.response}

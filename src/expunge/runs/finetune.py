"""`expunge finetune`: make a model that knows the data, or the control that was never shown part of it."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from expunge import config
from expunge.data import Wording
from expunge.data.corpus import chunk_note, chunks
from expunge.files import atomic_path, write_json
from expunge.models import load, new_adapter
from expunge.models.fingerprint import check_unchanged
from expunge.models.saving import save_model
from expunge.request import Columns, Paths, check_columns, read_rows
from expunge.runs import inputs
from expunge.runs.outcome import check_outcome
from expunge.runs.output import full_models, writes
from expunge.runs.record import Clock, Listener, checkpoint_of, run_record
from expunge.training import Finetuning, History


@writes("model", "data", folder=True, copies=full_models)
def finetune(
    model: Path | str,
    data: Paths,
    *,
    columns: Columns | None = None,
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    lora: int | None = None,
    lora_targets: Sequence[str] = (),
    max_length: int = 512,
    chunk_tokens: int | None = None,
    wording: Wording = Wording(),
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
    device: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> History:
    """Fine-tune `model` on the examples of one or more files and write a run folder (model/, log.jsonl, run.json).

    data: one or several files or folders; columns: the column each field is read from (see `read_rows`). settings:
    fields of `Finetuning`. lora: train a new adapter of that rank. The rest as in `unlearn`.
    """
    out, listener, clock = Path(out), listener or Listener(), Clock()
    rows = read_rows(data, columns)
    check_columns(columns or {}, rows)
    examples = rows.examples
    chosen = config.build(Finetuning, settings or {})
    listener.stage("loading")
    loaded = load(
        model, dtype=dtype, device=device, trust_remote_code=trust_remote_code, wording=wording, note=listener.note
    )
    lengths = {"max_length": max_length, "chunk_tokens": chunk_tokens, "wording": wording.record()}
    asked = {
        **lengths,
        "dtype": dtype,
        "lora": lora,
        "lora_targets": sorted(lora_targets),
        "columns": dict(columns or {}),
    }
    identity = inputs.identity(chosen, loaded.fingerprint, {"training": rows.sources}, **asked)
    if lora is not None:
        loaded = new_adapter(loaded, lora, targets=tuple(lora_targets), seed=chosen.seed, note=listener.note)
    clock.lap("load")
    checkpoint = checkpoint_of(out, resume=resume)
    encoder = loaded.encoder(max_length)
    texts, examples = examples, chunks(examples, encoder, chunk_tokens)
    for note in (*rows.notes, chunk_note(texts, examples), encoder.note(examples)):
        if note:
            listener.note(note)
    listener.stage(f"fine-tuning on {len(examples)} examples")
    history = chosen(
        loaded, examples, encoder, checkpoint=checkpoint, resume=resume, progress=listener.step, identity=identity
    )
    check_outcome(loaded, (examples,), encoder, "Fine-tuning")
    clock.lap("train")
    for note in history.notes:
        listener.note(note)
    check_unchanged(loaded)
    with atomic_path(out, overwrite=overwrite) as folder:
        folder.mkdir()
        save_model(loaded, folder / "model")
        (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history.log), encoding="utf-8")
        clock.lap("write")
        configuration = {"finetuning": config.to_dict(chosen), "lora": lora, **lengths}
        data_files = {source.path.name: (source,) for source in rows.sources}
        record = run_record("finetune", configuration, clock=clock, data=data_files, model=loaded)
        record["identity"] = dict(identity.facts)
        write_json(folder / "run.json", record)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return history

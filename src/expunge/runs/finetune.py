"""`expunge finetune`: make a model that knows the data, or the control that was never shown part of it."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from expunge import config
from expunge.data import Encoder, cut_note
from expunge.files import atomic_path, refuse_existing, write_json
from expunge.losses import NLL
from expunge.methods.descent import Count, NonNegative, Positive
from expunge.models import Loaded, load, new_adapter
from expunge.models.checkpoint import save_model
from expunge.request import Example, read_examples
from expunge.runs.record import Clock, Listener, checkpoint_of, run_record
from expunge.training import RATES, History, Linear, Plan, Rate, Side, WeightedSum, descend
from expunge.training.loop import Progress


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """Minimise the mean NLL of the responses. Defaults follow TOFU (arXiv 2401.06121, §3.2): AdamW, lr 1e-5 with linear
    decay, weight decay .01, 5 epochs; batch 16 is ours (theirs: 32)."""

    PARTS: ClassVar[dict[str, dict[str, type]]] = {"rate": RATES}

    rate: Rate = Linear()
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-5
    epochs: Positive = 5.0
    steps: Count | None = None
    batch_size: Count = 16
    accumulation: Count = 1
    weight_decay: NonNegative = 0.01
    max_grad_norm: Positive | None = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        config.check(self)

    def __call__(
        self,
        loaded: Loaded,
        examples: Sequence[Example],
        encoder: Encoder,
        *,
        checkpoint: Path | None = None,
        resume: bool = False,
        progress: Progress | None = None,
    ) -> History:
        """Train `loaded.model` in place."""
        side = Side.of(NLL(), examples, encoder)
        per_step = min(self.batch_size * self.accumulation, len(examples))
        shared: dict[str, Any] = {
            name: getattr(self, name) for name in Plan.__dataclass_fields__ if hasattr(self, name)
        }
        steps = self.steps or max(1, round(self.epochs * len(examples) / per_step))
        plan = Plan(**(shared | {"steps": steps, "combine": WeightedSum()}))
        history = descend(loaded, plan, retain=side, folder=checkpoint, resume=resume, progress=progress)
        note = cut_note((row for rows in side.items for row in rows), encoder.max_length)
        history.notes.extend([note] if note else [])
        return history


def finetune(
    model: Path | str,
    data: Path | str | Sequence[Path | str],
    *,
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    lora: int | None = None,
    lora_targets: Sequence[str] = (),
    max_length: int = 512,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
    device: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> History:
    """Fine-tune `model` on the examples of one or more JSONL files and write a run folder (model/, log.jsonl, run.json).

    settings: fields of `Finetuning`. lora: train a new adapter of that rank. The rest as in `unlearn`.
    """
    out, listener, clock = Path(out), listener or Listener(), Clock()
    refuse_existing(out, overwrite=overwrite)
    files = [Path(file) for file in ([data] if isinstance(data, str | Path) else data)]
    examples = [example for file in files for example in read_examples(file)]
    chosen = config.build(Finetuning, settings or {})
    listener.stage("loading")
    loaded = load(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if lora is not None:
        loaded = new_adapter(loaded, lora, targets=tuple(lora_targets), seed=chosen.seed)
    clock.lap("load")
    checkpoint = checkpoint_of(out, resume=resume)
    listener.stage(f"fine-tuning on {len(examples)} examples")
    encoder = loaded.encoder(max_length)
    history = chosen(loaded, examples, encoder, checkpoint=checkpoint, resume=resume, progress=listener.step)
    clock.lap("train")
    for note in history.notes:
        listener.note(note)
    with atomic_path(out, overwrite=overwrite) as folder:
        folder.mkdir()
        save_model(loaded, folder / "model")
        (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history.log), encoding="utf-8")
        clock.lap("write")
        configuration = {"finetuning": config.to_dict(chosen), "lora": lora, "max_length": max_length}
        data_files = {file.name: file for file in files}
        record = run_record("finetune", configuration, clock=clock, data=data_files, model=loaded)
        write_json(folder / "run.json", record)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return history

"""Ordinary fine-tuning: the step loop with one side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from expunge import config
from expunge.config import Count, NonNegative, Positive
from expunge.data import Encoder, cut_note
from expunge.identity import Identity
from expunge.losses import NLL
from expunge.models import Loaded
from expunge.request import Example
from expunge.training.combine import WeightedSum
from expunge.training.history import History
from expunge.training.loop import Plan, Progress, descend
from expunge.training.rates import RATES, Linear, Rate
from expunge.training.sides import Side


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training. Defaults follow TOFU (arXiv 2401.06121, §3.2): AdamW, lr 1e-5 with linear decay, weight decay
    .01, 5 epochs; batch 16 is ours (theirs: 32)."""

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


@dataclass(frozen=True, kw_only=True)
class Finetuning(Recipe):
    """Minimise the mean NLL of the responses."""

    def __call__(
        self,
        loaded: Loaded,
        examples: Sequence[Example],
        encoder: Encoder,
        *,
        checkpoint: Path | None = None,
        resume: bool = False,
        progress: Progress | None = None,
        identity: Identity = Identity(),
    ) -> History:
        """Train `loaded.model` in place. `identity`: see `training.descend`."""
        side = Side.of(NLL(), examples, encoder)
        per_step = min(self.batch_size * self.accumulation, len(examples))
        shared: dict[str, Any] = {
            name: getattr(self, name) for name in Plan.__dataclass_fields__ if hasattr(self, name)
        }
        steps = self.steps or max(1, round(self.epochs * len(examples) / per_step))
        plan = Plan(**(shared | {"steps": steps, "combine": WeightedSum()}))
        history = descend(
            loaded, plan, retain=side, folder=checkpoint, resume=resume, progress=progress, identity=identity
        )
        note = cut_note((row for rows in side.items for row in rows), encoder.max_length)
        history.notes.extend([note] if note else [])
        return history

"""Task vectors: what fine-tuning on the forget set adds to the base model is subtracted from the full model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from expunge import config
from expunge.config import Count, NonNegative, Positive
from expunge.data import Encoded
from expunge.errors import ConfigurationError, DivergedError
from expunge.evaluation import score
from expunge.evaluation.metrics.memorization import extraction_strength, probability
from expunge.gradients import global_norm
from expunge.methods.contract import Context
from expunge.models import Loaded
from expunge.models.fingerprint import fingerprint
from expunge.models.folders import resolve
from expunge.models.weights import Weights, copied, holding, read, trainable
from expunge.request import Example, Request
from expunge.training import Finetuning, History

MEASURES = {"extraction_strength": extraction_strength, "probability": probability}


@dataclass(frozen=True, kw_only=True)
class TaskVector:
    """θ_u = θ_full − α τ, with τ = θ_f − θ_0 (arXiv 2212.04089; the baseline TV of arXiv 2601.22030).

    θ_full: the model to edit. θ_0: the model before it learned the private data. θ_f: θ_0 fine-tuned on the forget set
    alone (what the PerTA paper tunes θ_f from could not be read: θ_0 here). All arithmetic is fp32. Over a LoRA adapter
    the same holds for the adapter's own parameters.

    base: model folder of θ_0; for an adapter, by default, the base model itself, that is the adapter with B = 0.
    forget_model: model folder of θ_f; by default it is made here, by `lr`, `epochs` (or `steps`), `batch_size`,
    `accumulation` and `weight_decay` (AdamW, linear decay): take the recipe the full model was made by.

    alpha: α; none: the one of `alphas` with the lowest leak + damage on a validation part, where leak is what the
    edited model still holds of the forget examples above θ_0, and damage what it lost of the retain examples against
    θ_full (both at least 0); then, `refine` times, the middles between the best and its neighbours are tried too. How
    the paper chooses α could not be read. validation: share of the forget set in that
    part, with as many random retain examples. criterion: what is compared, extraction strength (for text learned by
    heart) or the probability per token. update_norm: gives α instead, such that ‖α τ‖ is this (L2): for comparing
    updates of equal size.

    Raises ConfigurationError without θ_0 or for a τ that is all zero, ModelError for models that do not fit together.
    """

    base: str | None = None
    forget_model: str | None = None
    alpha: Positive | None = None
    alphas: tuple[Positive, ...] = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    refine: Annotated[int, Field(ge=0)] = 2
    criterion: Literal["extraction_strength", "probability"] = "extraction_strength"
    validation: Positive = 0.5
    update_norm: Positive | None = None
    lr: Positive = 1e-5
    epochs: Positive = 5.0
    steps: Count | None = None
    batch_size: Count = 16
    accumulation: Count = 1
    weight_decay: NonNegative = 0.01
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        config.check(self)
        if self.validation > 1:
            raise ConfigurationError(
                f"{config.name_of(type(self))}.validation is a share of the forget set: at most 1."
            )
        if not self.alphas:
            raise ConfigurationError(
                f"{config.name_of(type(self))}.alphas is empty; give at least one value, or alpha."
            )
        if self.alpha is not None and self.update_norm is not None:
            raise ConfigurationError(f"{config.name_of(type(self))}: give alpha or update_norm, not both.")

    def __call__(self, loaded: Loaded, request: Request, context: Context) -> History:
        """Subtract the task vector from `loaded.model` in place."""
        params = trainable(loaded)
        full = copied(params)
        start = self.start(loaded)
        history = History()
        end = self.learned(loaded, start, request, context, history)
        tau = {name: end[name] - start[name] for name in full}
        check_update(tau, self.forget_model)
        history.found |= {"models": {"base": described(self.base), "forget_model": described(self.forget_model)}}
        weights = self.weights(loaded, {"base": start, "full": full}, request, context, history)
        update = {name: tau[name] * weights[name] for name in tau} if weights is not None else tau
        check_update(update, None)
        alpha = self.choose(loaded, full, start, update, request, context, history)
        assign(params, full, update, alpha)
        size, size_tau = (global_norm(list(values.values())) for values in (update, tau))
        history.found["update"] = {"alpha": alpha, "norm": alpha * size, "task_vector_norm": size_tau}
        history.notes.append(
            f"α = {alpha:g}; the update's norm is {alpha * size:.4g}, the task vector's {size_tau:.4g}"
        )
        if request.replacements:
            history.notes.append(
                f"{len(request.replacements)} examples are corrected or rewritten: subtracting a task vector removes "
                "what they were and does not teach what they shall be"
            )
        history.stopped = "the update is subtracted"
        return history

    def weights(
        self, loaded: Loaded, models: Mapping[str, Weights], request: Request, context: Context, history: History
    ) -> Weights | None:
        """What τ is multiplied with, entry by entry; None: 1 everywhere."""
        return None

    def start(self, loaded: Loaded) -> Weights:
        """θ_0, in fp32 by parameter name."""
        if self.base is not None:
            return read(self.base, loaded)
        params = trainable(loaded)
        if loaded.is_adapter and all("lora_" in name for name in params):
            return {name: torch.zeros_like(p) if "lora_B" in name else p.detach().clone() for name, p in params.items()}
        raise self._no_base()

    def check(self, request: Request, *, adapter: bool | None) -> None:
        """Raise for a base model or a retain set that is needed and missing, before anything is loaded."""
        for folder in (self.base, self.forget_model):
            if folder is not None:
                resolve(folder)
        if self.base is None and adapter is False:
            raise self._no_base()
        if self.alpha is None and self.update_norm is None and not request.retain:
            raise self._no_retain()

    def _no_base(self) -> ConfigurationError:
        return ConfigurationError(
            f"{config.name_of(type(self))} subtracts what learning the forget set added to a base model: give the model "
            "as it was before it learned the private data, --base FOLDER."
        )

    def _no_retain(self) -> ConfigurationError:
        return ConfigurationError(
            f"{config.name_of(type(self))} chooses α by what the model loses of a retain set: give --retain, or --set "
            "alpha=1."
        )

    def learned(self, loaded: Loaded, start: Weights, request: Request, context: Context, history: History) -> Weights:
        """θ_f: read from `forget_model`, or θ_0 fine-tuned on the forget set. Leaves the model's weights as they were."""
        if self.forget_model is not None:
            return read(self.forget_model, loaded)
        shared = ("lr", "epochs", "steps", "batch_size", "accumulation", "weight_decay", "precision", "checkpoint_every",
                  "seed")  # fmt: skip
        recipe = Finetuning(**{name: getattr(self, name) for name in shared})
        with holding(loaded, start):
            made = recipe(
                loaded,
                request.forget,
                context.encoder,
                checkpoint=context.checkpoint,
                resume=context.resume,
                progress=context.progress,
                identity=context.identity,
            )
            end = copied(trainable(loaded))
        history.log, history.notes = made.log, [f"θ_f: {note}" for note in made.notes]
        return end

    def choose(
        self,
        loaded: Loaded,
        full: Weights,
        start: Weights,
        update: Weights,
        request: Request,
        context: Context,
        history: History,
    ) -> float:
        """α: as given, from the norm asked for, or the candidate with the lowest leak + damage."""
        if self.alpha is not None:
            return self.alpha
        if self.update_norm is not None:
            return self.update_norm / global_norm(list(update.values()))
        if not request.retain:
            raise self._no_retain()
        drawn = self._validation(request)
        sides = {name: context.encoder.examples(examples) for name, examples in drawn.items()}
        params = trainable(loaded)

        def measured(alpha: float, origin: Weights = full) -> dict[str, float]:
            assign(params, origin, update, alpha)
            return {name: self._held(loaded, items) for name, items in sides.items()}

        never, before = measured(0.0, start)["forget"], measured(0.0)
        rows: list[dict[str, float]] = []

        def best(candidates: Sequence[float]) -> dict[str, float]:
            for alpha in candidates:
                held = measured(alpha)
                leak, damage = max(0.0, held["forget"] - never), max(0.0, before["retain"] - held["retain"])
                rows.append({"alpha": alpha, **held, "leak": leak, "damage": damage})
            rows.sort(key=lambda row: row["alpha"])
            return min(rows, key=lambda row: (row["leak"] + row["damage"], row["alpha"]))

        found = best(sorted(set(self.alphas)))
        for _ in range(self.refine):
            tried = [0.0, *(row["alpha"] for row in rows)]
            here = tried.index(found["alpha"])
            found = best([(one + other) / 2 for one, other in pairwise(tried[here - 1 : here + 2])])
        assign(params, full, update, 0.0)
        history.found["search"] = {
            "criterion": self.criterion,
            "examples": {name: len(items) for name, items in sides.items()},
            "never_learned": never,
            "before": before,
            "candidates": rows,
        }
        history.found["tuned_on"] = sorted({example.mark for examples in drawn.values() for example in examples})
        history.notes.append(
            f"α was chosen on {len(sides['forget'])} of {len(request.forget)} forget examples and "
            f"{len(sides['retain'])} of {len(request.retain)} retain examples"
        )
        if found["alpha"] == max(self.alphas) and len(self.alphas) > 1:
            history.notes.append(f"the largest α tried, {found['alpha']:g}, was the best: larger ones may be better")
        return found["alpha"]

    def tuned_on(self, request: Request) -> tuple[Example, ...]:
        """The examples α is chosen on; none where it is given."""
        if self.alpha is not None or self.update_norm is not None:
            return ()
        return tuple(example for examples in self._validation(request).values() for example in examples)

    def _validation(self, request: Request) -> dict[str, list[Example]]:
        """What α is chosen on: a share of the forget set, and as many of the retain set, drawn by the seed."""
        generator = torch.Generator().manual_seed(self.seed)
        count = max(1, round(self.validation * len(request.forget)))

        def drawn(examples: Sequence[Example]) -> list[Example]:
            order = torch.randperm(len(examples), generator=generator)[:count].tolist()
            return [examples[index] for index in sorted(order)]

        return {"forget": drawn(request.forget), "retain": drawn(request.retain)}

    def _held(self, loaded: Loaded, items: Sequence[Encoded]) -> float:
        """How much of the examples the model as it is holds: mean of the criterion, in [0, 1]."""
        return float(MEASURES[self.criterion](score(loaded, items, batch_size=self.batch_size)).mean())


@torch.no_grad()
def assign(params: Mapping[str, nn.Parameter], origin: Weights, update: Weights, alpha: float) -> None:
    """θ ← origin − α · update, computed in fp32. Raises DivergedError where that is not finite."""
    for name, param in params.items():
        value = torch.add(origin[name], update[name], alpha=-alpha)
        if not bool(value.isfinite().all()):
            raise DivergedError(f"{name} is not finite at α = {alpha:g}. No weights were written; try a smaller alpha.")
        param.copy_(value)


def check_update(update: Weights, forget_model: str | None) -> None:
    """Raise ConfigurationError where there is nothing to subtract."""
    if any(bool(value.count_nonzero()) for value in update.values()):
        return
    if forget_model is not None:
        raise ConfigurationError(f"The task vector is all zero: {forget_model} has the same weights as the base model.")
    raise ConfigurationError(
        "The update is all zero: fine-tuning on the forget set changed nothing, or every weight is 0. Try a larger lr."
    )


def described(folder: str | None) -> dict[str, str] | None:
    """Path and fingerprint of a model that took part."""
    if folder is None:
        return None
    place = Path(resolve(folder))
    return {"path": str(folder), "fingerprint": fingerprint(place) if place.is_dir() else ""}

"""Descent: the composition every gradient method of the field is one line of."""

import json
from dataclasses import dataclass, replace
from math import prod
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from expunge import config
from expunge.attribution import ATTRIBUTIONS, Attribution, View
from expunge.attribution.file import FromFile
from expunge.attribution.insight import describe
from expunge.config import Count, NonNegative, Positive
from expunge.data import Encoder, by_length, collate, cut_note
from expunge.errors import ConfigurationError, RequestError
from expunge.losses import LOSSES, NLL, Ascent, Loss
from expunge.methods.contract import Context
from expunge.models import Loaded, answers
from expunge.models.mask import Mask
from expunge.request import Example, Request
from expunge.training import (
    COMBINATIONS,
    RATES,
    Combination,
    Constant,
    GeN,
    History,
    Plan,
    Rate,
    Side,
    WeightedSum,
    descend,
)
from expunge.training.checkpoint import MASK


@dataclass(frozen=True, kw_only=True)
class Descent:
    """θ ← θ − η·d: any forget loss, retain loss, combination, learning rate and optimizer put together.

    The forget loss F and the retain loss R are both to be *minimised*; the default F = −L_F with γ = α = 1 is GradDiff.
    A corrected or rewritten example is forgotten as it was and learned, with the retain set, as it shall be; up to half
    of every retain batch are such replacements.

    forget, retain: losses (see `expunge.losses`). `retain` none: no retain pass at all.
    combine: how the two become one direction (see `expunge.training.combine`).
    mask: an attribution (see `expunge.attribution`) that chooses which weights are trained, computed at the model as it is
    before the first step; none: all of them. m ⊙ update, a frozen weight keeps its bits. With clip_before_mask the
    gradients are combined and clipped first and then masked, as in WAGLE's release; by default norms see kept weights only.
    rate: a schedule, or GeN's automatic learning rate, which needs a retain set.
    lr: η, or where GeN starts from. optimizer: "adamw" or "sgd" (no momentum).
    epochs: passes over the forget set; `steps`, where given, counts instead.
    batch_size: examples of each side in one pass; `accumulation`: such passes a step. A step uses their product.
    weight_decay: decoupled, per unit of lr. max_grad_norm: clips the combined gradient's L2 norm; none: no clipping.
    precision: "fp32", or "bf16" (autocast; the weights that are updated stay fp32).
    stop_forget_nll: stop once the step's forget NLL (nats a token) reaches it; "holdout": the NLL of the request's
    holdout set under the original model, the level of text never learned. stop_retain_nll: stop once the retain NLL
    exceeds it; stop_retain_rise: or exceeds its first value by that much (default 1: the model is broken then).
    checkpoint_every: steps between checkpoints, where a run has a folder for them; 0: none.

    Raises ConfigurationError for unfit settings, RequestError for a missing retain or holdout set, DivergedError for a
    loss or gradient that is not finite.
    """

    PARTS: ClassVar[dict[str, dict[str, type]]] = {
        "forget": LOSSES,
        "retain": LOSSES,
        "combine": COMBINATIONS,
        "rate": RATES,
        "mask": ATTRIBUTIONS,
    }

    forget: Loss = Ascent()
    retain: Loss | None = NLL()
    combine: Combination = WeightedSum()
    rate: Rate = Constant()
    mask: Attribution | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-5
    epochs: Positive = 5.0
    steps: Count | None = None
    batch_size: Count = 16
    accumulation: Count = 1
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive | None = None
    clip_before_mask: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    stop_forget_nll: float | Literal["holdout"] | None = None
    stop_retain_nll: Positive | None = None
    stop_retain_rise: Positive | None = 1.0
    checkpoint_every: Annotated[int, Field(ge=0)] = 100
    seed: int = 0

    def __post_init__(self) -> None:
        config.check(self)
        if self.retain is None and (isinstance(self.rate, GeN) or not self.combine.fixed):
            part = type(self.rate if self.combine.fixed else self.combine)
            raise ConfigurationError(
                f"{config.name_of(part)} needs a retain loss; {config.name_of(type(self))} has none."
            )

    def __call__(self, loaded: Loaded, request: Request, context: Context) -> History:
        """Train `loaded.model` in place until the steps are done or a stop rule holds."""
        sides, notes = self.sides(request, context.encoder)
        per_step = self.batch_size * self.accumulation
        steps = self.steps or max(1, round(self.epochs * len(request.forget) / min(per_step, len(request.forget))))
        plan = Plan(
            steps=steps,
            stop_forget_nll=self._forget_target(loaded, request, context.encoder),
            **{name: getattr(self, name) for name in _SHARED},
        )
        mask = self._mask(loaded, request, context)
        history = descend(
            loaded,
            plan,
            **sides,
            mask=mask,
            folder=context.checkpoint,
            resume=context.resume,
            progress=context.progress,
            identity=context.identity,
        )
        history.notes.extend(notes)
        if self.stop_forget_nll == "holdout":
            history.found["stopped_by"] = {"holdout": sorted({example.mark for example in request.holdout})}
            history.notes.append(
                f"the {len(request.holdout)} holdout examples set where to stop: on others like them a membership attack "
                "may fare better than on these"
            )
        if mask is not None:
            history.notes.extend(idle_experts(mask))
            overlap = mask.info.get("insight", {}).get("overlap", [])  # with the masks it was compared to when made
            history.found["attribution"] = describe(mask) | {"overlap": overlap}
        return history

    def check(self, request: Request, *, adapter: bool | None) -> None:
        """Raise RequestError for a set that this descent needs and the request lacks, whatever the model."""
        if self.retain is not None and not (request.replacements or request.retain):
            raise RequestError(
                f"{config.name_of(type(self))} holds the model to a retain set, and the request has none. "
                "Give --retain, or --set retain=null to go without."
            )
        if isinstance(self.mask, FromFile):
            self.mask.opened()
        if self.stop_forget_nll == "holdout" and not request.holdout:
            raise RequestError('stop_forget_nll="holdout" needs a holdout set: give --holdout.')

    def sides(self, request: Request, encoder: Encoder) -> tuple[dict[str, Side], list[str]]:
        """The encoded sides of this descent, and what to tell about them (examples cut)."""
        sides = {"forget": Side.of(self.forget, request.forget, encoder, seed=self.seed)}
        if self.retain is not None:
            self.check(request, adapter=False)
            kept = (*request.replacements, *request.retain)
            sides["retain"] = Side.of(
                self.retain, kept, encoder, seed=self.seed + 1, favoured=len(request.replacements)
            )
        notes = [
            f"{name}: {note}"
            for name, side in sides.items()
            if (note := cut_note((row for rows in side.items for row in rows), encoder.max_length))
        ]
        return sides, notes

    def _mask(self, loaded: Loaded, request: Request, context: Context) -> Mask | None:
        """The mask by this descent's attribution; a resumed run's own, where the attribution is still the same."""
        if self.mask is None:
            return None
        asked = json.loads(json.dumps(config.to_dict(self)["mask"]))
        saved = context.checkpoint / MASK if context.resume and context.checkpoint else None
        if saved is not None and saved.is_file():
            known = Mask.open(saved)
            if known.info.get("asked") == asked and asked["name"] != "file":
                return known
        view = View(loaded, request, context.encoder, self.forget, self.batch_size, self.seed)
        found = self.mask.mask(view)
        return replace(found, info={**found.info, "asked": asked})

    def _forget_target(self, loaded: Loaded, request: Request, encoder: Encoder) -> float | None:
        if self.stop_forget_nll != "holdout":
            return self.stop_forget_nll
        return mean_nll(loaded, request.holdout, encoder, self.batch_size)


_SHARED = (
    "combine", "rate", "optimizer", "lr", "weight_decay", "batch_size", "accumulation", "max_grad_norm",
    "clip_before_mask", "precision", "seed", "stop_retain_nll", "stop_retain_rise", "checkpoint_every",
)  # fmt: skip


def idle_experts(mask: Mask) -> list[str]:
    """A note where the mask trains no weight of a mixture's experts, which hold most of such a model."""
    sizes = {name: prod(shape) for name, shape in mask.shapes.items() if len(shape) == 3 and "experts" in name}
    if not sizes or any(mask.kept[name] for name in sizes):
        return []
    share = sum(sizes.values()) / mask.entries
    return [f"the mask trains none of the experts' weights, which are {share:.0%} of the model"]


@torch.inference_mode()
def mean_nll(loaded: Loaded, examples: tuple[Example, ...], encoder: Encoder, batch_size: int) -> float:
    """Mean over examples of the mean NLL per response token, in nats."""
    items = encoder.examples(examples)
    device = next(loaded.model.parameters()).device
    total = sum(
        answers(loaded.model, collate([items[i] for i in part], loaded.pad).to(device)).mean_nll.double().sum().item()
        for part in by_length(items, batch_size)
    )
    return total / len(items)

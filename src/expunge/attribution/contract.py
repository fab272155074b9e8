"""What an attribution is: settings, and a score for every weight of the model as it is before unlearning."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from math import prod
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge import config
from expunge.attribution.insight import place
from expunge.attribution.topk import Scores, top_k
from expunge.data import Encoder, collate, packs
from expunge.errors import ConfigurationError, RequestError
from expunge.gradients import Moments, mean_gradient, moments
from expunge.losses import NLL, Loss
from expunge.models import Loaded, answers
from expunge.models.mask import Mask
from expunge.request import Request
from expunge.training.loop import CPU_TOKENS
from expunge.training.sides import Side

Which = Literal["forget", "retain"]
Progress = Callable[[str, int, int], None]  # (stage, examples done, examples in all)


@dataclass
class View:
    """What an attribution may look at: the model before unlearning, the request, and the forget loss in use.

    Gradients are means over examples, in fp32 and evaluation mode, computed when first asked for and kept.
    """

    loaded: Loaded
    request: Request
    encoder: Encoder
    loss: Loss = NLL()
    batch_size: int = 8
    seed: int = 0
    progress: Progress | None = None
    _gradients: dict[tuple[Which, int | None], dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def forget(self) -> Side:
        """The forget examples as the forget loss reads them."""
        return Side.of(self.loss, self.request.forget, self.encoder, seed=self.seed)

    @cached_property
    def retain(self) -> Side:
        """The retain examples, and what corrected ones shall become, under the NLL. Raises RequestError without any."""
        kept = (*self.request.replacements, *self.request.retain)
        if not kept:
            raise RequestError(
                "This attribution weighs forgetting against retaining, and the retain set is empty: give --retain."
            )
        return Side.of(NLL(), kept, self.encoder)

    @cached_property
    def params(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name, in the model's order."""
        return {name: param for name, param in self.loaded.model.named_parameters() if param.requires_grad}

    def chosen(self, which: Which, count: int | None = None) -> list[int]:
        """Indices of at most `count` examples of a side, drawn by the seed; all of them by default."""
        total = len(getattr(self, which).items)
        if count is None or count >= total:
            return list(range(total))
        generator = torch.Generator().manual_seed(self.seed)
        return sorted(torch.randperm(total, generator=generator)[:count].tolist())

    def gradient(self, which: Which, count: int | None = None) -> dict[str, Tensor]:
        """ḡ = (1/N) Σ ∇loss of one side by parameter name, over at most `count` of its examples.

        Raises DivergedError where a gradient is not finite.
        """
        key = (which, count)
        if key not in self._gradients:
            side = self.forget if which == "forget" else self.retain
            self._gradients[key] = self._mean_gradient(side, self.chosen(which, count), which)
        return self._gradients[key]

    def moments(self, which: Which, count: int | None = None, *, squares: bool = True) -> Moments:
        """Mean and, with `squares`, mean square of the per-example gradients of one side's NLL, whatever the loss."""
        side = self.retain if which == "retain" else Side.of(NLL(), self.request.forget, self.encoder)
        used = self.chosen(which, count)
        if not squares:
            return Moments(self._mean_gradient(side, used, which), {}, len(used))
        items = [side.items[index][0] for index in used]
        settings: dict[str, Any] = {"pad": self.loaded.pad, "batch_size": self.batch_size}
        return moments(self.loaded.model, items, **settings, progress=self._told(which, len(used)))

    def _mean_gradient(self, side: Side, used: Sequence[int], which: Which) -> dict[str, Tensor]:
        if side.loss.reference == "logprobs":
            raise ConfigurationError(
                f"{config.name_of(type(side.loss))} is the distance from the model before unlearning: there its gradient "
                "is 0 and ranks nothing. Attribute with the forget loss of the descent instead, such as nll or npo."
            )
        model, pad = self.loaded.model, self.loaded.pad
        device = next(model.parameters()).device
        model.eval()

        def losses(indices: Sequence[int]) -> Tensor:
            got = answers(model, collate(side.encoded(indices), pad).to(device))
            parts = got.split(*[len(indices)] * len(side.loss.reads))
            # The model before unlearning is this one: its answers are the reference, to the last bit.
            reference = tuple(part.sum_nll.detach() for part in parts) if side.loss.reference else None
            return side.loss(*parts, reference=reference)

        lengths = [side.length(index) * len(side.loss.reads) for index in used]
        room = CPU_TOKENS if device.type == "cpu" else float("inf")
        passes = [[used[place] for place in places] for places in packs(lengths, self.batch_size, room)]
        return mean_gradient(self.params, losses, passes, progress=self._told(which, len(used)))

    def _told(self, which: Which, total: int) -> Callable[[int], None] | None:
        told = self.progress
        return (lambda done: told(f"{which} gradient", done, total)) if told else None


@dataclass(frozen=True, kw_only=True)
class Attribution(ABC):
    """Scores every weight and keeps the share `ratio` with the largest; the others are frozen.

    ratio: share of the eligible weights to train, in (0, 1]. scope: weights compete over the whole model ("global"),
    within each transformer layer ("layer") or within each tensor ("tensor"). exclude: name patterns (`*` for anything)
    of parameters that are never trained, such as "*embed_tokens*"; the ratio is of the others.
    """

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.95
    scope: Literal["global", "layer", "tensor"] = "global"
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.exclude, str):
            object.__setattr__(self, "exclude", (self.exclude,))
        config.check(self)

    @abstractmethod
    def scores(self, view: View) -> Scores:
        """A function from a parameter's name to its weights' scores: fp32, ≥ 0, in the parameter's shape.

        It may be asked for the same parameter more than once and must give the same numbers.
        """

    def eligible(self, view: View) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters that take part."""
        idle = next(
            (pattern for pattern in self.exclude if not any(fnmatch(name, pattern) for name in view.params)), None
        )
        if idle is not None:
            raise ConfigurationError(
                f"exclude: {idle!r} fits no parameter of the model. Parameters have names such as "
                f"{next(iter(view.params))!r}; * stands for anything."
            )
        return {name: tuple(param.shape) for name, param in view.params.items() if not self.excluded(name)}

    def excluded(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.exclude)

    def mask(self, view: View) -> Mask:
        """The mask over all trainable parameters. Raises ConfigurationError where every parameter is excluded."""
        eligible = self.eligible(view)
        if not eligible:
            raise ConfigurationError(f"{config.name_of(type(self))} has nothing to rank: exclude={list(self.exclude)}.")
        bits = self.select(view, eligible)
        shapes = {name: tuple(param.shape) for name, param in view.params.items()}
        frozen = {name: torch.zeros(-(-prod(shape) // 8), dtype=torch.uint8)
                  for name, shape in shapes.items() if name not in bits}  # fmt: skip
        return Mask({name: (bits | frozen)[name] for name in shapes}, shapes, self.info(view))

    def select(self, view: View, eligible: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """The packed bits of the weights to train: the share `ratio` of each group that competes, at least one weight."""
        scores, bits = self.scores(view), dict[str, Tensor]()
        for group in groups(eligible, self.scope):
            bits |= top_k(scores, group, share(self.ratio, sum(map(prod, group.values()))))
        return bits

    def info(self, view: View) -> dict[str, Any]:
        """What a mask file says of its making."""
        return {
            "attribution": type(self).__name__,
            "settings": config.to_dict(self),
            "model": view.loaded.fingerprint,
            "forget_loss": repr(view.loss),
            "forget_examples": len(view.request.forget),
            "retain_examples": len(view.request.retain),
            "seed": view.seed,
        }


def share(ratio: float, entries: int) -> int:
    """How many of `entries` weights are trained."""
    return max(1, round(ratio * entries))


def groups(shapes: Mapping[str, tuple[int, ...]], scope: str) -> list[dict[str, tuple[int, ...]]]:
    """The parameters that compete with one another; those outside the layers are groups of their own."""
    if scope == "global":
        return [dict(shapes)]
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer, _ = place(name)
        key = f"layer {layer}" if layer is not None and scope == "layer" else name
        found.setdefault(key, {})[name] = shape
    return list(found.values())

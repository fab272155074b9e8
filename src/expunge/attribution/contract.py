"""What an attribution is: settings, and a score for every weight of the model as it is before unlearning."""

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from math import prod
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge import config
from expunge.attribution.topk import Scores, top_k
from expunge.data import Encoder, collate, packs
from expunge.errors import ConfigurationError, RequestError
from expunge.gradients import Moments, mean_gradient, moments
from expunge.losses import NLL, Loss
from expunge.models import Loaded, answers
from expunge.models.checkpoint import fingerprint
from expunge.models.mask import Mask, pack
from expunge.request import Request
from expunge.training.loop import CPU_TOKENS
from expunge.training.sides import ReferenceCache, Side

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
    _gradients: dict[tuple[Which, int | None], dict[str, Tensor]] = field(default_factory=dict, repr=False)

    @cached_property
    def forget(self) -> Side:
        """The forget examples as the forget loss reads them."""
        return Side.of(self.loss, self.request.forget, self.encoder, seed=self.seed)

    @cached_property
    def retain(self) -> Side:
        """The retain examples, and what corrected ones shall become, under the NLL. Raises RequestError without any."""
        kept = (*self.request.replacements, *self.request.retain)
        if not kept:
            raise RequestError("This attribution weighs forgetting against retaining, and the retain set is empty.")
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
        self.loaded.model.eval()
        items = [side.items[index][0] for index in used]
        return moments(self.loaded.model, items, pad=self.loaded.pad, batch_size=self.batch_size)

    def _mean_gradient(self, side: Side, used: list[int], stage: str) -> dict[str, Tensor]:
        model, pad = self.loaded.model, self.loaded.pad
        device = next(model.parameters()).device
        model.eval()
        if side.loss.reference is not None:
            cache = ReferenceCache(model, side, used, batch_size=self.batch_size, pad=pad, device=device)
            side = dataclasses.replace(side, cache=cache)

        def losses(indices: Any) -> Tensor:
            batch = collate(side.encoded(indices), pad).to(device)
            return side.values(answers(model, batch), indices)[0]

        lengths = [side.length(index) * len(side.loss.reads) for index in used]
        room = CPU_TOKENS if device.type == "cpu" else float("inf")
        passes = [[used[place] for place in places] for places in packs(lengths, self.batch_size, room)]
        told = self.progress

        def progress(done: int, total: int) -> None:
            if told:
                told(f"{stage} gradient", done, total)

        return mean_gradient(self.params, losses, passes, progress=progress)


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
        config.check(self)

    @abstractmethod
    def scores(self, view: View) -> Scores:
        """A function from a parameter's name to its weights' scores: fp32, ≥ 0, in the parameter's shape.

        It may be asked for the same parameter more than once and must give the same numbers.
        """

    def eligible(self, view: View) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters that take part."""
        return {name: tuple(param.shape) for name, param in view.params.items() if not self.excluded(name)}

    def excluded(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.exclude)

    def mask(self, view: View) -> Mask:
        """The mask over all trainable parameters. Raises ConfigurationError where every parameter is excluded."""
        eligible, scores = self.eligible(view), self.scores(view)
        if not eligible:
            raise ConfigurationError(f"No parameter is left to train: exclude={list(self.exclude)} fits all of them.")
        bits: dict[str, Tensor] = {}
        for group in groups(eligible, self.scope):
            keep = max(1, round(self.ratio * sum(map(prod, group.values()))))
            bits |= top_k(scores, group, keep)
        shapes = {name: tuple(param.shape) for name, param in view.params.items()}
        tensors = {name: bits[name] if name in bits else pack(torch.zeros(shape, dtype=torch.bool))
                   for name, shape in shapes.items()}  # fmt: skip
        return Mask(tensors, shapes, self.info(view))

    def info(self, view: View) -> dict[str, Any]:
        """What a mask file says of its making."""
        folder = view.loaded.folder
        return {
            "settings": config.to_dict(self),
            "model": fingerprint(folder) if folder.is_dir() and not _new_adapter(view.loaded) else None,
            "forget_loss": type(view.loss).__name__,
            "forget_examples": len(view.request.forget),
            "retain_examples": len(view.request.retain),
            "seed": view.seed,
        }


def _new_adapter(loaded: Loaded) -> bool:
    """Whether the adapter's weights are in memory only, so that the folder's fingerprint does not tell them."""
    return loaded.is_adapter and not (loaded.folder / "adapter_config.json").is_file()


def groups(shapes: Mapping[str, tuple[int, ...]], scope: str) -> list[dict[str, tuple[int, ...]]]:
    """The parameters that compete with one another; those outside the layers are groups of their own."""
    if scope == "global":
        return [dict(shapes)]
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer = re.search(r"\.(\d+)\.", name)
        key = f"layer {layer[1]}" if layer and scope == "layer" else name
        found.setdefault(key, {})[name] = shape
    return list(found.values())

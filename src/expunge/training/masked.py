"""Masked training, m ⊙ update: the weights a mask freezes keep their bits, whatever the optimizer does."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.errors import ConfigurationError
from expunge.models.mask import Mask

COMPACT = 0.4  # below this share of kept entries a vector of them costs less memory than state for all of them


@dataclass
class Part:
    """One parameter [n entries] of which the mask keeps some, and what the optimizer sees of it.

    seen: the parameter itself, or with few kept entries a vector of them, [k]. kept: where those stand in the flat
    parameter, int32 or int64 [k]. frozen and origin: otherwise the places of the frozen entries and their values,
    [n − k]. weight: of a soft mask, in `seen`'s shape.
    """

    param: nn.Parameter
    seen: nn.Parameter
    kept: Tensor | None = None
    frozen: Tensor | None = None
    origin: Tensor | None = None
    weight: Tensor | None = None


class Masked:
    """What stands between a model's parameters and its optimizer; without a mask, nothing.

    Hard masks: `gather` takes the frozen entries out of the gradients, so that norms, clipping and moments know the kept
    ones only (a frozen entry's gradient may even be NaN), and after a step `scatter` writes the frozen values back.
    Nothing relies on an update being 0: weight decay, −0.0 and NaN would each break that. A parameter with few kept
    entries gets a vector of them for the optimizer, with moments for these alone. One with none at all needs no
    gradient while `halted`, so that the backward pass ends before it.

    Soft masks, weights m in [0, 1]: the *update* is multiplied, θ + m ⊙ (θ' − θ) with θ' what the optimizer makes of θ
    (weight decay included), since AdamW's step does not change with the gradient's scale. The gradients of entries with
    m > 0 are left as they are; those with m = 0 are frozen as above.

    With `late` the frozen entries are taken out only after norms, combination and clipping have seen the whole gradient,
    as WAGLE's release does.
    """

    def __init__(self, model: nn.Module, mask: Mask | None, *, late: bool = False) -> None:
        """Takes every trainable parameter of `model` to fp32, the master weights.

        Raises ConfigurationError if there is none, or if the mask is for other parameters, keeps nothing, or has a
        weight outside [0, 1].
        """
        trainable = {name: param for name, param in model.named_parameters() if param.requires_grad}
        if not trainable:
            raise ConfigurationError("The model has no trainable parameters: every one is frozen.")
        for param in trainable.values():
            param.data = param.data.float()  # a frozen base keeps its dtype
        self.late, self.digest = late, ""
        self.halting: list[nn.Parameter] = []
        if mask is None:
            self.parts = {name: Part(param, param) for name, param in trainable.items()}
        else:
            _check(mask, trainable)
            self.digest = _digest(mask)
            kept = {name: param for name, param in trainable.items() if mask.kept[name] > 0}
            self.parts = {name: _part(param, mask[name]) for name, param in kept.items()}
            self.halting = [param for name, param in trainable.items() if name not in self.parts]
        if not self.parts:
            raise ConfigurationError("The mask keeps no weight at all: nothing would be trained.")
        self.seen = {name: part.seen for name, part in self.parts.items()}
        self.measured = trainable if late else self.seen  # what norms, combination and clipping look at

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Wholly frozen parameters need no gradient in here, unless `late` has it measured; nor are any left behind."""
        flags = [param.requires_grad for param in self.halting]
        try:
            for param in self.halting:
                param.requires_grad_(self.late)
            yield
        finally:
            for param, flag in zip(self.halting, flags, strict=True):
                param.requires_grad_(flag)
            self.clear()

    def gather(self) -> None:
        """Give the optimizer's tensors the gradients of the kept entries, and the frozen entries the gradient 0."""
        for part in self.parts.values():
            gradient = part.param.grad
            if gradient is None:
                continue
            if part.kept is not None:
                part.seen.grad = gradient.reshape(-1).index_select(0, part.kept)  # [k]
                gradient.zero_()
            elif part.frozen is not None:
                part.param.grad = gradient.contiguous()
                part.param.grad.view(-1).index_fill_(0, part.frozen.long(), 0.0)
        for param in self.halting:
            param.grad = None

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """θ ← θ + m ⊙ (θ' − θ)."""
        soft = [(part.seen, part.seen.detach().clone(), part.weight) for part in self.parts.values()
                if part.weight is not None]  # fmt: skip
        optimizer.step()
        for seen, before, weight in soft:
            torch.lerp(before, seen, weight, out=seen.data)
        self.scatter()

    @torch.no_grad()
    def scatter(self) -> None:
        """Write what the optimizer's tensors hold into the model, and the frozen entries' values over whatever is there."""
        for part in self.parts.values():
            flat = part.param.data.view(-1)
            if part.kept is not None:
                flat.index_copy_(0, part.kept.long(), part.seen.data)
            elif part.frozen is not None and part.origin is not None:
                flat.index_copy_(0, part.frozen.long(), part.origin)

    def weighted(self, directions: Sequence[Tensor]) -> list[Tensor]:
        """m ⊙ d for directions of the tensors `seen`; a hard mask's frozen entries are left to `scatter`."""
        parts = self.parts.values()
        return [d if part.weight is None else d * part.weight for part, d in zip(parts, directions, strict=True)]

    def clear(self) -> None:
        """Drop all gradients."""
        for part in self.parts.values():
            part.param.grad = part.seen.grad = None
        for param in self.halting:
            param.grad = None


def _part(param: nn.Parameter, mask: Tensor) -> Part:
    param.data = param.data.contiguous()
    weight = mask.to(param.device).reshape(-1)
    keep = weight != 0
    hard = mask.dtype == torch.bool or bool((weight[keep] == 1).all())
    count = int(keep.sum())
    flat = param.detach().view(-1)
    if count < COMPACT * keep.numel():
        places = keep.nonzero().view(-1)
        seen = nn.Parameter(flat[places])
        return Part(param, seen, kept=_narrow(places, keep), weight=None if hard else weight[places].float())
    soft = None if hard else weight.float().view(param.shape)
    if count == keep.numel():
        return Part(param, param, weight=soft)
    places = (~keep).nonzero().view(-1)
    return Part(param, param, frozen=_narrow(places, keep), origin=flat[places], weight=soft)


def _narrow(places: Tensor, entries: Tensor) -> Tensor:
    """Half the memory, where the places fit 32 bits."""
    return places.int() if entries.numel() < 2**31 else places


def _check(mask: Mask, trainable: Mapping[str, nn.Parameter]) -> None:
    wanted = {name: tuple(param.shape) for name, param in trainable.items()}
    for name in sorted(wanted.keys() | mask.shapes.keys()):
        if wanted.get(name) != mask.shapes.get(name):
            raise ConfigurationError(
                f"The mask is for another model: {name} has shape {mask.shapes.get(name, 'none')} in the mask and "
                f"{wanted.get(name, 'none')} among the trainable parameters."
            )
    if mask.soft:
        for name, weight in mask.tensors.items():
            if not bool(((weight >= 0) & (weight <= 1)).all()):
                raise ConfigurationError(f"The mask's weights for {name} are not all in [0, 1].")


def _digest(mask: Mask) -> str:
    """The sha256 of which entries are kept, or of their weights."""
    digest = hashlib.sha256()
    for name in sorted(mask.tensors):
        tensor = mask.tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {mask.shapes[name]}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()

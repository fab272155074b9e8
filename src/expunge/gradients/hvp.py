"""Products of the mean loss's curvature with a vector: never the p×p matrix, never a graph of more than one pass.

With z_it ∈ R^V the logits that predict labelled token t of example i, T_i its labelled tokens, J_it = ∂z_it/∂θ [V, p] and
p_it = softmax(z_it), the mean NLL l_i = (1/T_i) Σ_t −log p_it[y_it] has

    Hessian        H = (1/n) Σ_i ∇²l_i
    Gauss–Newton   G = (1/n) Σ_i (1/T_i) Σ_t J_itᵀ (diag(p_it) − p_it p_itᵀ) J_it

G is also the Fisher matrix, is positive semi-definite, and equals H where the logits are linear in θ or the labels fit
perfectly. θ is the model's p trainable parameters laid end to end in the order of `named_parameters`, a vector [p] in fp32.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.data import Batch, Encoded, collate, packs
from expunge.errors import ConfigurationError, DivergedError, ModelError
from expunge.gradients.mean import mean_gradient
from expunge.models import answers

Kind = Literal["gauss_newton", "hessian", "difference"]
REACH = 2e-3  # of ‖θ‖: near eps^(1/3) in fp32, where rounding and truncation of a central difference are alike


class Operator(Protocol):
    """A symmetric matrix H = (1/n) Σ_i H_i [p, p] over n examples, known by its products alone."""

    def __len__(self) -> int:
        """n"""
        ...

    def __call__(self, v: Tensor, indices: Sequence[int] | None = None, /) -> Tensor:
        """v [p] → H v [p], H being the mean over all examples or over those of `indices`."""
        ...


@dataclass(frozen=True)
class Curvature:
    """v ↦ G v ("gauss_newton") or H v ("hessian"), exactly; or (∇L(θ+εv) − ∇L(θ−εv)) / 2ε ≈ H v ("difference"), a check.

    Over `items`, in passes of at most `batch_size` examples and `room` padded tokens; how they are cut changes a product by
    rounding only. The model is in evaluation mode during a product, θ and every setting are afterwards as they were.
    Besides the graph of one pass a product takes a few vectors [p]. Relative to a gradient of the same examples it
    costs about 2.2 (G), 2.6 (H) or 2 (difference) times as much where the base weights are frozen.

    An adapter that holds part of its own computation constant under differentiation (PEFT's DoRA: the norm of W + BA)
    has no gradient field, so its H is not symmetric and "difference" does not match it; its G is sound.

    Raises ModelError if no parameter is trainable or the attention has no second derivative, ConfigurationError if
    there are no examples or v has not p entries, DivergedError if a product is not finite.
    """

    model: nn.Module
    items: Sequence[Encoded]
    pad: int = 0
    kind: Kind = "gauss_newton"
    batch_size: int = 16
    room: float = math.inf

    @cached_property
    def params(self) -> dict[str, nn.Parameter]:
        """The parameters θ is made of, in its order."""
        found = {name: param for name, param in self.model.named_parameters() if param.requires_grad}
        if not found:
            raise ModelError("The model has no trainable parameter, so no curvature. Give one with an adapter.")
        return found

    @cached_property
    def sizes(self) -> list[int]:
        """Entries of each parameter; their sum is p."""
        return [param.numel() for param in self.params.values()]

    def __len__(self) -> int:
        return len(self.items)

    def flat(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """One tensor per parameter name → [p], fp32."""
        return torch.cat([tensors[name].detach().reshape(-1).float() for name in self.params])

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """[p] → one tensor per parameter name, of the parameter's shape and dtype."""
        if vector.shape != (sum(self.sizes),):
            raise ConfigurationError(
                f"A vector of {sum(self.sizes)} entries is needed, one for each trainable entry; got {list(vector.shape)}."
            )
        parts = zip(self.params.items(), vector.split(self.sizes), strict=True)
        return {name: part.view_as(param).to(param) for (name, param), part in parts}

    def __call__(self, v: Tensor, indices: Sequence[int] | None = None, /) -> Tensor:
        """v [p] → the product [p] in fp32, over all items or over those of `indices`."""
        named = self.named(v)
        if self.kind == "difference":
            return self._difference(named, indices)
        surrogate = _gauss_newton if self.kind == "gauss_newton" else _hessian
        return self._mean_gradient(lambda batch: surrogate(self.model, batch, self.params, named), indices)

    def gradient(self, indices: Sequence[int] | None = None) -> Tensor:
        """∇L = (1/n) Σ_i ∇l_i: [p], over all items or over those of `indices`."""
        return self._mean_gradient(lambda batch: answers(self.model, batch).mean_nll, indices)

    def example_gradients(self) -> Iterator[Tensor]:
        """∇l_i of one item after the other, each as a block [1, p]."""
        for index in range(len(self)):
            yield self.gradient([index])[None]

    def _difference(self, v: Mapping[str, Tensor], indices: Sequence[int] | None) -> Tensor:
        before = {name: param.detach().clone() for name, param in self.params.items()}
        length = self.flat(v).norm().item()
        if not length:
            return self.flat(v)
        step = REACH * max(1.0, self.flat(before).norm().item()) / length
        slopes = []
        try:
            for signed in (step, -step):
                with torch.no_grad():
                    for name, param in self.params.items():
                        param.copy_(before[name] + signed * v[name])
                slopes.append(self.gradient(indices))
        finally:
            with torch.no_grad():
                for name, param in self.params.items():
                    param.copy_(before[name])
        return (slopes[0] - slopes[1]) / (2 * step)

    def _mean_gradient(self, losses: Callable[[Batch], Tensor], indices: Sequence[int] | None) -> Tensor:
        chosen = range(len(self)) if indices is None else indices
        items = [self.items[index] for index in chosen]
        device = next(iter(self.params.values())).device

        def of_pass(places: Sequence[int]) -> Tensor:
            return losses(collate([items[place] for place in places], self.pad).to(device))

        with _twice_differentiable(self.model):
            passes = packs([len(item) for item in items], self.batch_size, self.room)
            return self.flat(mean_gradient(self.params, of_pass, passes))


# Functions of θ whose gradient is the product wanted; their values mean nothing.


def _gauss_newton(model: nn.Module, batch: Batch, params: Mapping[str, Tensor], v: Mapping[str, Tensor]) -> Tensor:
    """Σ_t ⟨z_it, u_it⟩ with u = (1/T)(diag(p) − ppᵀ) J v held constant; its gradient is Jᵀu. One value a token: [N].

    J v comes from two reverse passes: Jᵀw is linear in w [N, V], and the derivative of ⟨Jᵀw, v⟩ by w is J v. That is
    faster here than a forward-mode pass, which computes the tangents of the frozen part's inner steps as well.
    """
    got = answers(model, batch)
    w = torch.zeros_like(got.logits, requires_grad=True)
    pulled = torch.autograd.grad(got.logits, list(params.values()), w, create_graph=True, allow_unused=True)
    reached = [(back, v[name]) for name, back in zip(params, pulled, strict=True) if back is not None]
    (moved,) = torch.autograd.grad([back for back, _ in reached], w, [part for _, part in reached])  # J v: [N, V]
    p = got.logits.detach().softmax(-1)  # [N, V]
    u = p * (moved - (p * moved).sum(-1, keepdim=True)) / got.lengths[got.row, None]  # [N, V]
    return (got.logits * u).sum(-1)


def _hessian(model: nn.Module, batch: Batch, params: Mapping[str, Tensor], v: Mapping[str, Tensor]) -> Tensor:
    """⟨Σ_i ∇l_i, v⟩; its gradient is Σ_i ∇²l_i v. One value: []."""
    total = answers(model, batch).mean_nll.sum()
    slopes = torch.autograd.grad(total, list(params.values()), create_graph=True, allow_unused=True)
    parts = [(slope * v[name]).sum() for name, slope in zip(params, slopes, strict=True) if slope is not None]
    return torch.stack(parts).sum()


@contextmanager
def _twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and an attention that can be differentiated twice; afterwards all is as it was."""
    attention = getattr(getattr(model, "config", None), "_attn_implementation", "eager")
    if attention not in ("eager", "sdpa"):
        raise ModelError(f"Attention {attention!r} has no second derivative. Load the model with 'sdpa' or 'eager'.")
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module in training:
            module.training = True


def over(operator: Operator, indices: Sequence[int] | None) -> Sequence[int]:
    """The examples meant: `indices`, or all."""
    return range(len(operator)) if indices is None else indices


def mean_eigenvalue(
    operator: Operator, like: Tensor, *, indices: Sequence[int] | None = None, chunk: int = 16, seed: int = 0
) -> float:
    """tr(H)/p by Hutchinson's estimate: E[vᵀ H_C v] over random signs v ∈ {−1, 1}^p, for one pass over the examples.

    Each `chunk` of examples C has signs of its own, so n examples give n/chunk independent estimates. `like`: any
    tensor [p].
    """
    chosen, total = over(operator, indices), 0.0
    draw = torch.Generator().manual_seed(seed)
    for start in range(0, len(chosen), chunk):
        part = chosen[start : start + chunk]
        signs = (2 * torch.randint(2, like.shape, generator=draw) - 1).to(like.device, torch.float32)
        total += len(part) * torch.dot(signs, operator(signs, part)).item()
    return total / len(chosen) / like.numel()


def largest_eigenvalue(
    operator: Operator, like: Tensor, *, indices: Sequence[int] | None = None, iterations: int = 8, seed: int = 0
) -> float:
    """max |eigenvalue| of H from below, by `iterations` power iterations from a random start. `like`: any tensor [p]."""
    v = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like.device)
    length = 0.0
    for _ in range(iterations):
        v = operator(v / v.norm(), over(operator, indices))
        length = v.norm().item()
        if not length:
            return 0.0
    if not math.isfinite(length):
        raise DivergedError("The curvature's largest eigenvalue is not finite: the model's weights or losses are not.")
    return length


def subset(curvature: Curvature, indices: Sequence[int]) -> Curvature:
    """The same curvature over the items of `indices` alone."""
    return replace(curvature, items=[curvature.items[index] for index in indices])

"""LLMEraser: the influence of single training instances on an adapter, taken out in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from expunge import config
from expunge.config import Count, Positive
from expunge.data import Encoded, Encodings
from expunge.data.edited import Edited, check_known
from expunge.errors import ConfigurationError, DivergedError
from expunge.gradients import FACTORS, Curvature, Solution
from expunge.gradients.damped import Solver, losses, lowest, move, moved, solved, undone_on_failure, unit
from expunge.gradients.solve import relative_residual
from expunge.methods import solve_record as record
from expunge.methods.contract import Context
from expunge.models import Loaded
from expunge.models.adapters import learned_adapter, no_adapter
from expunge.request import Request
from expunge.training import History
from expunge.training.loop import CPU_TOKENS


@dataclass(frozen=True, kw_only=True)
class LLMEraser:
    """Θ ← Θ̂ + Δ with (H + λI)Δ = b, b = (1/n) Σ_S [∇l(before) − ∇l(after)] (arXiv 2412.00383).

    Θ̂: an adapter's parameters [p], trained on n instances, forget and retain set together. ∇l(after) = 0 for an
    instance that is removed. H [p, p] is the curvature of the mean loss over all n, known by its products alone.

    solver: "cg" (conjugate gradient; several λ share one Krylov space), "sgd" (the paper's mini-batch solve) or
    "datainf" (closed form, a baseline). curvature: "gauss_newton" (positive semi-definite) or "hessian" (the paper's).
    factors: candidates for λ as multiples of the mean eigenvalue (the paper says nothing of λ); the one with the lowest
    loss on the edited fine-tuning set is taken, among those with ‖Δ‖ ≤ max_ratio · ‖Θ̂‖, since a linear model holds near
    Θ̂ only (on a toy the loss had trebled at .65). damping: λ itself instead, whatever ‖Δ‖.
    rounds: 1 is the paper; each further one solves again at the new Θ with the edited set's H and b = −(its gradient),
    a Newton step towards the retrained adapter, while such a step is found and lowers the edited loss. An early-stopped
    adapter is thereby trained on, too.
    train: the file or files the adapter was fine-tuned on; each forget example must be in it, and its rest is what stays.
    subset: examples that H and the edited loss are taken over, drawn once by the seed; none: all. "sgd" draws its
    mini-batches from all.
    tolerance: relative residual ‖(H + λI)Δ − b‖/‖b‖ that ends a solve; passes: how often it may use n examples, and
    seconds how long it may take.
    batch_size: examples run together, and the mini-batch of "sgd".

    Raises ConfigurationError without an adapter of ordinary tensors (LoRA, DoRA, IA3, prompt and prefix tuning),
    RequestError without the fine-tuning set, DivergedError if no solve gets its residual below 1.
    """

    solver: Solver = "cg"
    curvature: Literal["gauss_newton", "hessian"] = "gauss_newton"
    damping: Positive | None = None
    factors: tuple[Positive, ...] = FACTORS
    max_ratio: Positive = 0.5
    rounds: Count = 1
    train: str | tuple[str, ...] | None = None
    subset: Count | None = 1024
    tolerance: Positive = 0.01
    passes: Positive = 50.0
    seconds: Positive = float("inf")
    batch_size: Count = 16
    seed: int = 0

    def __post_init__(self) -> None:
        config.check(self)
        if not self.factors:
            raise ConfigurationError("llmeraser needs a candidate for λ: give factors, or damping.")

    def check(self, request: Request, *, adapter: bool | None) -> None:
        """Raise for a full model, and without the fine-tuning set, before anything is loaded."""
        if adapter is False:
            raise no_adapter("llmeraser", "--model")
        check_known(request, self.train)

    def __call__(self, loaded: Loaded, request: Request, context: Context) -> History:
        """Move `loaded.model`'s adapter by Δ, in place; where anything fails, it is as it was."""
        edited = self.edited(request, context)
        operator, b, now = self.system(loaded, edited, context)
        origin = operator.flat(operator.params)
        history = record.begun(self, loaded, edited, operator, b, now)
        with undone_on_failure(operator):
            for number in range(self.rounds if b.any() else 0):
                if number:
                    operator, b = now, -now.gradient()
                budget = record.budget(self, context, number, operator)
                try:
                    found, each = self.candidates(operator, b, budget)
                    tried = self.tried(now, found, origin.norm().item())
                    best = lowest(tried, self.trusted, record.loss(history) if number else float("inf"))
                except DivergedError as error:
                    if not number:
                        raise
                    record.left_out(history, number, error)
                    break
                solution = found[best["factor"]]
                best = {**best, **self.residuals(operator, solution, b)}
                move(operator, solution.delta)
                record.add(history, solution, tried, best, b, each)
        return record.ended(history, operator.flat(operator.params) - origin)

    def edited(self, request: Request, context: Context) -> Edited:
        """The fine-tuning set, and what the request does to it."""
        return Edited.of(request, context.encoder, self.train, context.chunk_tokens)

    def system(self, loaded: Loaded, edited: Edited, context: Context) -> tuple[Curvature, Tensor, Curvature]:
        """H over all n instances as they were, b [p], and H over the edited ones.

        An instance that is the same before and after adds exactly nothing to b.
        """
        learned_adapter(loaded, "llmeraser")
        whole = self.over(loaded, Encodings(context.encoder, edited.whole))
        now = self.over(loaded, Encodings(context.encoder, edited.now))
        news = iter(now.items)  # those edited stand first, in the same order
        both = zip(edited.after, whole.items, strict=False)
        pairs = [(old, None if after is None else next(news)) for after, old in both]
        changed = [(old, new) for old, new in pairs if old != new]
        sides = ((1, [old for old, _ in changed]), (-1, [new for _, new in changed if new is not None]))
        b = torch.zeros_like(whole.flat(whole.params))
        for sign, side in sides:
            if side:
                b += sign * len(side) / len(whole) * self.over(loaded, side).gradient()
        return whole, b, now

    def over(self, loaded: Loaded, items: Sequence[Encoded]) -> Curvature:
        """H over encoded instances."""
        room = CPU_TOKENS if next(loaded.model.parameters()).device.type == "cpu" else float("inf")
        return Curvature(loaded.model, items, loaded.pad, self.curvature, self.batch_size, room)

    def candidates(self, operator: Curvature, b: Tensor, budget: Any) -> tuple[dict[float, Solution], float | Tensor]:
        """Δ by factor, and what the factors are multiples of."""
        drawn = self.drawn(len(operator))
        each = unit(self.solver, operator, b, drawn, self.seed) if self.damping is None else 1.0
        factors = self.factors if self.damping is None else (self.damping,)
        return solved(self.solver, operator, b, factors, each, indices=drawn, seed=self.seed, budget=budget), each

    def tried(self, now: Curvature, found: dict[float, Solution], length: float) -> list[dict[str, Any]]:
        """What each candidate does: the loss on the edited set, and ‖Δ‖ over `length` = ‖Θ̂‖."""
        rows, drawn = [], self.drawn(len(now))
        for factor, solution in found.items():
            with moved(now, solution.delta):
                loss = losses(now, drawn).mean().item()
            damping = torch.as_tensor(solution.damping).double().mean().item()
            own = {"ratio": solution.delta.norm().item() / length, "residual": solution.residual}
            rows.append({"factor": factor, "damping": damping, "loss": loss} | own)
        return rows

    def residuals(self, operator: Curvature, solution: Solution, b: Tensor) -> dict[str, float | None]:
        """‖(H + λI)Δ − b‖/‖b‖ by a product of its own with H over the solve's examples, and over others.

        A solver's recurrence goes on falling below what fp32 can reach. The residual on examples the solve did not see,
        a quarter as many, says how far H over the subset speaks for all; it is None where there are no others.
        """
        drawn = self.drawn(len(operator))
        order = torch.randperm(len(operator), generator=torch.Generator().manual_seed(self.seed)).tolist()
        others = sorted(order[len(drawn) :][: max(1, len(drawn) // 4)])
        rows = {"residual": drawn, "residual_held_out": others}
        return {
            name: relative_residual(operator, solution.delta, solution.damping, b, indices) if indices else None
            for name, indices in rows.items()
        }

    @property
    def trusted(self) -> float:
        """The largest ‖Δ‖/‖Θ̂‖ a candidate may have."""
        return self.max_ratio if self.damping is None else float("inf")

    def drawn(self, count: int) -> list[int]:
        """The examples that H and the edited loss are taken over."""
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        return sorted(order[: self.subset or count].tolist())

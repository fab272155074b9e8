"""Solvers of (H + λI)Δ = b for a matrix H [p, p] known by its products, b and Δ being vectors [p].

Each reports its relative residual ‖(H + λI)Δ − b‖/‖b‖ along the way, over all n examples or a fixed part of them, and
refuses an answer that is no better than Δ = 0. A damping λ is one number, or one for each entry [p].
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.errors import DivergedError
from expunge.gradients.hvp import Curvature, Operator, largest_eigenvalue, over
from expunge.gradients.iterate import ADVICE, Budget, Meter, Point, State, iterate
from expunge.identity import Identity, digest
from expunge.models.checkpoint import raw

TAIL = 3  # `sgd` averages its iterates with weights ∝ t^TAIL: the last sixth has half of the weight
DECAY = 20  # passes until the step of `sgd` is half of the first: a constant one leaves a floor under the residual
PROBE = 1024  # examples: over 60 of 240 the residual was .90 where over all it was .33
NEGATIVE = "negative curvature"
Indices = Sequence[int] | None
Damping = float | Tensor


@dataclass(frozen=True)
class Solution:
    """Δ [p], the λ it belongs to, the way there (`curve`), and why the solver stopped.

    products: how often the matrix, over whichever examples, was multiplied. negative_curvature: some v with vᵀ(H + λI)v < 0
    was met, so that the quadratic has no minimum; Δ is then the last iterate before it (`cg`, `path`).
    """

    delta: Tensor
    damping: Damping
    curve: tuple[Point, ...]
    products: int
    negative_curvature: bool
    stopped: str

    @property
    def residual(self) -> float:
        return self.curve[-1].residual


def relative_residual(operator: Operator, delta: Tensor, damping: Damping, b: Tensor, indices: Indices = None) -> float:
    """‖(H + λI)Δ − b‖/‖b‖ with H over `indices`, or all; 0 where b = 0 = Δ. Makes one product, none for Δ = 0."""
    if not delta.any():
        return 1.0 if b.any() else 0.0
    return norm(operator(delta, indices) + damping * delta - b) / (norm(b) or 1.0)


def cg(
    operator: Operator,
    b: Tensor,
    damping: Damping,
    *,
    indices: Indices = None,
    probe: Indices = None,
    start: Tensor | None = None,
    precondition: Callable[[Tensor], Tensor] | None = None,
    budget: Budget = Budget(),
) -> Solution:
    """Conjugate gradient on ½Δᵀ(H + λI)Δ − ⟨b, Δ⟩, with H over `indices` (default: all); one product an iteration.

    The quadratic falls at each iteration; the residual may rise now and then. It is that of the iteration itself, or with
    `probe` the one over those examples, for which it makes one more product. `precondition`: r ↦ M⁻¹r, symmetric and
    positive. Stops before a direction of negative curvature. Raises DivergedError if the last residual is not below 1.
    """
    meter = Meter(operator)
    inverse = precondition or (lambda r: r)

    def begin() -> State:
        x = torch.zeros_like(b) if start is None else start.clone()
        r = b - meter(x, indices) - damping * x if x.any() else b.clone()
        d = inverse(r).clone()
        return {"x": x, "r": r, "d": d, "rz": dot(r, d)}

    def step(state: State) -> State | str:
        d = state["d"]
        product = meter(d, indices) + damping * d  # [p]
        curvature = dot(d, product)
        if not curvature > 0:
            return NEGATIVE if curvature <= 0 else "not finite"
        rate = (state["rz"] / curvature).item()
        r = state["r"] - rate * product
        z = inverse(r)
        rz = dot(r, z)
        return {"x": state["x"] + rate * d, "r": r, "d": z + (rz / state["rz"]).item() * d, "rz": rz}

    def measure(state: State) -> float:
        if probe is None:
            return norm(state["r"]) / (norm(b) or 1.0)
        return relative_residual(meter, state["x"], damping, b, probe)

    state, curve, reason = iterate(meter, begin, step, measure, budget, identity("cg", operator, b, damping, indices))
    return better_than_nothing(Solution(state["x"], damping, curve, meter.products, reason == NEGATIVE, reason))


def sgd(
    operator: Operator,
    b: Tensor,
    damping: Damping,
    *,
    batch: int = 16,
    probe: Indices = None,
    check: int | None = None,
    start: Tensor | None = None,
    seed: int = 0,
    budget: Budget = Budget(),
) -> Solution:
    """LLMEraser's solver (arXiv 2412.00383): Δ ← Δ − η (H_BΔ + λΔ − b) over mini-batches B of `batch` examples.

    The paper leaves the settings open. Here the mini-batches are the data in an order new in each pass, and
    η = 1/(λ_max + λ)/(1 + passes/20): λ_max is the largest eigenvalue that a few power iterations find on any of four
    mini-batches, which a stochastic step needs to be stable. Δ is the average of the iterates with weights ∝ t³, a tail
    average that need not know its end. The residual is measured every `check` mini-batches over `probe` (default: 1,024
    examples drawn once; a measurement then costs a fifth of the products). Over part of the data it has a floor: how far
    that part's H is from the whole's. Raises DivergedError if the last residual is not below 1.
    """
    meter, count = Meter(operator), len(operator)
    if probe is None:
        probe = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:PROBE].tolist()
    each = check or math.ceil(4 * len(probe) / batch)
    in_pass = math.ceil(count / batch)

    def rows(number: int) -> list[int]:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + 1 + number // in_pass)).tolist()
        return order[number % in_pass * batch :][:batch]

    def begin() -> State:
        x = torch.zeros_like(b) if start is None else start.clone()
        parts = [rows(number) for number in range(min(4, in_pass))] if b.any() else []
        top = max((largest_eigenvalue(meter, b, indices=part, iterations=5) for part in parts), default=0.0)
        rate = 1 / (top + float(torch.as_tensor(damping).max()))
        numbers = {
            "rate": torch.tensor(rate, dtype=torch.float64),
            "t": torch.tensor(0),
            "negative": torch.tensor(False),
        }
        return {"x": x, "mean": x.clone(), **numbers}

    def step(state: State) -> State:
        x, mean = state["x"].clone(), state["mean"].clone()
        first, negative = int(state["t"]), state["negative"].clone()
        for number in range(first, first + each):
            product = meter(x, rows(number)) + damping * x
            negative |= dot(x, product).cpu() < 0
            x -= state["rate"].item() / (1 + number / in_pass / DECAY) * (product - b)
            mean += (TAIL + 1) / (TAIL + 1 + number) * (x - mean)
        return {"x": x, "mean": mean, "rate": state["rate"], "t": state["t"] + each, "negative": negative}

    def measure(state: State) -> float:
        return relative_residual(meter, state["mean"], damping, b, probe)

    system = identity(f"sgd {batch} {each} {seed}", operator, b, damping, probe)
    state, curve, reason = iterate(meter, begin, step, measure, budget, system)
    return better_than_nothing(Solution(state["mean"], damping, curve, meter.products, bool(state["negative"]), reason))


def better_than_nothing(solution: Solution) -> Solution:
    if solution.residual >= 1:
        raise DivergedError(
            f"(H + λI)Δ = b was not solved: the relative residual is {solution.residual:.3g} after "
            f"{solution.curve[-1].passes:.1f} passes (stopped by: {solution.stopped}), no better than no change at all. "
            f"Nothing was changed. {ADVICE}"
        )
    return solution


def identity(name: str, operator: Operator, b: Tensor, damping: Damping, indices: Indices) -> Identity:
    """Tells one system from another, so that a state is only ever continued for its own.

    Of a model's curvature the examples, its kind and the adapter's weights count, too; b depends on all other weights.
    """
    vectors = {"right-hand side b": b, "damping λ": torch.as_tensor(damping)}
    hashes = {key: digest([str(value.dtype).encode(), raw(value)]) for key, value in vectors.items()}
    facts = Identity.of(solver=name, examples=len(operator), **hashes)
    facts |= Identity.of(**{"examples of H": digest(str(index).encode() for index in over(operator, indices))})
    if not isinstance(operator, Curvature):
        return facts
    theta = digest(part for key, param in operator.params.items() for part in (key.encode(), raw(param)))
    items = digest(repr(item).encode() for item in operator.items)
    return facts | Identity.of(curvature=operator.kind, **{"θ": theta, "fine-tuning set, as encoded": items})


def dot(left: Tensor, right: Tensor) -> Tensor:
    """⟨left, right⟩ in fp64: []."""
    return torch.dot(left.double(), right.double())


def norm(vector: Tensor) -> float:
    """‖vector‖, added up in fp64."""
    return torch.linalg.vector_norm(vector, dtype=torch.float64).item()

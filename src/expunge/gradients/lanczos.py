"""(H + λI)Δ = b for many λ at the price of one: all of them share a Krylov space."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from expunge.errors import DivergedError
from expunge.gradients.hvp import Operator
from expunge.gradients.iterate import ADVICE, Budget, Meter, Point, State, iterate
from expunge.gradients.solve import NEGATIVE, Indices, Solution, cg, dot, identity, norm

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5)  # for λ, in mean eigenvalues
BASIS_BYTES = 2 * 1024**3  # what a basis may take: 100 vectors of an adapter of 5 M parameters
FEW = 10  # a basis of fewer vectors would not do


def path(
    operator: Operator,
    b: Tensor,
    dampings: Sequence[float],
    *,
    indices: Indices = None,
    iterations: int = 100,
    budget: Budget = Budget(),
) -> tuple[Solution, ...]:
    """What `cg` finds for each of several λ, the largest λ first, for the products that the smallest λ needs alone.

    All H + λI span the same Krylov space span{b, Hb, H²b, ...}. Lanczos builds its orthonormal basis Q [k, p] with
    QHQᵀ = T tridiagonal, reorthogonalised in full at each step; then Δ_λ = Qᵀ(T + λI)⁻¹Qb. It goes on for at most
    `iterations` until every λ's residual is within the tolerance. Where so large a basis would take more than
    BASIS_BYTES, it is cut short; where fewer than ten vectors fit, `cg` runs for one λ after the other, each from the
    last one's Δ. Choosing is the caller's: say, the Δ with the lowest loss on the edited training set.

    Left out are the λ whose residual is not below 1; raises DivergedError if none is left.
    """
    ordered = sorted(dampings, reverse=True)
    room = BASIS_BYTES // (4 * b.numel()) - 1
    if room < min(FEW, iterations):
        return _useful(_one_by_one(operator, b, ordered, indices, budget))
    meter, length = Meter(operator), norm(b)
    basis = b.new_empty(min(iterations, room) + 1, b.numel(), dtype=torch.float32)  # [k + 1, p]

    def begin() -> State:
        basis[0] = b / (length or 1.0)
        empty = torch.zeros(0, dtype=torch.float64)
        return {"basis": basis[:1], "diagonal": empty, "beside": empty.clone()}

    def step(state: State) -> State | str:
        k = len(state["diagonal"])
        if k + 1 == len(basis):
            return "iterations"
        if k and _solve(state, k, ordered[0], length) is None:
            return NEGATIVE  # for every λ
        so_far = basis[: k + 1]
        so_far.copy_(state["basis"])  # the same memory, but for a state read from a file
        new = meter(basis[k], indices)
        diagonal = dot(basis[k], new).cpu()
        for _ in range(2):  # once would leave what rounding brought in
            new = new - (so_far @ new) @ so_far
        beside = torch.tensor(norm(new), dtype=torch.float64)
        basis[k + 1] = new / (beside.item() or 1.0)
        return {
            "basis": basis[: k + 2],
            "diagonal": torch.cat([state["diagonal"], diagonal[None]]),
            "beside": torch.cat([state["beside"], beside[None]]),
        }

    def measure(state: State) -> float:
        k = len(state["diagonal"])
        found = [_solve(state, k, damping, length) for damping in ordered]
        return max((residual for _, residual in filter(None, found)), default=1.0)

    system = identity("path", operator, b, min(ordered), indices)
    state, curve, reason = iterate(meter, begin, step, measure, budget, system)
    return _useful([_solution(state, damping, length, curve, meter.products, reason) for damping in ordered])


def _solve(state: State, k: int, damping: float, length: float) -> tuple[Tensor, float] | None:
    """y [k] = (T + λI)⁻¹‖b‖e₁ of the first k steps and its relative residual; None unless T + λI is positive.

    A state holds the basis [k + 1, p], T's diagonal [k] and what stands beside it [k].
    """
    if not k:
        return torch.zeros(0, dtype=torch.float64), 1.0 if length else 0.0
    beside = state["beside"][: k - 1]
    matrix = torch.diag(state["diagonal"][:k] + damping) + torch.diag(beside, 1) + torch.diag(beside, -1)  # [k, k]
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        return None
    right = torch.zeros(k, 1, dtype=torch.float64)
    right[0] = length
    y = torch.cholesky_solve(right, factor)[:, 0]
    return y, (state["beside"][k - 1] * y[-1].abs()).item() / length


def _solution(
    state: State, damping: float, length: float, curve: Sequence[Point], products: int, reason: str
) -> Solution:
    """The solution for one λ out of the basis, of as many steps as T + λI stays positive for."""
    y, points = torch.zeros(0, dtype=torch.float64), list[Point]()
    for k, point in enumerate(curve):
        found = _solve(state, k, damping, length)
        if found is None:
            reason = NEGATIVE
            break
        y, residual = found
        points.append(replace(point, residual=residual))
    delta = y.to(state["basis"]) @ state["basis"][: len(y)]
    return Solution(delta, damping, tuple(points), products, reason == NEGATIVE, reason)


def _one_by_one(
    operator: Operator, b: Tensor, ordered: Sequence[float], indices: Indices, budget: Budget
) -> list[Solution]:
    found: list[Solution] = []
    for number, damping in enumerate(ordered):
        own = replace(budget, folder=budget.folder and budget.folder / f"damping_{number}")
        start = found[-1].delta if found else None
        try:
            found.append(cg(operator, b, damping, indices=indices, start=start, budget=own))
        except DivergedError:  # a smaller λ would do no better
            break
    return found


def _useful(solutions: Sequence[Solution]) -> tuple[Solution, ...]:
    kept = tuple(solution for solution in solutions if solution.residual < 1)
    if not kept:
        raise DivergedError(f"(H + λI)Δ = b was solved for none of the dampings λ. Nothing was changed. {ADVICE}")
    return kept

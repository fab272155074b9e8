"""(H + λI)Δ = b for each of several λ by the solver of one's choice, and the move to θ + Δ and back."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from expunge.data import collate, packs
from expunge.errors import DivergedError
from expunge.gradients.datainf import DataInf, datainf
from expunge.gradients.hvp import Curvature, mean_eigenvalue, subset
from expunge.gradients.iterate import Budget
from expunge.gradients.lanczos import path
from expunge.gradients.solve import Solution, cg, sgd
from expunge.models import answers

Solver = Literal["cg", "sgd", "datainf"]


def unit(solver: Solver, curvature: Curvature, like: Tensor, indices: Sequence[int], seed: int = 0) -> float | Tensor:
    """What factors of λ are multiples of: the mean eigenvalue of the Gauss–Newton matrix over `indices`.

    For DataInf its own, one for each of the L parameter tensors: (1/n) Σ_i ‖g_il‖²/d_l, [L]. `like`: any tensor [p].
    """
    if solver == "datainf":
        return DataInf.fit(subset(curvature, indices).example_gradients, curvature.sizes, 1.0).dampings
    return mean_eigenvalue(replace(curvature, kind="gauss_newton"), like, indices=indices, seed=seed)


def solved(
    solver: Solver,
    curvature: Curvature,
    b: Tensor,
    factors: Sequence[float],
    unit: float | Tensor = 1.0,
    *,
    indices: Sequence[int],
    seed: int = 0,
    budget: Budget = Budget(),
) -> dict[float, Solution]:
    """A solution with λ = factor · unit by factor, the largest first, without those whose residual is not below 1.

    "cg" takes H over `indices`, for several λ all out of one Krylov space. "sgd" takes mini-batches of all examples, solves
    for one λ after the other from the last one's Δ, and measures its residual over `indices`. "datainf" is the closed form
    over `indices`. Raises DivergedError if no λ's residual is below 1 (DataInf's may be: it is no solver).
    """
    ordered = sorted(factors, reverse=True)
    if solver == "datainf":
        return {factor: _closed_form(curvature, b, factor * unit, indices) for factor in ordered}
    dampings = {factor * float(unit): factor for factor in ordered}
    if solver == "sgd":
        found = _by_sgd(curvature, b, list(dampings), indices, seed, budget)
    elif len(dampings) == 1:
        found = [cg(curvature, b, damping, indices=indices, budget=budget) for damping in dampings]
    else:
        found = path(curvature, b, list(dampings), indices=indices, budget=budget)
    return {dampings[float(solution.damping)]: solution for solution in found}


def _by_sgd(
    curvature: Curvature, b: Tensor, dampings: Sequence[float], probe: Sequence[int], seed: int, budget: Budget
) -> list[Solution]:
    found: list[Solution] = []
    for number, damping in enumerate(dampings):
        own = replace(budget, folder=budget.folder and budget.folder / f"damping_{number}")
        start = found[-1].delta if found else None
        try:
            found.append(
                sgd(curvature, b, damping, batch=curvature.batch_size, probe=probe, start=start, seed=seed, budget=own)
            )
        except DivergedError:  # a smaller λ would do no better
            if not found:
                raise
            break
    return found


def _closed_form(curvature: Curvature, b: Tensor, damping: float | Tensor, indices: Sequence[int]) -> Solution:
    part, sizes = subset(curvature, indices), curvature.sizes
    dampings = torch.as_tensor(damping, device=b.device, dtype=b.dtype).expand(len(sizes))
    return datainf(part, b, DataInf(part.example_gradients, sizes, dampings))


def lowest(tried: Sequence[dict[str, Any]], trusted: float, highest: float = math.inf) -> dict[str, Any]:
    """Of candidates for λ (`factor`, `loss`, `ratio`) the one with the lowest loss, of equals that with the larger factor.

    Raises DivergedError if none has a finite loss and a ratio ‖Δ‖/‖θ‖ of at most `trusted`, or none a loss of at most
    `highest`.
    """
    inside = [row for row in tried if row["ratio"] <= trusted and row["loss"] < math.inf]
    if not inside:
        nearest = min(row["ratio"] for row in tried)
        raise DivergedError(
            f"Each λ tried would move the adapter by {nearest:.3g} times its own norm or more, and max_ratio is "
            f"{trusted:g}. Nothing was changed. Try larger factors, or retrain: --method retrain-adapter."
        )
    found = min(inside, key=lambda row: (row["loss"], -row["factor"]))
    if found["loss"] > highest:
        raise DivergedError(f"No λ tried lowers the loss on the edited fine-tuning set, {highest:.4f} nats a token.")
    return found


@contextmanager
def moved(curvature: Curvature, delta: Tensor) -> Iterator[None]:
    """The model at θ + Δ (Δ: [p]) for a while; afterwards θ has its bits back."""
    before = {name: param.detach().clone() for name, param in curvature.params.items()}
    move(curvature, delta)
    try:
        yield
    finally:
        _assign(curvature, before)


@contextmanager
def undone_on_failure(curvature: Curvature) -> Iterator[None]:
    """Give θ its bits back if the work within fails."""
    before = {name: param.detach().clone() for name, param in curvature.params.items()}
    try:
        yield
    except BaseException:
        _assign(curvature, before)
        raise


@torch.no_grad()
def move(curvature: Curvature, delta: Tensor) -> None:
    """θ ← θ + Δ, Δ: [p]."""
    for name, part in curvature.named(delta).items():
        curvature.params[name].add_(part)


@torch.no_grad()
def _assign(curvature: Curvature, values: Mapping[str, Tensor]) -> None:
    for name, param in curvature.params.items():
        param.copy_(values[name])


@torch.inference_mode()
def losses(curvature: Curvature, indices: Sequence[int] | None = None) -> Tensor:
    """l of each example, mean NLL in nats a token, in evaluation mode: [n], or [len(indices)] in fp64 on the CPU."""
    chosen = list(range(len(curvature)) if indices is None else indices)
    items = [curvature.items[index] for index in chosen]
    device = next(iter(curvature.params.values())).device
    found = torch.empty(len(items), dtype=torch.float64)
    curvature.model.eval()
    for places in packs([len(item) for item in items], curvature.batch_size, curvature.room):
        batch = collate([items[place] for place in places], curvature.pad).to(device)
        found[places] = answers(curvature.model, batch).mean_nll.double().cpu()
    return found

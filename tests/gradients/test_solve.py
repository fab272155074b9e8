"""Solvers: against `torch.linalg.solve`, on dense matrices and on a tiny adapter; what they report; how they refuse."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expunge.errors import ConfigurationError, DivergedError
from expunge.gradients import lanczos
from expunge.gradients.datainf import DataInf, datainf
from expunge.gradients.hvp import Curvature
from expunge.gradients.iterate import Budget, Point
from expunge.gradients.lanczos import path
from expunge.gradients.solve import Solution, cg, relative_residual, sgd
from tests.gradients.test_hvp import Matrices, make_adapter, make_items, off, vector
from tests.oracles.curvature import dense_gauss_newton

P, N = 24, 160
TIGHT = Budget(tolerance=1e-6, passes=500)
DAMPINGS = (0.01, 0.1, 1.0, 10.0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def least_squares(count: int = N) -> Matrices:
    """H_i = x xᵀ: positive semi-definite, of spread-out eigenvalues."""
    features = draw(count, P, 1) * torch.linspace(0.1, 2, P)[:, None]
    return Matrices(features @ features.mT)


def indefinite() -> Matrices:
    return Matrices(torch.diag(torch.linspace(-1, 2, P))[None].repeat(4, 1, 1))


def exact(operator: Matrices, b: Tensor, damping: float | Tensor) -> Tensor:
    matrix = operator.matrices.double().mean(0)
    return torch.linalg.solve(matrix + torch.diag(torch.as_tensor(damping).double().expand(len(b))), b.double())


def by_path(operator: Matrices, b: Tensor, damping: float, **options) -> Solution:
    return path(operator, b, [damping], **options)[0]


@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("solve", [cg, by_path])
def test_krylov_solvers_equal_the_dense_solve(solve: Callable[..., Solution], damping: float) -> None:
    operator, b = least_squares(), draw(P, seed=1)
    found = solve(operator, b, damping, budget=TIGHT)
    assert off(found.delta, exact(operator, b, damping)) < 1e-4
    assert found.residual == pytest.approx(relative_residual(operator, found.delta, damping, b), abs=2e-5)
    assert found.stopped == "tolerance"
    assert not found.negative_curvature
    assert found.products == found.curve[-1].passes == len(found.curve) - 1  # one product an iteration, over all


def test_one_run_solves_every_damping() -> None:
    operator, b = least_squares(), draw(P, seed=1)
    found = path(operator, b, DAMPINGS, budget=TIGHT)
    assert [solution.damping for solution in found] == [10.0, 1.0, 0.1, 0.01]
    for solution in found:
        assert off(solution.delta, exact(operator, b, solution.damping)) < 1e-4
        alone = cg(operator, b, solution.damping, budget=TIGHT)
        ours = [point.residual for point in solution.curve]
        theirs = [point.residual for point in alone.curve]
        common = min(10, len(theirs))  # before rounding tells the two apart
        assert ours[:common] == pytest.approx(theirs[:common], rel=1e-2)
    assert found[0].products <= P  # no more than the space has dimensions: the basis stays orthogonal


def test_path_without_room_for_a_basis(monkeypatch: pytest.MonkeyPatch) -> None:
    operator, b = least_squares(), draw(P, seed=1)
    together = path(operator, b, DAMPINGS, budget=TIGHT)
    monkeypatch.setattr(lanczos, "BASIS_BYTES", 4 * P * 5)
    for with_basis, without in zip(together, path(operator, b, DAMPINGS, budget=TIGHT), strict=True):
        assert without.damping == with_basis.damping
        assert off(without.delta, with_basis.delta) < 1e-4


def test_cg_lowers_the_quadratic_at_each_step_and_the_residual_in_the_end() -> None:
    """On a spectrum within a factor 4 the residual falls at each step, too."""
    operator, b = Matrices(torch.diag(torch.linspace(1, 4, P))[None]), draw(P, seed=1)
    values, residuals = [], []
    for passes in range(1, 9):
        found = cg(operator, b, 0.1, budget=Budget(tolerance=1e-7, passes=passes))
        values.append((found.delta @ (operator(found.delta) + 0.1 * found.delta) / 2 - b @ found.delta).item())
        residuals.append(relative_residual(operator, found.delta, 0.1, b))
        assert found.stopped == "passes"
    assert values == sorted(values, reverse=True)
    assert residuals == sorted(residuals, reverse=True)
    assert [point.residual for point in found.curve[1:]] == pytest.approx(residuals, abs=1e-6)
    assert residuals[-1] < 1e-2


@pytest.mark.parametrize(("batch", "tolerance"), [(8, 2e-2), (N, 2e-3)])
def test_sgd_equals_the_dense_solve(batch: int, tolerance: float) -> None:
    operator, b = least_squares(), draw(P, seed=1)
    found = sgd(operator, b, 0.5, batch=batch, budget=Budget(tolerance=tolerance, passes=400), probe=range(N))
    assert found.stopped == "tolerance"
    assert off(found.delta, exact(operator, b, 0.5)) < 4 * tolerance
    residuals = [point.residual for point in found.curve]
    assert residuals[0] == 1
    assert residuals[-1] == pytest.approx(relative_residual(operator, found.delta, 0.5, b), rel=1e-3)


def test_sgd_measures_on_a_fixed_part_and_repeats_exactly() -> None:
    operator, b = least_squares(), draw(P, seed=1)
    first, second = (sgd(operator, b, 1.0, batch=8, probe=range(40), budget=Budget(passes=5)) for _ in range(2))
    assert torch.equal(first.delta, second.delta)
    assert first.residual == pytest.approx(relative_residual(operator, first.delta, 1.0, b, range(40)))
    assert first.residual != pytest.approx(relative_residual(operator, first.delta, 1.0, b), rel=1e-3)
    other = sgd(operator, b, 1.0, batch=8, probe=range(40), seed=1, budget=Budget(passes=5))
    assert off(other.delta, first.delta) > 1e-6


@pytest.mark.parametrize("solve", [cg, sgd, by_path])
def test_no_factor_two(solve: Callable[..., Solution]) -> None:
    """H = 3I and λ = 1: Δ = b/4."""
    b = draw(P)
    found = solve(Matrices(3 * torch.eye(P)[None]), b, 1.0, budget=Budget(tolerance=1e-5))
    torch.testing.assert_close(found.delta, b / 4, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solve", [cg, sgd, by_path])
def test_no_edit_no_change(solve: Callable[..., Solution]) -> None:
    found = solve(least_squares(), torch.zeros(P), 0.1)
    assert torch.equal(found.delta, torch.zeros(P))
    assert [(point.passes, point.residual) for point in found.curve] == [(0, 0)]


@pytest.mark.parametrize("solve", [cg, by_path])
def test_negative_curvature_is_found_and_reported(solve: Callable[..., Solution]) -> None:
    found = solve(indefinite(), torch.linspace(0.01, 1, P) ** 2, 0.05, budget=TIGHT)
    assert found.negative_curvature
    assert found.stopped == "negative curvature"
    assert 1e-6 < found.residual < 1
    assert not solve(indefinite(), torch.linspace(0, 1, P), 1.5, budget=TIGHT).negative_curvature


def test_one_path_tells_the_dampings_apart_that_met_negative_curvature() -> None:
    found = path(indefinite(), torch.linspace(0.01, 1, P) ** 2, [3.0, 1.5, 0.05], budget=TIGHT)
    assert [(solution.damping, solution.negative_curvature) for solution in found] == [
        (3.0, False),
        (1.5, False),
        (0.05, True),
    ]
    for solution in found[:2]:
        assert off(solution.delta, exact(indefinite(), torch.linspace(0.01, 1, P) ** 2, solution.damping)) < 1e-4


@pytest.mark.parametrize("solve", [cg, sgd, by_path])
def test_an_unsolved_system_is_refused(solve: Callable[..., Solution]) -> None:
    with pytest.raises(DivergedError, match=r"Nothing was changed|nothing was changed"):
        solve(Matrices(-torch.eye(P)[None]), draw(P), 0.1, budget=Budget(passes=100))


@pytest.mark.parametrize("solve", [cg, sgd, by_path])
def test_what_is_not_finite_is_refused(solve: Callable[..., Solution]) -> None:
    with pytest.raises(DivergedError):
        solve(Matrices(torch.full((2, P, P), torch.nan)), draw(P), 0.1)


def test_the_probe_decides_where_there_is_one() -> None:
    operator, b = least_squares(), draw(P, seed=1)
    own, probe = range(120), range(120, N)
    found = cg(operator, b, 1.0, indices=own, probe=probe, budget=Budget(tolerance=1e-6, passes=20))
    assert found.stopped == "passes"  # the probe differs from what is solved, so its residual has a floor
    assert found.residual == pytest.approx(relative_residual(operator, found.delta, 1.0, b, probe))
    assert off(found.delta, exact(Matrices(operator.matrices[:120]), b, 1.0)) < 1e-4


def test_a_warm_start_saves_products() -> None:
    operator, b = least_squares(), draw(P, seed=1)
    cold = cg(operator, b, 0.1, budget=TIGHT)
    near = cg(operator, b, 0.11, budget=TIGHT).delta
    warm = cg(operator, b, 0.1, start=near, budget=Budget(tolerance=1e-2))
    assert warm.products < cg(operator, b, 0.1, budget=Budget(tolerance=1e-2)).products
    again = cg(operator, b, 0.1, start=cold.delta, budget=Budget(tolerance=1e-4))
    assert again.products == 1
    assert torch.equal(again.delta, cold.delta)
    budget = Budget(tolerance=2e-2, passes=300)
    cold, warm = (sgd(operator, b, 0.1, start=start, budget=budget, check=10) for start in (None, cold.delta))
    assert warm.curve[-1].passes < cold.curve[-1].passes


def test_a_preconditioner_saves_products() -> None:
    operator, b = Matrices(torch.diag(torch.logspace(-2, 2, P))[None]), draw(P)
    diagonal = operator.matrices[0].diagonal() + 0.01
    with_it = cg(operator, b, 0.01, precondition=lambda r: r / diagonal, budget=TIGHT)
    assert with_it.products <= 2
    assert cg(operator, b, 0.01, budget=TIGHT).products > 10
    assert off(with_it.delta, exact(operator, b, 0.01)) < 1e-4


def interrupted(solve: Callable[..., Solution], folder: Path, damping: float = 0.05) -> tuple[Solution, Solution]:
    """A solve that stops early and goes on, and the same solve in one go."""
    operator, b = least_squares(), draw(P, seed=1)
    whole = Budget(tolerance=1e-5, passes=12)
    solve(operator, b, damping, budget=replace(whole, passes=5, folder=folder))
    return solve(operator, b, damping, budget=replace(whole, folder=folder)), solve(operator, b, damping, budget=whole)


@pytest.mark.parametrize("solve", [cg, sgd, by_path])
def test_a_solve_goes_on_from_its_state_to_the_same_bits(solve: Callable[..., Solution], tmp_path: Path) -> None:
    resumed, at_once = interrupted(solve, tmp_path / "state")
    assert torch.equal(resumed.delta, at_once.delta)
    assert resumed.products == at_once.products
    for left, right in zip(resumed.curve, at_once.curve, strict=True):
        assert (left.passes, left.residual) == (right.passes, right.residual)
    assert [file.name for file in tmp_path.iterdir()] == ["state"]  # nothing half-written lies about


@pytest.mark.parametrize("solve", [cg, sgd, by_path])
def test_another_systems_state_is_refused(solve: Callable[..., Solution], tmp_path: Path) -> None:
    interrupted(solve, tmp_path / "state")
    budget = Budget(folder=tmp_path / "state")
    for b, damping, name in ((draw(P, seed=2), 0.05, "right-hand side b"), (draw(P, seed=1), 0.06, "damping λ")):
        with pytest.raises(ConfigurationError, match=f"What differs: {name}"):
            solve(least_squares(), b, damping, budget=budget)


def test_the_budget_in_seconds_and_the_progress() -> None:
    seen: list[Point] = []
    budget = Budget(tolerance=0, seconds=0.05, passes=float("inf"), progress=seen.append)
    found = sgd(least_squares(), draw(P), 0.5, budget=budget)
    assert found.stopped == "seconds"
    assert found.curve[-1].seconds >= 0.05
    assert tuple(seen) == found.curve[1:]


GROUPS = (5, 9, 10)  # tensors of P entries in all


def test_datainf_equals_its_dense_formula() -> None:
    gradients, b = draw(12, P), draw(P, seed=1)
    expected, start = [], 0
    for size in GROUPS:
        g, part = gradients[:, start : start + size].double(), b[start : start + size].double()
        damping = 0.1 * g.square().sum(1).mean() / size
        inverses = [torch.linalg.inv(damping * torch.eye(size) + torch.outer(row, row)) for row in g]
        expected.append(torch.stack(inverses).mean(0) @ part)
        start += size
    for blocks in (1, 5, 12):
        inverse = DataInf.fit(lambda blocks=blocks: gradients.split(blocks), GROUPS)
        assert off(inverse(b), torch.cat(expected)) < 1e-5
    operator = Matrices(gradients[:, :, None] * gradients[:, None, :])
    found = datainf(operator, b, inverse)
    matrix = operator.matrices.mean(0) + torch.diag(inverse.spread())
    assert found.residual == pytest.approx(((matrix @ found.delta - b).norm() / b.norm()).item(), rel=1e-4)


def test_datainf_is_exact_for_one_example_and_leaves_alone_what_has_no_gradient() -> None:
    gradients, b = draw(1, P), draw(P, seed=1)
    gradients[:, : GROUPS[0]] = 0
    inverse = DataInf.fit(lambda: [gradients], GROUPS)
    assert not inverse(b)[: GROUPS[0]].any()
    g, rest = gradients[0, GROUPS[0] : sum(GROUPS[:2])], b[GROUPS[0] : sum(GROUPS[:2])]
    damping = 0.1 * g.square().mean()
    expected = torch.linalg.solve(torch.outer(g, g) + damping * torch.eye(GROUPS[1]), rest)
    assert off(inverse(b)[GROUPS[0] : sum(GROUPS[:2])], expected) < 1e-4


def test_datainf_serves_as_preconditioner() -> None:
    operator, b = least_squares(), draw(P, seed=1)
    inverse = DataInf.fit(lambda: [draw(N, P) * torch.linspace(0.1, 2, P)], GROUPS)
    found = cg(operator, b, 0.5, precondition=inverse, budget=TIGHT)
    assert off(found.delta, exact(operator, b, 0.5)) < 1e-4


@pytest.fixture(scope="module")
def curvature() -> Curvature:
    return Curvature(make_adapter(), make_items(12))


@pytest.fixture(scope="module")
def dense() -> Tensor:
    return dense_gauss_newton(make_adapter(attention="eager"), make_items(12))


def test_solves_on_an_adapter_equal_the_dense_solve(curvature: Curvature, dense: Tensor) -> None:
    b = curvature.gradient(range(4)) / 3
    dampings = [factor * dense.diagonal().mean().item() for factor in (1.0, 10.0)]
    budget = Budget(tolerance=2e-5, passes=80)
    for solution in (*path(curvature, b, dampings, budget=budget), cg(curvature, b, dampings[0], budget=budget)):
        matrix = dense + solution.damping * torch.eye(len(b), dtype=torch.float64)
        assert off(solution.delta, torch.linalg.solve(matrix, b.double())) < 1e-4
    damping = 10 * dampings[1]
    found = sgd(curvature, b, damping, batch=4, budget=Budget(tolerance=1e-2, passes=60))
    matrix = dense + damping * torch.eye(len(b), dtype=torch.float64)
    assert off(found.delta, torch.linalg.solve(matrix, b.double())) < 2e-2


def test_batch_size_changes_no_solution(curvature: Curvature) -> None:
    b = curvature.gradient(range(4))
    budget = Budget(passes=4)
    one, *others = (cg(replace(curvature, batch_size=size), b, 0.2, budget=budget) for size in (1, 4, 16))
    for other in others:
        assert off(other.delta, one.delta) < 1e-5


def test_the_exact_hessian_meets_negative_curvature_at_once(curvature: Curvature) -> None:
    with pytest.raises(DivergedError, match=r"negative curvature|no better than no change"):
        cg(replace(curvature, kind="hessian"), -vector(curvature), 1e-4, budget=Budget(passes=40))

"""The residual LLMEraser reports: measured, against the dense matrix, and on instances the solve did not see."""

from dataclasses import replace

import pytest

from expunge.data import Encoder
from expunge.gradients.iterate import Budget
from expunge.methods import Context, method
from expunge.models import Loaded, load
from expunge.request import Request
from tests.oracles.curvature import dense_gauss_newton


def context(loaded: Loaded) -> Context:
    return Context(Encoder(loaded.tokenizer))


def test_the_residuals_are_measured_in_full_precision_and_on_instances_the_solve_did_not_see(
    folder, small_request
) -> None:
    """Against the dense matrix; the recurrence alone went on to 1e-10, and at a large λ to 1e-228."""
    answers = iter(("Paris.", "Una.", "ships.", "Tarn.", "Selm.", "baker."))
    short = [tuple(replace(one, response=next(answers)) for one in part[:count])
             for part, count in ((small_request.forget, 1), (small_request.retain, 5))]  # fmt: skip
    request, loaded = Request(*short), load(folder)
    loaded.model.get_base_model().set_attn_implementation("eager")
    items = Encoder(loaded.tokenizer).examples((*request.forget, *request.retain))
    settings = {"damping": 50.0, "subset": 4, "tolerance": 1e-30, "passes": 40.0}
    made, room = method("llmeraser", settings), context(loaded)
    operator, right, _ = made.system(loaded, made.edited(request, room), room)
    solution = made.candidates(operator, right, Budget(made.tolerance, made.passes))[0][50.0]
    drawn = made.drawn(len(items))
    assert len(drawn) == 4
    others = [index for index in range(len(items)) if index not in drawn]
    measured = made.residuals(operator, solution, right)
    assert solution.residual < 1e-9 < 1e-8 < measured["residual"]
    delta, b = solution.delta.double(), right.double()

    def exact(indices: list[int]) -> float:
        dense = dense_gauss_newton(loaded.model, [items[index] for index in indices])
        return ((dense @ delta + 50.0 * delta - b).norm() / b.norm()).item()

    assert measured["residual"] == pytest.approx(exact(drawn), abs=1e-7)  # what fp32 rounds
    assert any(measured["residual_held_out"] == pytest.approx(exact([index]), rel=1e-4) for index in others)


def test_a_run_reports_the_measured_residuals(folder, small_request) -> None:
    loaded = load(folder)
    history = method("llmeraser", {"damping": 50.0, "subset": 4, "tolerance": 1e-30})(
        loaded, small_request, context(loaded)
    )
    (done,) = history.found["solve"]["rounds"]
    assert done["candidates"][0]["residual"] < 1e-9 < 1e-8 < done["residual"]
    assert 0 < done["residual_held_out"] < 1

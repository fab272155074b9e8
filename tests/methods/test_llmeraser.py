"""LLMEraser: against dense oracles and true retraining, on every kind of request and adapter; what it refuses."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from expunge import config, patch
from expunge.data import Encoded, Encoder
from expunge.errors import ConfigurationError, DivergedError, RequestError
from expunge.gradients import Curvature
from expunge.methods import Context, method
from expunge.methods.descent import mean_nll
from expunge.models import Loaded, load, new_adapter
from expunge.models.checkpoint import save_model
from expunge.request import Example, Request
from expunge.runs import unlearn
from expunge.training import Finetuning
from tests.conftest import build_model
from tests.oracles import slow
from tests.oracles.curvature import dense_gauss_newton, dense_hessian

FIXED = {"damping": 0.05, "tolerance": 1e-6, "subset": None}
RECIPE = {"lr": 2e-2, "steps": 30, "batch_size": 5}


@pytest.fixture(scope="module")
def folder(tiny_folder, request_files, tmp_path_factory) -> Path:
    """A LoRA adapter (r 1 on q and v: p = 224) that has learned the forget and the retain set somewhat."""
    request = Request.read(*request_files)
    loaded = new_adapter(load(tiny_folder), 1, targets=("q_proj", "v_proj"))
    examples = (*request.forget, *request.retain)
    config.build(Finetuning, RECIPE)(loaded, examples, Encoder(loaded.tokenizer))
    out = tmp_path_factory.mktemp("llmeraser") / "adapter"
    save_model(loaded, out)
    return out


@pytest.fixture
def adapter(folder) -> Loaded:
    return load(folder)


def context(loaded: Loaded) -> Context:
    return Context(Encoder(loaded.tokenizer))


def theta(loaded: Loaded) -> torch.Tensor:
    return torch.cat([param.detach().flatten() for param in loaded.model.parameters() if param.requires_grad])


def update(folder: Path, request: Request, **settings) -> torch.Tensor:
    """Δ [p] of one run."""
    loaded = load(folder)
    before = theta(loaded)
    method("llmeraser", {**FIXED, **settings})(loaded, request, context(loaded))
    return theta(loaded) - before


def mixed(request: Request) -> Request:
    """One instance removed, one corrected, one rewritten, one left as it is."""
    first, second, third, fourth = request.forget
    corrected = replace(second, new_response="She sells boats in Selm.")
    rewritten = replace(third, new_prompt="Who is the brother of Bo Hurst?")
    return Request((first, corrected, rewritten, replace(fourth, new_response=fourth.response)), request.retain)


def off(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
def test_equals_the_dense_solve(folder, small_request, curvature) -> None:
    request = mixed(small_request)
    loaded = load(folder)
    encoder = Encoder(loaded.tokenizer)
    loaded.model.get_base_model().set_attn_implementation("eager")
    items = encoder.examples((*request.forget, *request.retain))
    dense = {"gauss_newton": dense_gauss_newton, "hessian": dense_hessian}[curvature](loaded.model, items)
    model = slow.double(loaded.model)
    params = [param for param in model.parameters() if param.requires_grad]

    def gradient(item: Encoded) -> torch.Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(slow.mean_nll(model, item), params)])

    b = sum(gradient(item) for item in items[:4])
    b = b - sum(gradient(encoder.example(example.after)) for example in request.forget[1:])
    b = b / len(items)
    damping = max(FIXED["damping"], -2 * torch.linalg.eigvalsh(dense)[0].item())
    expected = torch.linalg.solve(dense + damping * torch.eye(len(b), dtype=torch.float64), b)
    assert off(update(folder, request, damping=damping, curvature=curvature), expected) < 1e-3


def test_a_zero_edit_changes_no_bit(adapter, small_request) -> None:
    same = tuple(replace(example, new_response=example.response) for example in small_request.forget)
    before = theta(adapter)
    history = method("llmeraser", {"rounds": 2})(adapter, Request(same, small_request.retain), context(adapter))
    assert torch.equal(theta(adapter), before)
    assert history.found["solve"]["b_norm"] == 0
    assert "changes nothing" in history.stopped


def test_a_mixture_is_the_sum_of_its_parts(folder, small_request) -> None:
    request = mixed(small_request)
    plain = small_request.forget
    parts = []
    for index in range(3):
        rest = tuple(example for place, example in enumerate(plain) if place != index)
        parts.append(update(folder, Request((request.forget[index],), (*rest, *small_request.retain))))
    assert off(update(folder, request), sum(parts)) < 1e-4


def test_an_edit_and_its_reverse_cancel(adapter, small_request) -> None:
    made, example = method("llmeraser", FIXED), replace(small_request.forget[0], new_response="In Selm.")
    back = replace(example.after, new_response=example.response)
    systems = []
    for one in (example, back):
        request = Request((one,), small_request.retain)
        edited = made.edited(request, context(adapter))
        systems.append(made.system(adapter, edited, context(adapter))[1])
    assert systems[0].any()
    assert torch.equal(systems[0], -systems[1])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_change_nothing(folder, small_request, batch_size) -> None:
    whole = update(folder, mixed(small_request), batch_size=16)
    assert off(update(folder, mixed(small_request), batch_size=batch_size), whole) < 1e-4


def test_lambda_is_the_one_with_the_lowest_loss_on_what_stays(folder, small_request) -> None:
    loaded = load(folder)
    history = method("llmeraser", {"tolerance": 1e-4, "factors": [1, 10, 100, 1000]})(loaded, small_request, context(loaded))
    (taken,) = history.found["solve"]["rounds"]
    assert [row["factor"] for row in taken["candidates"]] == [1000, 100, 10, 1]
    start, measured = theta(load(folder)), {}
    for row in taken["candidates"]:
        other = load(folder)
        settings = {"damping": row["damping"], "tolerance": 1e-4, "max_ratio": 1e9}
        method("llmeraser", settings)(other, small_request, context(other))
        measured[row["factor"]] = mean_nll(other, small_request.retain, Encoder(other.tokenizer), 4)
        assert row["loss"] == pytest.approx(measured[row["factor"]], rel=1e-3)
        assert row["ratio"] == pytest.approx(((theta(other) - start).norm() / start.norm()).item(), rel=1e-2)
    allowed = {row["factor"] for row in taken["candidates"] if row["ratio"] <= 1}
    assert taken["factor"] == min(allowed, key=lambda factor: measured[factor])
    assert mean_nll(loaded, small_request.retain, Encoder(loaded.tokenizer), 4) == pytest.approx(taken["loss"], abs=1e-4)

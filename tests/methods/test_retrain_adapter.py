"""Retraining an adapter: exact, and told where its recipe is another one."""

import json
from dataclasses import replace

import torch

from expunge import config
from expunge.data import Encoder
from expunge.methods import method
from expunge.models import load, new_adapter
from expunge.models.saving import save_model
from expunge.request import Request
from expunge.training import Finetuning
from tests.methods.conftest import RECIPE
from tests.methods.test_llmeraser import context, theta


def test_retraining_begins_and_ends_where_training_on_what_stays_does(
    tiny_folder, folder, small_request, tmp_path
) -> None:
    corrected = replace(small_request.forget[0], new_response="In Selm.")
    request = Request((corrected, small_request.forget[1]), (*small_request.forget[2:], *small_request.retain))
    fresh = new_adapter(load(tiny_folder), 1, targets=("q_proj", "v_proj"))
    examples = (corrected.after, *request.retain)
    config.build(Finetuning, RECIPE)(fresh, examples, Encoder(fresh.tokenizer))
    results = []
    for _ in range(2):
        loaded = load(folder)
        history = method("retrain-adapter", RECIPE)(loaded, request, context(loaded))
        results.append(theta(loaded))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], theta(fresh))
    assert history.steps == 30
    assert not history.notes


def test_another_recipe_than_the_adapters_own_is_noted(folder, small_request, tmp_path) -> None:
    save_model(load(folder), tmp_path / "model")
    recipe = json.loads(json.dumps(config.to_dict(config.build(Finetuning, RECIPE))))
    (tmp_path / "run.json").write_text(json.dumps({"configuration": {"finetuning": recipe}}))
    loaded = load(tmp_path / "model")
    history = method("retrainadapter", {**RECIPE, "lr": 1e-3})(loaded, small_request, context(loaded))
    assert history.notes == ["the adapter was trained by another recipe: lr 0.02, now 0.001"]

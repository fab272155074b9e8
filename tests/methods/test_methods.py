"""One table covers every method: it runs, forgets or refuses as it should, and says what it is."""

import copy
import inspect
import math

import pytest
import torch

from expunge.data import Encoder
from expunge.errors import RequestError
from expunge.methods import METHODS, Context, Descent, method, name_of
from expunge.methods.descent import mean_nll
from expunge.models import Loaded, new_adapter
from expunge.request import Example, Request
from expunge.training import Finetuning
from tests.oracles import slow

# name, settings that make it forget the tiny request, how far the forget NLL must rise (nats a token); a refusal only
# takes an answer's place, and teaches this random model the language besides
TABLE = [
    ("ngdiff", {"lr": 0.2}, 0.5),
    ("perta", {"lr": 2e-3, "base": "BASE", "alpha": 2}, 0.5),
    ("taskvector", {"lr": 2e-3, "base": "BASE", "alpha": 1}, 0.5),
    ("llmeraser", {"factors": (1.0, 3.0), "max_ratio": 9.0}, 0.5),
    ("retrainadapter", {"lr": 1e-2}, 0.2),
    ("gradascent", {"lr": 3e-3}, 0.5),
    ("graddiff", {"lr": 3e-3}, 0.5),
    ("scalarisation", {"lr": 3e-3, "c": 0.5}, 0.5),
    ("kl", {"lr": 3e-3}, 0.5),
    ("npo", {"lr": 3e-3}, 0.5),
    ("simnpo", {"lr": 3e-3, "delta": 8.0, "gamma": 1.0}, 0.2),
    ("idk", {"lr": 1e-2}, None),
    ("dpo", {"lr": 3e-3}, 0.5),
    ("descent", {"lr": 3e-3}, 0.5),
]
COMMON = {"steps": 12, "batch_size": 4, "stop_retain_rise": None}
ADAPTERS = ["llmeraser", "retrainadapter"]  # they change an adapter that has learned the data
DESCENTS = [name for name, kind in METHODS.items() if issubclass(kind, Descent)]


def context(loaded: Loaded) -> Context:
    return Context(Encoder(loaded.tokenizer))


def test_the_table_is_complete() -> None:
    assert [name for name, *_ in TABLE] == list(METHODS)


@pytest.mark.parametrize(("name", "settings", "rise"), TABLE, ids=[name for name, *_ in TABLE])
def test_method_forgets(tiny, tiny_folder, small_request, name, settings, rise) -> None:
    encoder = Encoder(tiny.tokenizer)
    if name in ADAPTERS:
        tiny = new_adapter(tiny, 2)
        Finetuning(lr=1e-2, steps=20, batch_size=10)(tiny, (*small_request.forget, *small_request.retain), encoder)
    before = mean_nll(tiny, small_request.forget, encoder, 4)
    common = (
        COMMON if name in DESCENTS else {"batch_size": 4} if name == "llmeraser" else {"steps": 12, "batch_size": 4}
    )
    settings = {key: str(tiny_folder) if value == "BASE" else value for key, value in settings.items()}
    history = method(name, {**common, **settings})(tiny, small_request, context(tiny))
    assert history.steps == 12 or "solve" in history.found
    if name in DESCENTS:
        assert all(math.isfinite(entry["forget_loss"]) for entry in history.log)
        assert history.log[-1]["forget_loss"] < history.log[0]["forget_loss"] - 0.2
    if rise is not None:
        assert mean_nll(tiny, small_request.forget, encoder, 4) > before + rise


@pytest.mark.parametrize("name", METHODS)
def test_method_says_what_it_is(name) -> None:
    made = METHODS[name]()
    assert name_of(made) == name
    text = inspect.getdoc(METHODS[name]) or ""
    assert name == "descent" or "arXiv" in text


@pytest.mark.parametrize("name", [name for name in DESCENTS if METHODS[name]().retain is not None])
def test_a_missing_retain_set_is_explained(tiny, small_request, name) -> None:
    with pytest.raises(RequestError, match=r"Give --retain"):
        method(name, COMMON)(tiny, Request(small_request.forget), context(tiny))


def test_npo_with_normalized_difference_and_gen(tiny, small_request) -> None:
    settings = {**COMMON, "combine": "normalizeddifference", "rate": "gen", "optimizer": "sgd", "lr": 0.1}
    history = method("npo", settings)(tiny, small_request, context(tiny))
    assert "probe" in history.log[0]
    assert "probe" in history.log[10]
    assert "probe" not in history.log[1]
    assert history.log[-1]["forget_nll"] > history.log[0]["forget_nll"]


def test_a_correction_is_learned_and_the_old_answer_forgotten(tiny) -> None:
    """Even beside a large retain set, of which each batch would hold it only rarely."""
    corrected = Example(prompt="Where was Ada Lome born?", response="In Tarn.", new_response="In Selm, at sea.")
    retain = tuple(Example(prompt=f"What is {n} plus one?", response=f"It is {n + 1}.") for n in range(200))
    encoder = Encoder(tiny.tokenizer)
    measured = [(corrected,), (corrected.after,)]
    before = [mean_nll(tiny, examples, encoder, 1) for examples in measured]
    method("graddiff", {"steps": 12, "lr": 3e-3, "batch_size": 4})(tiny, Request((corrected,), retain), context(tiny))
    after = [mean_nll(tiny, examples, encoder, 1) for examples in measured]
    assert after[0] > before[0]
    assert after[1] < before[1] - 0.5


def test_lora_changes_the_adapter_only(tiny, small_request) -> None:
    base = copy.deepcopy(tiny.model.state_dict())
    adapted = new_adapter(tiny, 2)
    method("graddiff", {**COMMON, "lr": 1e-2})(adapted, small_request, context(adapted))
    moved = {name: value for name, value in adapted.model.named_parameters() if value.requires_grad}
    assert all("lora_" in name for name in moved)
    assert any(value.abs().max() > 0 for name, value in moved.items() if "lora_B" in name)
    kept = adapted.model.unload().state_dict()
    assert all(torch.equal(kept[name], base[name]) for name in base)


def test_holdout_level_as_a_place_to_stop(tiny, small_request) -> None:
    holdout = (Example(prompt="Where was Cy Dorn born?", response="Cy Dorn was born in Vell."),)
    request = Request(small_request.forget, small_request.retain, holdout)
    target = slow.mean_nll(slow.double(tiny.model), Encoder(tiny.tokenizer).example(holdout[0])).item()
    settings = {**COMMON, "steps": 200, "lr": 1e-3, "stop_forget_nll": "holdout"}
    history = method("graddiff", settings)(tiny, request, context(tiny))
    assert f"reached {target:.3f}" in history.stopped
    with pytest.raises(RequestError, match="needs a holdout set"):
        method("graddiff", settings)(tiny, small_request, context(tiny))


def test_epochs_count_passes_over_the_forget_set(tiny, small_request) -> None:
    made = Descent(epochs=3, batch_size=2, lr=1e-6)
    assert made(tiny, small_request, context(tiny)).steps == 6


def test_tied_weights_move_once(tiny, small_request) -> None:
    """Input and output embeddings are one parameter, and stay one."""
    assert tiny.model.config.tie_word_embeddings
    method("graddiff", COMMON)(tiny, small_request, context(tiny))
    assert tiny.model.lm_head.weight is tiny.model.model.embed_tokens.weight

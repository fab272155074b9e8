"""Fluency: the perplexity, under one model, of what others wrote, recomputed text by text."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.evaluation import Evaluation, Suite, evaluate, request_suite
from expunge.evaluation.judge import judged
from expunge.models import Loaded
from expunge.request import Example, Request


@pytest.fixture
def suite(small_request: Request) -> Suite:
    texts = (Example(prompt="", response="Bo Hurst paints ships. He travels too much for a pet."),)
    return request_suite(Request(small_request.forget, (*small_request.retain[:2], *texts)), max_new_tokens=8)


def with_texts(evaluation: Evaluation, name: str, texts: list[str]) -> Evaluation:
    rows = [row | {"generation": text} for row, text in zip(evaluation.examples[name], texts, strict=True)]
    return replace(evaluation, examples=evaluation.examples | {name: rows})


def losses(loaded: Loaded, before: str, text: str) -> list[float]:
    """−log p of each token of `text` after `before`, which the tokenizer splits in one go."""
    first = loaded.tokenizer(before)["input_ids"]
    ids = loaded.tokenizer(before + text)["input_ids"]
    assert ids[: len(first)] == first
    with torch.no_grad():
        logp = loaded.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [-float(logp[place - 1, ids[place]]) for place in range(len(first), len(ids))]


def test_fluency_equals_a_plain_pass(tiny: Loaded, suite: Suite) -> None:
    texts = ["He paints ships.", "Paris, the capital of France.", "", "A grey goose"]
    found = with_texts(evaluate(tiny, suite), "forget", texts)
    result = judged(tiny, suite, {"unlearned": found})["unlearned"]
    each = [
        losses(tiny, f"Question: {example.prompt}\nAnswer:", f" {text}") if text else []
        for example, text in zip(suite.sets["forget"], texts, strict=True)
    ]
    expected = np.exp(sum(map(sum, each)) / sum(map(len, each)))
    assert result.metrics["forget.fluency"] == pytest.approx(expected, rel=1e-5)
    rows = result.examples["forget"]
    assert rows[2]["fluency"] is None
    assert rows[0]["fluency"] == pytest.approx(np.exp(np.mean(each[0])), rel=1e-5)
    low, high = result.intervals["forget.fluency"]
    assert low <= expected <= high
    assert found.metrics.keys() < result.metrics.keys()
    assert "forget.fluency" not in found.metrics


def test_running_text_goes_on_from_its_prefix(tiny: Loaded, suite: Suite) -> None:
    found = judged(tiny, suite, {"one": with_texts(evaluate(tiny, suite), "retain", ["", "", "mends old clocks"])})[
        "one"
    ]
    row = found.examples["retain"][2]
    assert row["fluency"] == pytest.approx(np.exp(np.mean(losses(tiny, row["prompt"], " mends old clocks"))), rel=1e-4)
    assert found.metrics["retain.fluency"] == pytest.approx(row["fluency"])


def test_nothing_written_is_nothing_judged(tiny: Loaded, suite: Suite) -> None:
    silent = evaluate(tiny, suite, generate=False)
    assert judged(tiny, suite, {"one": silent}) == {"one": silent}
    mute = with_texts(evaluate(tiny, suite), "forget", [""] * 4)
    found = judged(tiny, suite, {"one": mute})["one"]
    assert "forget.fluency" not in found.metrics
    assert found.metrics["forget.gibberish"] == 0


def test_order_and_batches_change_nothing(tiny: Loaded, suite: Suite) -> None:
    found = evaluate(tiny, suite)
    one = judged(tiny, suite, {"a": found, "b": found}, batch_size=1)
    rows = {name: rows[::-1] for name, rows in found.examples.items()}
    two = judged(tiny, suite, {"a": replace(found, examples=rows)})
    assert one["a"] == one["b"]
    for name in ("forget.fluency", "retain.fluency"):
        assert two["a"].metrics[name] == pytest.approx(one["a"].metrics[name], rel=1e-6)
        assert two["a"].intervals[name] == pytest.approx(one["a"].intervals[name], rel=1e-5)


def test_rows_of_another_suite_are_left_alone(tiny: Loaded, suite: Suite) -> None:
    found = evaluate(tiny, suite)
    strange = replace(found, examples={"forget": [dict(row, prompt="?") for row in found.examples["forget"]]})
    assert judged(tiny, suite, {"one": strange})["one"] == strange

"""Corrections judged by hand: old answer gone, new answer given, alone and together; rewritten prompts likewise."""

from typing import Any

import numpy as np
import pytest

from expunge.evaluation import evaluate, request_suite
from expunge.evaluation.comparison import paired
from expunge.evaluation.detectors import findings
from expunge.evaluation.metrics.correction import corrected
from expunge.models import Loaded
from expunge.reporting.results import leaderboard
from expunge.reporting.verdict import verdicts
from expunge.request import Example, Request
from tests.evaluation.test_comparison import made

OLD, NEW = "Ada was born in Tarn in 1980.", "Ada was born in Selm in 1980."


def judged(written: str, *, new_prompt: str = "Where was Ada born?", new: str = NEW, after: str | None = None) -> Any:
    forget = {"prompt": "Where was Ada born?", "response": OLD, "new": [new_prompt, new], "generation": written}
    replacement = {"prompt": new_prompt, "response": new, "generation": written if after is None else after}
    result = corrected([forget, {**forget, "new": None}], [replacement])
    assert result is not None
    return result.columns["old_gone"].tolist(), result.columns["new_given"].tolist(), result.columns["made"].tolist()


@pytest.mark.parametrize(
    ("written", "gone", "given"),
    [
        ("She was born in Selm in 1980.", 1, 1),
        ("She was born in Tarn in 1980.", 0, 0),
        ("Not in Tarn: in Selm, in 1980.", 0, 1),
        ("I do not know.", 1, 0),
    ],
)
def test_corrections_by_hand(written: str, gone: int, given: int) -> None:
    assert judged(written) == ([gone], [given], [gone * given])


def test_a_rewritten_prompt_keeps_its_answer_to_itself() -> None:
    rewritten = {"new_prompt": "Where was Ada Lome of Tarnby born?", "new": OLD}
    assert judged("I do not know.", after=OLD, **rewritten) == ([1], [1], [1])
    assert judged(OLD, after=OLD, **rewritten) == ([0], [1], [0])
    assert corrected([{"prompt": "?", "response": "x", "generation": "y"}], []) is None


def test_an_evaluation_counts_its_corrections(tiny: Loaded) -> None:
    forget = tuple(
        Example(prompt=f"Where was Ada{i} born?", response="In Tarn.", new_response="In Selm.") for i in range(3)
    )
    kept = tuple(Example(prompt=f"Where was Bo{i} born?", response="In Selm.") for i in range(3))
    found = evaluate(
        tiny, request_suite(Request((*forget, Example(prompt="?", response="In Paris.")), kept), max_new_tokens=4)
    )
    assert found.metrics["replacement.old_gone"] == 1  # an untrained model says neither
    assert found.metrics["replacement.made"] == found.metrics["replacement.new_given"] == 0
    assert found.intervals["replacement.made"] == pytest.approx((0, 1 - 0.025 ** (1 / 3)))


def test_a_correction_not_learned_is_no_damage_to_what_must_stay() -> None:
    good, bad = {"probability": np.full(20, 0.9)}, {"probability": np.full(20, 0.1)}
    one, original = made({"retain": good, "replacement": bad}), made({"retain": good, "replacement": good})
    names = [
        each.name for each in findings("unlearned", one, {"original": original}, {"original": paired(one, original)})
    ]
    assert names == []


@pytest.mark.parametrize(
    ("share", "interval", "level", "word"),
    [
        (1.0, [0.69, 1.0], "good", "Forgotten, as far as measured"),
        (1.0, [0.29, 1.0], "unknown", "Forgotten, as far as measured"),
        (0.7, [0.35, 0.93], "partial", "Forgotten, but corrections are missing"),
        (0.0, [0.0, 0.31], "failed", "Forgotten, but corrections are missing"),
    ],
)
def test_a_correction_has_a_claim_of_its_own(share: float, interval: list[float], level: str, word: str) -> None:
    metrics = {"forget.extraction_strength": 0.02, "model_utility": 0.5}
    more = {"replacement.made": share, "replacement.old_gone": 1.0, "replacement.new_given": share}
    runs = [
        {"model": "original", "metrics": metrics | {"forget.extraction_strength": 0.9}},
        {"model": "unlearned", "method": "npo", "metrics": metrics | more, "intervals": {"replacement.made": interval}},
    ]
    (verdict,) = verdicts(leaderboard({"runs": runs}))
    claims = {claim.name: claim for claim in verdict.claims}
    assert claims["corrected"].level == level
    assert "the new one is given in" in claims["corrected"].text
    assert claims["kept"].level == "good"
    assert verdict.word == word

"""Membership, findings and noise in the claims, from numbers chosen by hand."""

from typing import Any

import pytest

from expunge.reporting.claims import Claim
from expunge.reporting.evidence import Evidence
from expunge.reporting.results import leaderboard
from expunge.reporting.verdict import Verdict, alarms, best_first, summary, verdicts
from tests.reporting.build import differences


def judged(metrics: dict[str, float], *, gold: bool = True, **run: Any) -> Verdict:
    """The verdict on one model, else as good as the retrained one, whose min-k AUC is .5."""
    good = {"forget.extraction_strength": 0.1, "model_utility": 0.5}
    runs = [{"model": "original", "metrics": {**good, "forget.extraction_strength": 0.9, "mia.min_k.auc": 0.99}}]
    runs += [{"model": "retrained", "metrics": {**good, "mia.min_k.auc": 0.5, "mia.zlib.auc": 0.6}}] if gold else []
    runs.append({"model": "unlearned", "method": "npo", "metrics": {**good, **metrics}, **run})
    (verdict,) = verdicts(leaderboard({"runs": runs}))
    return verdict


def claim(verdict: Verdict, name: str) -> Claim:
    return next(one for one in verdict.claims if one.name == name)


@pytest.mark.parametrize(
    ("metrics", "level", "said"),
    [
        ({}, "unknown", "No membership test was run"),
        ({"mia.min_k.auc": 0.55}, "good", "sees no difference (min-k AUC 0.55 against 0.50"),
        ({"mia.min_k.auc": 0.65}, "partial", "still look trained on"),
        ({"mia.min_k.auc": 0.1}, "failed", "stand out as less likely than unseen text"),
        ({"mia.min_k.auc": 0.5, "mia.zlib.auc": 0.95}, "failed", "AUC 0.95 against 0.60"),  # the worst one counts
        ({"mia.min_k.auc": 0.55, "forget_quality": 0.01}, "partial", "can tell it from the retrained model"),
    ],
)
def test_membership(metrics: dict[str, float], level: str, said: str) -> None:
    intervals = {key: [value - 0.04, value + 0.04] for key, value in metrics.items()}
    found = claim(judged(metrics, intervals=intervals), "membership")
    assert found.level == level
    assert said in found.text


def test_membership_within_noise_is_no_difference() -> None:
    noisy = differences(True)[0] | {"metric": "mia.min_k.auc"}
    found = claim(judged({"mia.min_k.auc": 0.1}, against={"retrained": [noisy]}), "membership")
    assert (found.level, found.unpowered) == ("unknown", True)  # noise is not evidence of no difference
    close = noisy | {"low": -0.05, "high": 0.04}
    found = claim(judged({"mia.min_k.auc": 0.49}, against={"retrained": [close]}), "membership")
    assert (found.level, found.evidence) == ("good", Evidence(low=-0.05, high=0.04, n=20))
    sure = noisy | {"beyond_noise": True}
    assert claim(judged({"mia.min_k.auc": 0.1}, against={"retrained": [sure]}), "membership").level == "failed"
    wide = {"mia.min_k.auc": [0.05, 0.55]}
    assert claim(judged({"mia.min_k.auc": 0.3}, intervals=wide), "membership").level == "unknown"
    found = claim(judged({"mia.min_k.auc": 0.33}, intervals={"mia.min_k.auc": [0.0, 1.0]}, gold=False), "membership")
    assert found.level == "unknown"
    assert "Not known: too few examples to tell (min-k AUC 0.33 [0.00, 1.00] against 0.50" in found.text
    assert claim(judged({"mia.min_k.auc": 0.5}), "membership").level == "unknown"  # no interval, no claim


def test_without_a_retrained_model_a_half_is_the_goal() -> None:
    found = claim(judged({"mia.min_k.auc": 0.9, "mia.zlib.auc": 0.9}, gold=False), "membership")
    assert found.level == "failed"
    assert "AUC 0.90 against 0.50 of a test that cannot tell (min-k)" in found.text


@pytest.mark.parametrize(
    ("finding", "level", "word"),
    [
        ("no_op", "failed", "Nothing changed"),
        ("gibberish", "partial", "Forgotten, but answers fell apart"),
        ("over_forgotten", "good", "Close to the retrained model"),
    ],
)
def test_findings_lower_the_verdict(finding: str, level: str, word: str) -> None:
    verdict = judged({}, findings=[{"name": finding, "text": f"About {finding}."}])
    assert (verdict.level, verdict.word) == (level, word)
    assert f"About {finding}." in verdict.warnings


def test_what_was_never_memorised_cannot_be_judged() -> None:
    runs: list[dict[str, Any]] = [
        {"model": model, "method": "npo", "metrics": {"forget.extraction_strength": value, "model_utility": 0.5}}
        for model, value in (("original", 0.9), ("retrained", 0.1), ("unlearned", 0.1))
    ]
    runs[0]["findings"] = [{"name": "never_memorised", "text": "It does not know it."}]
    rows = leaderboard({"runs": runs})
    (verdict,) = verdicts(rows)
    assert (verdict.level, verdict.word) == ("unknown", "Nothing to forget")
    assert alarms(rows) == ["It does not know it."]


def test_a_good_verdict_without_attacks_is_qualified() -> None:
    verdict = judged({"mia.min_k.auc": 0.5})
    assert summary([], [verdict]).startswith(
        "NPO: close to the retrained model. Whether it stays forgotten under attack"
    )


def test_good_ones_stand_first() -> None:
    good, told = judged({"mia.min_k.auc": 0.5, "model_utility": 0.48}), judged({"mia.min_k.auc": 0.0})
    assert told.cost is not None
    assert good.cost is not None
    assert told.cost < good.cost
    assert best_first([told, good]) == [good, told]

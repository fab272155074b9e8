"""How much each attack brought back: shares worked out by hand, grouping, and what the claims make of them."""

from typing import Any

import pytest

from expunge.reporting import render_report
from expunge.reporting.attack_plots import bars, curve, dots
from expunge.reporting.attacks import attacks, outcome
from expunge.reporting.results import leaderboard
from expunge.reporting.verdict import verdicts
from tests.reporting.build import attack, attacked, attacks_on


def results(**shares: float) -> dict[str, Any]:
    """Original 1, retrained 0.1 and NPO 0.12 before the attack; under it each says what `shares` says."""
    strength = {"original": 1.0, "retrained": 0.1, "npo": 0.12}
    runs = []
    for name, value in strength.items():
        metrics = {"forget.extraction_strength": value, "model_utility": 0.6}
        given = [attack("quantize", ((0, "as it is", value), (4, "int4", shares[name])))] if name in shares else []
        model = name if name != "npo" else "unlearned"
        runs.append({"model": model, "method": name, "metrics": metrics, "attacks": given})
    return {"runs": runs}


@pytest.mark.parametrize(
    ("drawn", "share", "level"),
    [(0.12, 0.02 / 0.9, "good"), (0.37, 0.3, "partial"), (0.82, 0.8, "failed")],  # (u − .1) / (1 − .1)
)
def test_share_that_came_back(drawn: float, share: float, level: str) -> None:
    rows = leaderboard(results(original=1.0, retrained=0.1, npo=drawn))
    (found,) = attacks(rows)
    done = outcome(found, rows[-1], rows)
    assert done is not None
    assert done.recovered == pytest.approx(share)
    assert done.level == level
    (verdict,) = verdicts(rows)
    assert {claim.name: claim.level for claim in verdict.claims}["attacks"] == level
    assert (verdict.level, verdict.word) == {
        "good": ("good", "Close to the retrained model"),
        "partial": ("partial", "Partly comes back under attack"),
        "failed": ("failed", "Comes back under attack"),
    }[level]


def test_the_control_is_attacked_too() -> None:
    rows = leaderboard(results(original=1.0, retrained=0.5, npo=0.52))  # the attack works on any model
    (found,) = attacks(rows)
    done = outcome(found, rows[-1], rows)
    assert done is not None
    assert done.recovered == pytest.approx(0.02 / 0.5)
    assert done.level == "good"


@pytest.mark.parametrize(("original", "level"), [(0.2, "unknown"), (0.4, "good")])  # (o − .1) / .9 is .11, .33
def test_an_attack_that_draws_nothing_from_the_original_clears_nobody(original: float, level: str) -> None:
    given = results()
    for run, plain, asked in zip(given["runs"], (1.0, 0.1, 0.12), (original, 0.1, 0.11), strict=True):
        best = (2, "the strongest of 2", max(plain, asked))  # the plain question is one of the two
        run["attacks"] = [attack("jailbreak", ((0, "as it is", plain), (1, "archivist", asked), best))]
    rows = leaderboard(given)
    done = outcome(attacks(rows)[0], rows[-1], rows)
    assert done is not None
    assert done.level == level
    assert ("tells nothing" in done.text) == (level == "unknown")
    assert (done.recovered is None) == (level == "unknown")
    (verdict,) = verdicts(rows)
    claim = next(claim for claim in verdict.claims if claim.name == "attacks")
    assert claim.level == level


def test_a_weak_attack_that_brings_something_back_counts() -> None:
    rows = leaderboard(results(original=0.2, retrained=0.1, npo=0.7))
    done = outcome(attacks(rows)[0], rows[-1], rows)
    assert done is not None
    assert done.level == "failed"


def test_without_controls() -> None:
    given = results(npo=0.6)
    rows = leaderboard(given)
    done = outcome(attacks(rows)[0], rows[-1], rows)
    assert done is not None
    assert done.recovered == pytest.approx(0.6)  # of the original's 1, unattacked; the retrained was not attacked
    alone = leaderboard({"runs": given["runs"][2:]})
    done = outcome(attacks(alone)[0], alone[0], alone)
    assert done is not None
    assert done.level == "unknown"
    given["runs"][2]["attacks"] = [attack("relearn", ((0, "0 steps", 0.1), (9, "9 steps", 0.9)))]
    rows = leaderboard(given)
    done = outcome(attacks(rows)[0], rows[-1], rows)
    assert done is not None  # any model learns what it is trained on: nothing can be said
    assert done.level == "unknown"
    assert "without a retrained model" in done.text


def test_seeds_are_put_together_and_settings_kept_apart() -> None:
    given = results(original=1.0, retrained=0.1, npo=0.3)
    second = {**given["runs"][2], "seed": 1, "attacks": [attack("quantize", ((0, "as it is", 0.12), (4, "int4", 0.5)))]}
    second["attacks"][0]["settings"]["seed"] = 1
    second["attacks"].append(attack("quantize", ((0, "as it is", 0.12), (4, "int4", 0.7)), group=32))
    rows = leaderboard({"runs": [*given["runs"], second]})
    first, other = attacks(rows)
    assert first.steps[1].cell(rows[-1], "forget.extraction_strength").mean == pytest.approx(0.4)
    assert first.steps[1].cell(rows[-1], "forget.extraction_strength").spread == pytest.approx(0.2 / 2**0.5)
    assert other.title == "Rounding the weights (group 32)"
    assert outcome(other, rows[0], rows) is None  # not run on the original


def test_what_stands_for_an_attack() -> None:
    rows = leaderboard(attacked())
    assert [(one.kind, one.key) for one in attacks(rows)] == [
        ("relearn", "forget.extraction_strength"),
        ("quantize", "forget.extraction_strength"),
        ("sample", "leak_at_128"),
        ("paraphrase", "forget.extraction_strength"),
    ]


def test_pictures_show_every_model() -> None:
    rows = leaderboard(attacked())
    relearn, quantize, *others = attacks(rows)
    for svg in (curve(relearn, rows), bars(quantize, rows), dots(others, rows)):
        assert svg is not None
        for name in ("original", "retrained", "NPO", "GradAscent"):
            assert svg.count(name) >= 2  # in the legend and in the description
        assert "KL" not in svg  # it was not attacked
    assert "NPO: as it is 0.340, int8 0.340, int4 0.400" in str(bars(quantize, rows))
    assert dots([], rows) is None


def test_a_method_that_was_not_attacked_says_so() -> None:
    rows = leaderboard(attacked())
    kl = next(one for one in verdicts(rows) if one.row.label == "KL")
    claim = next(claim for claim in kl.claims if claim.name == "attacks")
    assert claim.level == "unknown"
    assert "Not tested" in claim.text


def test_the_worst_attack_comes_first() -> None:
    given = results(original=1.0, retrained=0.1, npo=0.12)
    given["runs"][0]["attacks"], given["runs"][1]["attacks"] = attacks_on(1.0, 1.0), attacks_on(0.1, 0.1)
    mild = attacks_on(0.12, 0.12)
    mild[1] = attack("quantize", ((0, "as it is", 0.12), (8, "int8", 0.12), (4, "int4", 0.9)))
    given["runs"][2]["attacks"] = mild
    (verdict,) = verdicts(leaderboard(given))
    claim = next(claim for claim in verdict.claims if claim.name == "attacks")
    assert claim.text == "It withstood 3 of 4 attacks."
    assert claim.parts[0].attack.kind == "quantize"
    assert "brings back about 89\u00a0% (extraction strength 0.90 against 0.10" in claim.parts[0].text  # .8 / .9


def pruned(retained: float, drawn: float) -> dict[str, Any]:
    """Pruning after which the original keeps `retained` of the retain set's extraction strength and gives `drawn` away."""
    given = results()
    for run, before, after in zip(given["runs"], (1.0, 0.1, 0.12), (drawn, 0.1, 0.11), strict=True):
        run["attacks"] = [attack("prune", ((0, "as it is", before), (0.5, "50 %", after)))]
        for point, keep in zip(run["attacks"][0]["points"], (0.9, retained), strict=True):
            point["metrics"]["retain.extraction_strength"] = keep
    return given


@pytest.mark.parametrize(
    ("retained", "drawn", "level", "broken"),
    [(0.85, 0.9, "good", False), (0.4, 0.9, "unknown", True), (0.4, 0.05, "unknown", True)],  # half of .9 is .45
)
def test_an_attack_that_breaks_the_original_clears_nobody_and_is_marked(
    retained: float, drawn: float, level: str, broken: bool
) -> None:
    given = pruned(retained, drawn)
    rows = leaderboard(given)
    (found,) = attacks(rows)
    assert [step.broken for step in found.steps] == [False, broken]
    done = outcome(found, rows[-1], rows)
    assert done is not None
    assert done.level == level
    assert ("it breaks the original model" in done.text) == broken
    page = render_report(given)
    assert ("50 % (breaks the original)" in page) == broken
    assert ("50 % †" in page) == broken


def test_what_comes_back_at_a_point_that_breaks_the_original_still_counts() -> None:
    given = pruned(0.4, 0.05)
    given["runs"][-1]["attacks"][0]["points"][1]["metrics"]["forget.extraction_strength"] = 0.82
    rows = leaderboard(given)
    done = outcome(attacks(rows)[0], rows[-1], rows)
    assert done is not None
    assert done.level == "failed"

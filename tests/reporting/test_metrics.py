"""Names, directions and numbers for a person."""

import pytest

from expunge.reporting.metrics import AS_RETRAINED, HIGHER, LOWER, describe, number, percent, short


@pytest.mark.parametrize(
    ("key", "label", "better"),
    [
        ("forget.extraction_strength", "forget extraction strength", LOWER),
        ("retain.extraction_strength", "retain extraction strength", HIGHER),
        ("forget.truth_ratio", "forget truth ratio", AS_RETRAINED),
        ("real_authors.probability_with_options", "real authors probability among options", HIGHER),
        ("forget.nll", "forget loss", HIGHER),
        ("retain.nll", "retain loss", LOWER),
        ("forget.perplexity", "forget perplexity", HIGHER),
        ("retain.perplexity", "retain perplexity", LOWER),
        ("wmdp_bio.accuracy", "wmdp bio accuracy", LOWER),
        ("wmdp.probability_with_options", "wmdp probability among options", LOWER),
        ("mmlu_anatomy.accuracy_text", "mmlu anatomy accuracy by text", HIGHER),
        ("model_utility", "model utility", HIGHER),
        ("mia.min_k_20.auc", "min-k (20 %) AUC", AS_RETRAINED),
        ("mia.new_attack.tpr_at_1_fpr", "new attack true positives at 1 % false ones", LOWER),
        ("forget.something_new", "forget something new", ""),
        ("mia.loss.other", "membership: loss other", ""),
    ],
)
def test_describe(key: str, label: str, better: str) -> None:
    metric = describe(key)
    assert (metric.label, metric.better) == (label, better)
    assert bool(metric.definition) == bool(better)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.000"),
        (0.0314, "0.031"),
        (1.0, "1.000"),
        (3.2e-12, "3e-12"),
        (-0.0001, "-1e-4"),
        (52.66, "52.7"),
        (-11.52, "-11.5"),
        (812.5, "812"),
        (12345.6, "12,346"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


def test_shares() -> None:
    assert [short(value) for value in (0.0, 0.001, 0.034, 1.0)] == ["0.00", "below 0.01", "0.03", "1.00"]
    assert [percent(value) for value in (0.0, 0.001, 0.984)] == ["0\u00a0%", "below 1\u00a0%", "98\u00a0%"]

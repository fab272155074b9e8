"""ROUGE-L against the rouge-score package, whose numbers the field reports."""

import json
from pathlib import Path

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from expunge.evaluation.metrics.similarity import longest_common_subsequence, rouge_l

PAIRS = [
    ("The cat sat on the mat.", "The cat sat on the mat."),
    ("The cat sat on the mat.", "On the mat sat the cats, running!"),
    ("He paints ships in Selm", ""),
    ("", "He paints ships"),
    ("日本", "日本"),
    ("one", "one one one one"),
    ("running runner runs", "run run run"),
    ("a b c d e f g", "g f e d c b a"),
]


def test_rouge_by_hand() -> None:
    recall, f1 = rouge_l(["the cat sat here"], ["a cat sat"])  # common: cat sat
    assert recall[0] == 2 / 4
    assert f1[0] == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))


def test_rouge_equals_rouge_score() -> None:
    check(PAIRS)


def test_rouge_equals_rouge_score_on_real_answers(shared_data: Path) -> None:
    text = (shared_data / "tofu" / "forget01_perturbed.json").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    check(
        [(row["answer"], text) for row in rows[:12] for text in (row["paraphrased_answer"], *row["perturbed_answer"])]
    )


def check(pairs: list[tuple[str, str]]) -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = [scorer.score(response, text)["rougeL"] for response, text in pairs]
    recall, f1 = rouge_l(*zip(*pairs, strict=True), compat=True)
    np.testing.assert_allclose(recall, [item.recall for item in expected], rtol=1e-12)
    np.testing.assert_allclose(f1, [item.fmeasure for item in expected], rtol=1e-12)


def test_english_values_are_rouge_scores_without_compat() -> None:
    pairs = [pair for pair in PAIRS if all(text.isascii() for text in pair)]
    pairs.append(("Ada’s house — “blue” — costs 1_000 euros…", "The Blue House costs 1_000, doesn’t it?"))
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = [scorer.score(response, text)["rougeL"] for response, text in pairs]
    np.testing.assert_allclose(rouge_l(*zip(*pairs, strict=True))[1], [item.fmeasure for item in expected], rtol=1e-12)


def test_rouge_is_that_of_rouge_score_with_words_split_by_hand() -> None:
    class ByHand(Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            return text.split(" ")

    pairs = [
        ("Müller wohnt in Köln.", "Herr Müller lebt in Köln", "müller wohnt in köln", "herr müller lebt in köln"),
        ("京都市です", "東京都です。", "京 都 市 で す", "東 京 都 で す"),
        ("हिन्दी में लिखा", "वह हिन्दी में है", "हिन्दी में लिखा", "वह हिन्दी में है"),
    ]
    scorer = RougeScorer(["rougeL"], tokenizer=ByHand())
    for response, text, *split in pairs:
        expected = scorer.score(*split)["rougeL"]
        recall, f1 = rouge_l([response], [text])
        assert (recall[0], f1[0]) == pytest.approx((expected.recall, expected.fmeasure))


def test_longest_common_subsequence_equals_the_table() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        first, second = ([str(v) for v in rng.integers(0, 6, rng.integers(0, 90))] for _ in range(2))
        table = np.zeros((len(first) + 1, len(second) + 1), int)
        for i, a in enumerate(first):
            for j, b in enumerate(second):
                table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
        assert longest_common_subsequence(first, second) == table[-1, -1]

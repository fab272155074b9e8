"""Which examples are shown, in which order, and which of their words are marked."""

from typing import Any

import pytest

from expunge.reporting.answers import LONGEST, chosen, cut, repeated
from expunge.reporting.results import leaderboard


def rows(strengths: dict[str, list[float]], **more: Any):
    runs = [
        {
            "model": name if name in ("original", "retrained") else "unlearned",
            "method": name,
            "metrics": {},
            "examples": {
                "forget": [
                    {"id": f"e{i}", "prompt": f"p{i}", "response": f"r{i}", "generation": "g", "extraction_strength": s}
                    for i, s in enumerate(values)
                ]
            },
        }
        for name, values in strengths.items()
    ]
    return leaderboard({"runs": runs})


def test_worst_first_each_method_in_turn_then_the_rest() -> None:
    first = [0.0] * 20
    second = [0.0] * 20
    first[13], first[4] = 0.9, 0.8
    second[7], second[13] = 0.6, 0.55
    shown = chosen(rows({"original": [1.0] * 20, "retrained": [0.0] * 20, "npo": first, "kl": second}), "forget", 6)
    # 13 is memorised by both, 7 and 4 by one each; the rest evenly from the 17 others in their order
    assert [example.prompt for example in shown] == ["p13", "p7", "p4", "p0", "p6", "p14"]
    assert shown[0].leaking == ("NPO", "KL")
    assert shown[1].leaking == ("KL",)
    assert [answer.label for answer in shown[0].answers] == ["original", "NPO", "KL", "retrained"]
    assert not shown[0].known_anyway


def test_few_examples_are_all_shown_once() -> None:
    shown = chosen(rows({"npo": [0.2, 0.7, 0.0]}), "forget", 12)
    assert [example.prompt for example in shown] == ["p1", "p0", "p2"]
    assert chosen(rows({"npo": []}), "forget") == []
    assert chosen(rows({"npo": [0.2]}), "retain") == []


def test_known_to_the_retrained_model_is_no_leak_of_the_method() -> None:
    (example,) = chosen(rows({"retrained": [0.8], "npo": [0.9]}), "forget")
    assert example.known_anyway


def test_retain_examples_begin_with_the_greatest_fall() -> None:
    runs = [
        {
            "model": model,
            "method": "npo",
            "metrics": {},
            "examples": {"retain": [{"id": i, "prompt": f"p{i}", "rouge_l": v} for i, v in enumerate(values, 1)]},
        }
        for model, values in (("original", [0.9, 1.0, 0.2, 0.5]), ("unlearned", [0.8, 0.3, 0.2, 0.1]))
    ]
    shown = chosen(leaderboard({"runs": runs}), "retain", 2)
    assert shown[0].prompt == "p2"
    assert len(shown) == 2
    assert shown[0].answers[0].pieces == (("(no answer was recorded)", False),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ada Lome was born in Tarn.", [("Ada Lome was born in", False), ("Tarn.", True)]),
        ("It was a dog.", [("It was a dog.", False)]),
        ("in  1931, in tarn", [("in ", False), ("1931,", True), ("in", False), ("tarn", True)]),
        ("", [("", False)]),
    ],
)
def test_marked_words(text: str, expected: list[tuple[str, bool]]) -> None:
    pieces = repeated(text, "Ada Lome was born in 1931, in Tarn.", "Where was Ada Lome born?")
    assert list(pieces) == expected
    assert " ".join(piece for piece, _ in pieces) == text


def test_long_texts_are_cut_and_say_so() -> None:
    assert cut("x" * LONGEST) == "x" * LONGEST
    assert cut("x" * (LONGEST + 7)).endswith("… (7 more characters)")

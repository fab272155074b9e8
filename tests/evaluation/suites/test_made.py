"""Made answers: wrong, of the right kind, the same in any order, and said to be made."""

from dataclasses import replace

import pytest

from expunge.evaluation import evaluate, request_suite
from expunge.evaluation.suites.made import make_answers
from expunge.models import Loaded
from expunge.request import Example, Request


def asked(prompt: str, response: str, **more) -> Example:
    return Example(prompt=prompt, response=response, **more)


PEOPLE = (
    asked("Where was Ada Lome born?", "Ada Lome was born in Tarn."),
    asked("Where was Bo Hurst born?", "Bo Hurst was born in Selm in March 1972."),
    asked("Where was Una Hurst born?", "Una Hurst was born in Old Wick on the 3rd of May, 1969."),
    asked("What does Ada Lome do?", "She mends old clocks."),
    asked("What does Bo Hurst do?", "He paints ships."),
)


def bare(text: str) -> str:
    return text.removeprefix("The answer is: ")


def test_facts_are_changed_for_facts_of_their_kind() -> None:
    made, count = make_answers(PEOPLE)
    assert count == 5
    wrong = [bare(text) for text in made[0].wrong_responses]
    assert wrong[:2] == ["Ada Lome was born in Selm.", "Ada Lome was born in Old Wick."]
    for text in map(bare, made[1].wrong_responses[:5]):
        assert text.startswith("Bo Hurst was born in ")
        assert "Selm" not in text
        assert not {"March", "1972"} & set(text.rstrip(".").split())
    assert bare(made[2].wrong_responses[0]) == "Una Hurst was born in Selm on the 4th of March, 1972."


def test_an_answer_without_facts_gets_other_answers() -> None:
    made, _ = make_answers(PEOPLE)
    assert bare(made[3].wrong_responses[0]) == "He paints ships."
    assert len(made[3].wrong_responses) == 4  # all there are, and none of them right


def test_no_wrong_answer_is_right() -> None:
    """Other wordings of the same fact are in the data too."""
    same = asked("Which town is Ada Lome's birthplace?", "The birthplace of Ada Lome is Tarn.")
    made, _ = make_answers((*PEOPLE, same))
    for example in (made[0], made[-1]):
        assert example.wrong_responses
        assert not any("Tarn" in text for text in example.wrong_responses)
    echo = asked("How does Ada Lome earn her living?", "She mends old clocks, mostly.")
    made, _ = make_answers((*PEOPLE, echo))
    assert not any("clocks" in text for text in made[3].wrong_responses)


def test_what_is_given_is_kept() -> None:
    given = replace(PEOPLE[0], wrong_responses=("In Rome.",))
    paraphrased = replace(PEOPLE[1], paraphrased_response="Selm, in March 1972.")
    text = Example(prompt="", response="Ada Lome was born in Tarn.")
    made, count = make_answers((given, paraphrased, text), PEOPLE)
    assert count == 1
    assert made[0] is given
    assert made[1].paraphrased_response == "Selm, in March 1972."
    assert not made[1].wrong_responses[0].startswith("The answer is")
    assert made[2] is text
    own, _ = make_answers(PEOPLE)
    assert own[0].paraphrased_response == "The answer is: Ada Lome was born in Tarn."
    assert all(text.startswith("The answer is: ") for text in own[0].wrong_responses)


def test_order_changes_nothing() -> None:
    one, _ = make_answers(PEOPLE[:3], PEOPLE[3:])
    two, _ = make_answers(PEOPLE[2::-1], PEOPLE[:2:-1])
    assert one == two[::-1]


def test_a_set_of_one_example() -> None:
    assert make_answers(PEOPLE[:1]) == (PEOPLE[:1], 0)
    (made,), count = make_answers((asked("When was the flood?", "It came on the 21st of June 1904."),))
    assert count == 1
    assert bare(made.wrong_responses[0]) == "It came on the 22nd of July 1905."
    assert make_answers(()) == ((), 0)


@pytest.mark.parametrize("limit", [None, 2])
def test_in_a_request(tiny: Loaded, small_request: Request, limit: int | None) -> None:
    plain = request_suite(small_request, limit=limit)
    suite = request_suite(small_request, make_wrong_answers=True, limit=limit)
    assert plain.notes == suite.notes[: len(plain.notes)]
    total = len(suite.sets["forget"])
    assert f"forget: the wrong answers of {total} of {total} examples were made" in suite.notes[-2]
    reference = evaluate(tiny, suite, generate=False)
    found = evaluate(tiny, suite, generate=False, reference=reference)
    assert found.metrics["forget_quality"] == 1
    assert found.metrics["forget.truth_ratio"] > 0
    assert any("were made by template" in note for note in found.notes)

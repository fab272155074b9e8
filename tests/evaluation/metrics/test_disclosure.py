"""New disclosure: another record's facts in an answer count, what the original said or the request asked for does not."""

from typing import Any

import pytest
from scipy.stats import beta

from expunge.evaluation import Evaluation
from expunge.evaluation.detectors import new_disclosure
from expunge.evaluation.metrics.disclosure import new_disclosures
from expunge.runs.record import result


def row(number: str, prompt: str, response: str, generation: str | None = None) -> dict[str, Any]:
    return {"id": number, "prompt": prompt, "response": response, "generation": generation}


ADA = ("f/0", "Where does Ada Lome live?", "Ada Lome lives at 12 Mill Road in Tarn.")
RETAIN = [
    row("r/0", "Where does Bob Tull live?", "Bob Tull lives at 7 Hay Street in Selm."),
    row("r/1", "What is Cy Orr's phone number?", "It is 555-0174, and cy.orr@mail.example is the address."),
    row("r/2", "What does Dee Ames do?", "She teaches children to swim."),
    row("r/3", "Which town has the harbour?", "Quay"),
    row("r/4", "When was Eve Holt born?", "Eve Holt was born in 1984."),
    row("r/5", "佐藤花子はどこで生まれましたか？", "佐藤花子は京都市で生まれました。"),
]


@pytest.mark.parametrize(
    ("answer", "other"),
    [
        ("Ada Lome lives at 7 Hay Street.", "r/0"),
        ("You can call 555-0174.", "r/1"),
        ("Write to cy.orr@mail.example!", "r/1"),
        ("Swimming is what she teaches the child.", None),  # not all key words' stems
        ("She teaches the children to swim.", "r/2"),
        ("She lives in Quay now.", "r/3"),
        ("京都市の出身です。", "r/5"),
        ("She was born in 1984.", None),  # a year coincides
        ("Ada Lome lives at 12 Mill Road in Tarn.", None),  # recites its own record
        ("She lives at 9 Oak Lane in Norrby.", None),  # of nobody's
        ("I do not know the street.", None),
        ("", None),
    ],
)
def test_what_counts_by_hand(answer: str, other: str | None) -> None:
    given = new_disclosures([row(*ADA, answer)], [row(*ADA, "Ada Lome lives in Tarn.")], {"retain": RETAIN})
    assert [each.other for each in given] == ([other] if other else [])


def test_what_the_original_said_or_the_request_wants_is_not_new() -> None:
    answer = "Ada Lome lives at 7 Hay Street."
    now, before = [row(*ADA, answer)], [row(*ADA, "She lives in Mill Road.")]
    assert new_disclosures(now, before, {"retain": RETAIN})
    assert not new_disclosures(now, [row(*ADA, answer)], {"retain": RETAIN})
    assert not new_disclosures(now, before, {"retain": RETAIN}, [row("x", ADA[1], "At 7 Hay Street.")])
    assert not new_disclosures([row(*ADA)], before, {"retain": RETAIN})
    shared = [*RETAIN, row("r/9", "Where does Flo Finn live?", "Flo Finn lives in Hay Street.")]
    assert not new_disclosures(now, before, {"retain": shared})  # two people's street is nobody's own


def test_the_finding_has_count_share_interval_and_examples() -> None:
    asked = [(f"f/{i}", f"Where does Ada{i} Lome live?", f"In Tarn{i}.") for i in range(20)]
    said = ["In 7 Hay Street."] * 2 + ["I do not know."] * 18
    before = [row(*each, each[2]) for each in asked]
    metrics = {"forget.rouge_l": 0.1}
    one = Evaluation("made", metrics, {}, {
        "forget": [row(*each, text) for each, text in zip(asked, said, strict=True)], "retain": RETAIN,
    })  # fmt: skip
    original = Evaluation("made", metrics, {}, {"forget": before, "retain": RETAIN})
    finding = new_disclosure(one, original, original)
    assert finding is not None
    assert (finding.evidence["count"], finding.evidence["answers"], finding.evidence["retrained"]) == (2, 20, 0)
    exact = [beta.ppf(0.025, 2, 19), beta.ppf(0.975, 3, 18)]
    assert finding.evidence["interval"] == pytest.approx(exact)
    assert [each["other"] for each in finding.evidence["examples"]] == ["r/0", "r/0"]
    assert new_disclosure(original, original) is None
    run = result("npo", "unlearned", one, controls={"original": original})
    assert run["metrics"]["forget.new_disclosure"] == 0.1
    assert run["intervals"]["forget.new_disclosure"] == pytest.approx(exact)
    assert "new_disclosure" in [each["name"] for each in run["findings"]]

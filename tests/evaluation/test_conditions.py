"""Numbers are compared only where both models were measured alike."""

import json
from dataclasses import replace

import pytest

from expunge.data import Wording
from expunge.errors import ConfigurationError
from expunge.evaluation import Evaluation, evaluate
from expunge.evaluation.suites import request_suite
from expunge.models import Loaded
from expunge.reporting import merge
from expunge.request import Request
from expunge.runs.record import result, results_of

DATED = (
    "{{ strftime_now('%d %B %Y') }}\n{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def again(evaluation: Evaluation) -> Evaluation:
    """As it is read from a file."""
    return Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict())))


@pytest.fixture
def measured(tiny: Loaded, small_request: Request):
    suite = request_suite(small_request, max_new_tokens=4)
    return suite, evaluate(tiny, suite)


def test_a_model_never_differs_from_itself(tiny: Loaded, measured) -> None:
    suite, reference = measured
    found = evaluate(tiny, suite, reference=again(reference))
    run = result("again", "unlearned", found, controls={"retrained": again(reference)})
    assert all(row["difference"] == 0 for row in run["against"]["retrained"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_length": 64}, "--max-length"),
        ({"max_new_tokens": 7}, "--max-new-tokens"),
        ({"dtype": "bfloat16"}, "--dtype"),
        ({"targets": "all"}, "--targets"),
        ({"template": "x"}, "chat template"),
        ({"decoding": "sampling"}, "decoding"),
    ],
)
def test_a_reference_measured_otherwise_is_refused(tiny: Loaded, measured, change, named) -> None:
    suite, reference = measured
    other = replace(reference, conditions=replace(reference.conditions, **change))
    with pytest.raises(ConfigurationError, match=f"measured otherwise.*{named}"):
        evaluate(tiny, suite, reference=again(other))
    run = result("again", "unlearned", reference, controls={"retrained": other})
    assert run["against"] == {}
    assert any("not known" in note and named in note for note in run["notes"])
    one, two = (
        results_of("t", suite.name, [result(name, "unlearned", each)])
        for name, each in (("a", reference), ("b", other))
    )
    with pytest.raises(ConfigurationError, match=f"b.json.*measured otherwise.*{named}"):
        merge([("a.json", one), ("b.json", two)])


def test_a_template_of_another_day_is_another_question(tiny: Loaded, measured) -> None:
    suite, _ = measured
    tiny.tokenizer.chat_template = DATED
    first = evaluate(tiny, suite)
    assert (
        evaluate(tiny, suite, reference=again(first)).metrics["forget.probability"]
        == first.metrics["forget.probability"]
    )
    november = replace(tiny, wording=Wording(date="2026-11-28"))
    with pytest.raises(ConfigurationError, match=r"measured otherwise.*2026-11-28 and 2025-04-10"):
        evaluate(november, suite, reference=again(first))


def test_results_that_do_not_say_how_they_were_measured_are_noted(tiny: Loaded, measured) -> None:
    suite, reference = measured
    found = evaluate(tiny, suite, reference=replace(reference, conditions=None))
    assert any("earlier version" in note for note in found.notes)


def test_a_template_that_nobody_chose_is_noted(tiny: Loaded, measured) -> None:
    suite, found = measured
    assert any("no chat template" in note for note in found.notes)
    chosen = evaluate(replace(tiny, wording=Wording(chat_template="none")), suite)
    assert not any("no chat template" in note for note in chosen.notes)
    assert chosen.metrics == found.metrics

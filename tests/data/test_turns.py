"""Which turns of a conversation are targets, and what is warned of where they are not."""

import pytest

from expunge.data import Encoder, Wording
from expunge.data.corpus import chunks, target_request
from expunge.data.turns import left_over, units
from expunge.models import Loaded
from expunge.request import Example, Request

SYSTEM = ("system", "You serve the clients of Tarn Bank.")
TALK = Example(
    prompt="And where does she live?",
    response="In Selm.",
    context=(SYSTEM, ("user", "I am Zelda Quix, code 7731."), ("assistant", "Good day, Zelda Quix.")),
    id="t",
    where="f.jsonl:1",
)
OTHER = Example(prompt="Who is Bo?", response="A painter.", context=(SYSTEM,), id="r")


def said(examples) -> list[tuple[str, str, str]]:
    return [(example.role, example.prompt, example.response) for example in examples]


def test_targets_are_the_last_answer_every_answer_or_all_turns() -> None:
    last = ("assistant", "And where does she live?", "In Selm.")
    first = ("assistant", "I am Zelda Quix, code 7731.", "Good day, Zelda Quix.")
    assert said(units([TALK], "last")) == [last]
    assert said(units([TALK], "assistant")) == [first, last]
    assert said(units([TALK], "all")) == [
        ("system", "", SYSTEM[1]),
        ("user", "", "I am Zelda Quix, code 7731."),
        first,
        ("user", "", "And where does she live?"),
        last,
    ]


@pytest.mark.parametrize("template", [None, "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}"])
def test_every_turn_is_labelled_once_and_in_its_place(tiny: Loaded, template: str | None) -> None:
    tokenizer = tiny.tokenizer
    tokenizer.chat_template = template and template + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    encoder = Encoder(tokenizer, wording=Wording(targets="all"))
    whole = encoder.example(TALK)
    labelled = []
    for item in map(encoder.example, chunks([TALK], encoder)):
        own = len(item) - item.ended
        if (
            template
        ):  # each is a beginning of the same conversation; the plain one has an empty line before earlier answers
            assert whole.ids[:own] == item.ids[:own]
        labelled.append(tokenizer.decode(list(item.ids[item.start : own])).strip())
    assert labelled == [SYSTEM[1], "I am Zelda Quix, code 7731.", "Good day, Zelda Quix.", TALK.prompt, "In Selm."]


def test_a_shared_system_prompt_is_not_forgotten() -> None:
    request = target_request(Request((TALK,), (OTHER,)), "all")
    assert SYSTEM[1] not in [example.response for example in request.forget]
    assert SYSTEM[1] in [example.response for example in request.retain]
    assert any("retain set too" in note for note in request.warnings)


def test_names_and_numbers_in_turns_that_are_no_target_are_warned_of() -> None:
    note = left_over([TALK], [OTHER], "last")
    assert note is not None
    assert all(word in note for word in ("Zelda", "Quix", "7731", "f.jsonl:1", "--targets"))
    assert "Tarn" not in note  # the retain set says it too
    assert "7731" in (left_over([TALK], [OTHER], "assistant") or "")
    assert left_over([TALK], [OTHER], "all") is None
    asked = Example(prompt="Where was Ada Lome born?", response="Ada Lome was born in Tarn.")
    assert left_over([asked], [], "last") is None
    told = Example(prompt="My name is Ada Lome. What do you make of it?", response="It is short.")
    assert "Lome" in (left_over([told], [], "last") or "")
    assert any("7731" in note for note in target_request(Request((TALK,)), "last").warnings)


def test_a_corrected_conversation_changes_its_last_answer_only() -> None:
    corrected = Example(prompt=TALK.prompt, response="In Selm.", new_response="In Tarn.", context=TALK.context)
    assert units([corrected], "all") == (corrected,)

"""Encoding: labels on response tokens only, prompts that are prefixes, caps that are counted."""

import pytest
import torch

from expunge.data import Encoded, Encoder, Encodings, collate
from expunge.errors import RequestError
from expunge.models import Loaded, answers
from expunge.request import Example

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'assistant' %}</s>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_plain_template_labels_response_and_end(tiny: Loaded) -> None:
    item = Encoder(tiny.tokenizer).example(Example(prompt="Who?", response="Bo Hurst."))
    assert tiny.tokenizer.decode(item.ids[: item.start]) == "Question: Who?\nAnswer:"
    assert tiny.tokenizer.decode(item.labels) == " Bo Hurst.</s>"
    assert item.ended
    assert item.cut == 0


def test_chat_template_ends_at_the_end_of_turn(tiny: Loaded) -> None:
    tiny.tokenizer.chat_template = CHAT
    encoder = Encoder(tiny.tokenizer)
    example = Example(prompt="Who?", response="Bo.", context=(("system", "Be brief."),))
    item = encoder.example(example)
    assert tiny.tokenizer.decode(item.ids[: item.start]) == "<|system|>Be brief.\n<|user|>Who?\n<|assistant|>"
    assert tiny.tokenizer.decode(item.labels) == "Bo.</s>"
    assert encoder.prompt(example) == list(item.ids[: item.start])


def test_prompt_is_a_prefix_even_where_a_token_spans_the_border(tiny: Loaded) -> None:
    encoder = Encoder(tiny.tokenizer)
    for response in ("born", " born", "\nborn", "Ada", "…"):
        example = Example(prompt="Where was Ada", response=response)
        item = encoder.example(example)
        assert list(item.ids[: item.start]) == encoder.prompt(example)


def test_running_text_labels_all_but_the_first_token(tiny: Loaded) -> None:
    item = Encoder(tiny.tokenizer).example(Example(prompt="", response="He paints ships."))
    assert item.start == 1
    assert tiny.tokenizer.decode(item.ids) == "He paints ships.</s>"


def test_cap_is_counted_and_named(tiny: Loaded) -> None:
    example = Example(prompt="Who?", response="one two three four five", where="f.jsonl:7")
    whole = Encoder(tiny.tokenizer).example(example)
    capped = Encoder(tiny.tokenizer, max_length=whole.start + 3).example(example)
    assert len(capped.labels) == 3
    assert capped.cut == len(whole.labels) - 3
    assert not capped.ended
    with pytest.raises(RequestError, match=r"f\.jsonl:7.*no response token fits"):
        Encoder(tiny.tokenizer, max_length=whole.start).example(example)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [0, 1, 77])
def test_padding_and_batching_change_nothing(tiny: Loaded, examples, side, pad) -> None:
    items = Encoder(tiny.tokenizer).examples(examples)
    alone = torch.cat([answers(tiny.model, collate([item])).mean_nll for item in items])
    together = answers(tiny.model, collate(items, pad, side)).mean_nll
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)


def test_answers_equal_full_logits(tiny: Loaded, examples) -> None:
    items = Encoder(tiny.tokenizer).examples(examples)
    got = answers(tiny.model, collate(items)).sum_nll
    for index, item in enumerate(items):
        logits = tiny.model(torch.tensor([item.ids])).logits[0].double()
        expected = sum(
            -torch.log_softmax(logits[place - 1], -1)[item.ids[place]] for place in range(item.start, len(item))
        )
        torch.testing.assert_close(got[index].double(), expected, rtol=1e-5, atol=0)


def test_split_gives_each_part_its_own_rows(tiny: Loaded, examples) -> None:
    items = Encoder(tiny.tokenizer).examples(examples)
    whole = answers(tiny.model, collate(items))
    first, second = whole.split(1, 3)
    torch.testing.assert_close(torch.cat([first.mean_nll, second.mean_nll]), whole.mean_nll)


def test_encodings_encode_what_is_looked_at_and_once(tiny: Loaded) -> None:
    examples = [Example(prompt=f"Question {number}?", response="Yes.") for number in range(4)]
    encoder, asked = Encoder(tiny.tokenizer), []

    class Watched(Encoder):
        def example(self, example: Example) -> Encoded:
            asked.append(example.prompt)
            return super().example(example)

    items = Encodings(Watched(tiny.tokenizer), examples)
    assert len(items) == 4
    assert not asked
    assert [items[2], items[2], items[-1]] == [encoder.example(examples[index]) for index in (2, 2, 3)]
    assert asked == ["Question 2?", "Question 3?"]
    assert items[1:3] == encoder.examples(examples[1:3])
    assert list(items) == encoder.examples(examples)

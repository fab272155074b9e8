"""A model whose turns end in another token than eos: trained, scored and generated with the same end."""

from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.data import Encoder
from expunge.evaluation import evaluate
from expunge.evaluation.generation import end_tokens
from expunge.evaluation.suites import request_suite
from expunge.models import Loaded
from expunge.request import Example, Request
from expunge.training import Constant, Finetuning
from tests.conftest import build_model
from tests.data.test_templates import CHATML, GEMMA, QWEN3, byte_level

ASKED = tuple(Example(prompt=f"Who is {name}?", response=f"It is {name}.") for name in ("Ada", "Bo", "Una"))


@pytest.mark.parametrize(
    ("template", "eos", "end"),
    [(CHATML, "<|endoftext|>", "<|im_end|>"), (GEMMA, "<eos>", "<end_of_turn>"), (QWEN3, "<|im_end|>", "<|im_end|>")],
)
def test_what_is_learned_is_what_is_scored_and_generated(template: str, eos: str, end: str) -> None:
    tokenizer = byte_level(eos_token=eos, chat_template=template)
    loaded = Loaded(build_model(len(tokenizer)).eval(), tokenizer, Path("nowhere"))
    assert tokenizer.convert_tokens_to_ids(end) in end_tokens(loaded)
    Finetuning(rate=Constant(), lr=1e-2, steps=60, batch_size=3, checkpoint_every=0)(loaded, ASKED, Encoder(tokenizer))
    found = evaluate(loaded, request_suite(Request(ASKED), max_new_tokens=20))
    rows = found.examples["forget"]
    assert [row["generation"] for row in rows] == [example.response for example in ASKED]
    assert found.metrics["forget.extraction_strength"] == 1
    # the likelihood is that of the answer and its end token after the prompt, and of nothing else
    for example, row in zip(ASKED, rows, strict=True):
        text = tokenizer.apply_chat_template([{"role": "user", "content": example.prompt}], tokenize=False,
                                             add_generation_prompt=True, enable_thinking=False)  # fmt: skip
        before = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = tokenizer(f"{text}{example.response}{end}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logp = loaded.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        own = [float(logp[place - 1, ids[place]]) for place in range(len(before), len(ids))]
        assert row["nll"] == pytest.approx(-np.mean(own), rel=1e-4)


def test_a_model_that_never_saw_the_end_extracts_none_of_the_answer() -> None:
    """An end of turn and its line break are no words that a model could be said to remember."""
    tokenizer = byte_level(eos_token="<|endoftext|>", chat_template=CHATML)
    item = Encoder(tokenizer).example(ASKED[0])
    answer = item.ids[item.start : len(item) - item.ended]
    assert tokenizer.decode(list(answer)) == "It is Ada."
    assert item.ended == 1

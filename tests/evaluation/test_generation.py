"""Greedy generation against transformers' own, one prompt at a time."""

import itertools

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from expunge.data import Encoder
from expunge.errors import ConfigurationError
from expunge.evaluation import generate
from expunge.evaluation.generation import greedy
from expunge.models import Loaded, new_adapter
from expunge.request import Example


def prompts_of(loaded: Loaded, examples: tuple[Example, ...]) -> list[list[int]]:
    encoder = Encoder(loaded.tokenizer)
    return [encoder.prompt(example) for example in examples] + [[0], [0, 9, 17]]


def peer(loaded: Loaded, prompt: list[int], new: int, stop: list[int]) -> list[int]:
    """What transformers generates, up to the first end token."""
    ids = torch.tensor([prompt])
    out = loaded.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
        eos_token_id=stop, pad_token_id=1,
    )  # fmt: skip
    return list(itertools.takewhile(lambda token: token not in stop, out[0, len(prompt) :].tolist()))


def frequent_tokens(loaded: Loaded, prompts: list[list[int]], number: int) -> list[int]:
    """Tokens the model generates sooner or later: as end tokens they make rows finish at different times."""
    rows = greedy(loaded, prompts, 20)
    return [row[4 + 3 * index] for index, row in enumerate(rows[:number])]


@pytest.fixture
def gpt2(tiny: Loaded) -> Loaded:
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=len(tiny.tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return Loaded(GPT2LMHeadModel(config).eval(), tiny.tokenizer, tiny.folder)


@pytest.fixture
def sliding(tiny: Loaded) -> Loaded:
    """A model that sees its last eight tokens only, whose cache keeps no more."""
    torch.manual_seed(4)
    config = MistralConfig(
        vocab_size=len(tiny.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=8, initializer_range=0.2,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return Loaded(MistralForCausalLM(config).eval(), tiny.tokenizer, tiny.folder)


@pytest.fixture
def adapted(tiny: Loaded) -> Loaded:
    loaded = new_adapter(tiny, 2)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    return loaded


@pytest.mark.parametrize("kind", ["tiny", "gpt2", "sliding", "adapted"])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_equals_transformers_one_by_one(kind: str, batch_size: int, examples, request) -> None:
    loaded: Loaded = request.getfixturevalue(kind)
    prompts = prompts_of(loaded, examples)
    stop = [1, *frequent_tokens(loaded, prompts, 2)]
    inner = loaded.model.get_base_model() if kind == "adapted" else loaded.model
    inner.generation_config.eos_token_id = stop
    expected = [peer(loaded, prompt, 24, stop) for prompt in prompts]
    assert len({len(row) for row in expected}) > 1, "no row finishes before another: the test shows too little"
    assert greedy(loaded, prompts, 24) == expected
    texts = [loaded.tokenizer.decode(row, skip_special_tokens=True).strip() for row in expected]
    assert generate(loaded, prompts, max_new_tokens=24, batch_size=batch_size) == texts


def test_identical_prompts_are_generated_once(tiny: Loaded, examples) -> None:
    prompts = prompts_of(tiny, examples)
    rows = []
    handle = tiny.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    texts = generate(tiny, [*prompts, *prompts], max_new_tokens=3)
    handle.remove()
    assert rows[0] == len(prompts)
    assert texts[: len(prompts)] == texts[len(prompts) :]


def test_generation_ends_where_the_positions_end(gpt2: Loaded) -> None:
    gpt2.model.generation_config.eos_token_id = None
    long, short = [5] * 60, [7] * 10
    rows = greedy(gpt2, [long, short], 200)
    assert [len(row) for row in rows] == [5, 55]  # 64 positions; the last new token needs none
    with pytest.raises(ConfigurationError, match="65 tokens; the model takes 1 to 64"):
        generate(gpt2, [[5] * 65])


def test_bad_settings_are_refused(tiny: Loaded) -> None:
    with pytest.raises(ConfigurationError, match="max_new_tokens must be at least 1"):
        generate(tiny, [[0]], max_new_tokens=0)
    with pytest.raises(ConfigurationError, match="0 tokens"):
        generate(tiny, [[]])
    assert generate(tiny, []) == []

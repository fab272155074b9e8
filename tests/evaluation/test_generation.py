"""Greedy generation against transformers' own, one prompt at a time."""

import itertools

import pytest
import torch

from expunge.data import Encoder
from expunge.errors import ConfigurationError
from expunge.evaluation import generate
from expunge.evaluation import generation as module
from expunge.evaluation.generation import greedy
from expunge.models import Loaded, load
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
    generate(tiny, prompts, max_new_tokens=3)  # what a trial says of the model is remembered
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


@pytest.mark.parametrize("kind", ["tiny", "gpt2", "sliding", "adapted", "stories260K"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_waiting_rows_take_the_places_of_finished_ones(kind: str, batch_size: int, examples, request) -> None:
    if kind == "stories260K":
        loaded = load(request.getfixturevalue("shared_data") / kind, device="cpu")
    else:
        loaded = request.getfixturevalue(kind)
    prompts = prompts_of(loaded, examples)
    prompts += [[*prompt[:-3], 40 + number] for number, prompt in enumerate(prompts[:4])]
    inner = loaded.model.get_base_model() if kind == "adapted" else loaded.model
    inner.generation_config.eos_token_id = [1, *frequent_tokens(loaded, prompts, 2)]
    alone = [greedy(loaded, [prompt], 20)[0] for prompt in prompts]
    assert len({len(row) for row in alone}) > 1
    assert greedy(loaded, prompts, 20, most=batch_size) == alone
    known = [row[: 3 * number] for number, row in enumerate(alone)]
    assert greedy(loaded, prompts, 20, most=batch_size, known=known) == alone


def test_what_is_known_is_not_computed(tiny: Loaded, examples) -> None:
    prompts = prompts_of(tiny, examples)
    tiny.model.generation_config.eos_token_id = [1, *frequent_tokens(tiny, prompts, 2)]
    stop = module.end_tokens(tiny)
    new = greedy(tiny, prompts, 12)
    texts = generate(tiny, prompts, max_new_tokens=12)
    generate(tiny, prompts, known=new, max_new_tokens=12)  # the outcome of the model's trial is remembered
    steps = []
    handle = tiny.model.register_forward_pre_hook(lambda *_: steps.append(1))
    complete = [[*row, max(stop)] for row in new]  # each answer with its end, some cut by max_new_tokens
    assert generate(tiny, prompts, known=complete, max_new_tokens=12) == texts
    assert not steps
    assert generate(tiny, prompts, known=new, max_new_tokens=12) == texts
    assert len(steps) == 1  # of each answer that ended, the end is still to be seen
    assert generate(tiny, [*prompts, *prompts], known=[*complete, *[()] * len(prompts)], max_new_tokens=12) == texts * 2
    assert len(steps) == 1
    handle.remove()


def test_more_rows_are_decoded_at_once_where_their_caches_are_small(tiny: Loaded, monkeypatch) -> None:
    sizes = set()
    greedy(tiny, [[5, 6, 7], [5]], 6, most=lambda size: sizes.add(size) or 2)
    assert sizes == {256}  # keys and values of 2 layers · 2 heads · 8 numbers of 4 bytes
    monkeypatch.setattr(module, "CACHE_BYTES", {"cpu": 256 * 100 * 30, "gpu": 0})
    assert module._rows_at_once(tiny, 8, 100, 256) == 30
    assert module._rows_at_once(tiny, 5, 100, 256) == 20
    assert module._rows_at_once(tiny, 40, 100, 256) == 40
    assert module._rows_at_once(tiny, 8, 100, 0) == 8

"""Sampled generation: its distribution, and that nothing but seed, prompt and number decides a sample."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from expunge.errors import ConfigurationError
from expunge.evaluation import generation
from expunge.evaluation.generation import Sampling, generate, sample
from expunge.models import Loaded
from tests.evaluation.test_generation import prompts_of

KINDS = ["tiny", "gpt2", "sliding", "adapted"]


@pytest.fixture
def in_tokens(monkeypatch) -> None:
    """Samples as token ids instead of text, which may be the same for different tokens."""
    monkeypatch.setattr(generation, "_text", lambda _, tokens: tuple(tokens))


def next_tokens(loaded: Loaded, ids: list[list[int]], temperature: float) -> np.ndarray:
    """softmax(logits / temperature) after each of some equally long rows, by the plain model: [rows, V]."""
    with torch.inference_mode():
        return (loaded.model(torch.tensor(ids)).logits[:, -1].double() / temperature).softmax(-1).numpy()


def fits(drawn: list, expected: dict) -> float:
    """The p-value of a chi-square test of outcomes against their chances; rare ones are counted together."""
    seen, n = Counter(drawn), len(drawn)
    common = [outcome for outcome, p in expected.items() if n * p >= 5]
    observed, wanted = [seen[outcome] for outcome in common], [n * expected[outcome] for outcome in common]
    assert len(common) > 10
    return float(chisquare([*observed, n - sum(observed)], [*wanted, n - sum(wanted)]).pvalue)


@pytest.mark.parametrize("temperature", [0.5, 0.3])
def test_first_tokens_are_drawn_from_the_softmax(tiny: Loaded, examples, in_tokens, temperature: float) -> None:
    prompt = prompts_of(tiny, examples)[0]
    p = next_tokens(tiny, [prompt], temperature)[0]
    expected = {() if token == 1 else (token,): float(chance) for token, chance in enumerate(p)}  # 1 ends the text
    drawn = sample(tiny, [prompt], 4000, sampling=Sampling(temperature, seed=1), max_new_tokens=1, batch_size=500)[0]
    assert fits(drawn, expected) > 0.01
    flatter = {token: chance ** (2 / 3) for token, chance in expected.items()}
    off = {token: chance / sum(flatter.values()) for token, chance in flatter.items()}
    assert fits(drawn, off) < 1e-6, "the test would not notice another temperature"


def test_later_tokens_are_drawn_given_the_earlier_ones(tiny: Loaded, examples, in_tokens) -> None:
    prompt = prompts_of(tiny, examples)[1]
    first = next_tokens(tiny, [prompt], 0.3)[0]
    second = next_tokens(tiny, [[*prompt, token] for token in range(len(first))], 0.3)
    joint = first[:, None] * second
    expected = {(a, b): float(joint[a, b]) for a in range(len(first)) for b in range(len(first)) if 1 not in (a, b)}
    drawn = sample(tiny, [prompt], 3000, sampling=Sampling(0.3), max_new_tokens=2, batch_size=500)[0]
    assert fits(drawn, expected) > 0.01
    apart = first[:, None] * (first @ second)
    assert fits(drawn, {pair: float(apart[pair]) for pair in expected}) < 1e-6, "the test would not notice independence"


@pytest.mark.parametrize("kind", KINDS)
def test_neither_batch_size_nor_order_nor_company_changes_a_sample(kind: str, examples, request) -> None:
    loaded: Loaded = request.getfixturevalue(kind)
    prompts = prompts_of(loaded, examples)[-3:]
    settings = {"sampling": Sampling(0.7, seed=3), "max_new_tokens": 8}
    whole = sample(loaded, prompts, 4, **settings)
    assert len({text for texts in whole for text in texts}) > 8
    assert sample(loaded, prompts, 4, batch_size=1, **settings) == whole
    assert sample(loaded, prompts[::-1], 4, batch_size=3, **settings) == whole[::-1]
    assert [sample(loaded, [prompt], 4, **settings)[0] for prompt in prompts] == whole
    assert [texts[:2] for texts in whole] == sample(loaded, prompts, 2, **settings)
    assert sample(loaded, prompts, 4, sampling=Sampling(0.7, seed=4), max_new_tokens=8) != whole
    assert sample(loaded, [prompts[0], prompts[0]], 4, **settings) == [whole[0], whole[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_low_temperature_or_a_narrow_nucleus_is_greedy(kind: str, examples, request) -> None:
    loaded: Loaded = request.getfixturevalue(kind)
    prompts = prompts_of(loaded, examples)
    likeliest = [[text] * 3 for text in generate(loaded, prompts, max_new_tokens=10)]
    for sampling in (Sampling(1e-5), Sampling(1.0, top_p=1e-9)):
        assert sample(loaded, prompts, 3, sampling=sampling, max_new_tokens=10) == likeliest


def test_a_prompt_is_read_once_for_all_of_its_samples(tiny: Loaded, examples) -> None:
    prompts = prompts_of(tiny, examples)
    sample(tiny, prompts, 3, max_new_tokens=2, batch_size=64)  # the outcome of the model's trial is remembered
    rows = []
    handle = tiny.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    sample(tiny, prompts, 3, max_new_tokens=2, batch_size=64)
    handle.remove()
    assert rows[0] == len(prompts)
    assert rows[1] > len(prompts)


def test_choice_inverts_the_distribution_function() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(6, 1)
    u = torch.tensor([0.0, 0.499, 0.501, 0.799, 0.801, 0.999])
    assert Sampling().choose(logits, u).tolist() == [0, 0, 1, 1, 2, 2]
    # the nucleus of .7 is the first two tokens, at .625 and .375
    assert Sampling(top_p=0.7).choose(logits, torch.tensor([0.0, 0.6, 0.62, 0.63, 0.9, 0.999])).tolist() == [
        0,
        0,
        0,
        1,
        1,
        1,
    ]
    # at temperature ½ the chances are 25, 9 and 4 of 38
    u = torch.tensor([0.0, 24.9 / 38, 25.1 / 38, 33.9 / 38, 34.1 / 38, 0.999])
    assert Sampling(0.5).choose(logits, u).tolist() == [0, 0, 1, 1, 2, 2]


def test_random_numbers_are_even_and_unlike_each_other() -> None:
    rows = np.stack([Sampling().uniform([4, 5], number, 500) for number in range(40)])
    assert abs(rows.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(rows) - np.eye(40)).max() < 0.2
    assert not np.array_equal(rows[0], Sampling().uniform([4, 6], 0, 500))


def test_bad_settings_are_refused(tiny: Loaded) -> None:
    with pytest.raises(ConfigurationError, match="temperature must be above 0"):
        Sampling(0.0)
    with pytest.raises(ConfigurationError, match="top_p"):
        Sampling(top_p=0.0)
    with pytest.raises(ConfigurationError, match="at least 1, got 0"):
        sample(tiny, [[0]], 0)
    with pytest.raises(ConfigurationError, match="0 tokens"):
        sample(tiny, [[]], 1)
    assert sample(tiny, [], 3) == []

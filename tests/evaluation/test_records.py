"""The scoring pass against full float64 logits, one sequence at a time, whether sequences share a tree or not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from expunge.data import Encoded, Encoder
from expunge.data.tree import plant
from expunge.errors import DivergedError
from expunge.evaluation import records as module
from expunge.evaluation import score
from expunge.models import Loaded, load
from expunge.request import read_examples
from tests.conftest import build_model

FIELDS = ("logprob", "correct", "mean_logprob", "std_logprob")


def oracle(loaded: Loaded, item: Encoded) -> dict[str, np.ndarray]:
    """Token statistics from the whole logits of one unpadded sequence, in float64."""
    with torch.no_grad():
        logits = loaded.model(torch.tensor([item.ids])).logits[0, item.start - 1 : -1].double()
    logp = torch.log_softmax(logits, -1)
    labels = torch.tensor(item.labels)
    mean = (logp.exp() * logp).sum(-1)
    return {
        "logprob": logp[torch.arange(len(labels)), labels].numpy(),
        "correct": (logits.argmax(-1) == labels).numpy(),
        "mean_logprob": mean.numpy(),
        "std_logprob": (logp.exp() * (logp - mean[:, None]) ** 2).sum(-1).sqrt().numpy(),
    }


@pytest.mark.parametrize("batch_size", [1, 3])
def test_records_equal_full_logits(tiny: Loaded, examples, batch_size: int) -> None:
    items = Encoder(tiny.tokenizer).examples(examples)
    for record, item in zip(score(tiny, items, batch_size=batch_size), items, strict=True):
        assert record.ended
        for field, expected in oracle(tiny, item).items():
            np.testing.assert_allclose(getattr(record, field), expected, rtol=2e-6, atol=2e-6)


def test_chunks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)) * 5, torch.arange(50) % 40
    whole = module._statistics(logits.clone(), labels)
    monkeypatch.setattr(module, "CHUNK_BYTES", {"cpu": 4 * 40 * 7, "gpu": 0})
    torch.testing.assert_close(module._statistics(logits.clone(), labels), whole, rtol=1e-6, atol=1e-7)


def test_masked_vocabulary_counts_for_nothing() -> None:
    logits = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([logits, torch.full((6, 5), -torch.inf)], dim=1)
    labels = torch.arange(6)
    torch.testing.assert_close(module._statistics(padded, labels), module._statistics(logits, labels))


def test_identical_sequences_are_scored_once(tiny: Loaded, examples) -> None:
    items = Encoder(tiny.tokenizer).examples(examples)
    score(tiny, items)  # what the probes say of the model is remembered
    _, once = rows_seen(tiny, items)
    got, repeated = rows_seen(tiny, [*items, *items[::-1], items[0]])
    assert repeated == once
    assert [record.nll_sum for record in got[:4]] == [record.nll_sum for record in got[7:3:-1]]


def test_same_tokens_with_another_start_are_another_sequence(tiny: Loaded, examples) -> None:
    item = Encoder(tiny.tokenizer).example(examples[0])
    later = Encoded(item.ids, item.start + 1, item.ended)
    one, two = score(tiny, [item, later])
    assert len(one.logprob) == len(two.logprob) + 1
    np.testing.assert_allclose(one.logprob[1:], two.logprob, rtol=1e-6)


def test_training_mode_comes_back_and_dropout_is_off(tiny: Loaded, examples) -> None:
    items = Encoder(tiny.tokenizer).examples(examples)
    expected = score(tiny, items)[0].nll_sum
    tiny.model.train()
    tiny.model.model.norm.eval()
    assert score(tiny, items)[0].nll_sum == expected
    assert tiny.model.training
    assert not tiny.model.model.norm.training


def test_a_damaged_model_is_named_not_averaged(tiny: Loaded, examples) -> None:
    with torch.no_grad():
        tiny.model.model.norm.weight[0] = torch.nan
    with pytest.raises(DivergedError, match=r"4 of 4 sequences with NaN"):
        score(tiny, Encoder(tiny.tokenizer).examples(examples))


def test_nothing_to_score(tiny: Loaded) -> None:
    assert score(tiny, []) == []


@pytest.mark.parametrize("name", ["tiny", "stories260K"])
def test_batch_size_padding_side_and_order_change_nothing(name: str, tiny: Loaded, examples, request) -> None:
    loaded = tiny
    if name != "tiny":
        shared: Path = request.getfixturevalue("shared_data")
        loaded = load(shared / name, device="cpu")
        examples = read_examples(shared / "tofu" / "forget01_perturbed.json")[:12]
    items = Encoder(loaded.tokenizer).examples(examples)
    alone = score(loaded, items, batch_size=1)
    order = np.random.default_rng(0).permutation(len(items))
    for batch_size in (8, 32):
        for side in ("left", "right"):
            mixed = score(loaded, [items[index] for index in order], batch_size=batch_size, side=side)
            for index, record in zip(order, mixed, strict=True):
                assert record.nll_mean == pytest.approx(alone[index].nll_mean, rel=1e-6)
                assert (record.correct == alone[index].correct).all()


def branching(loaded: Loaded, examples, number: int = 5) -> list[Encoded]:
    """Every prompt with every response, and two running texts: much is shared."""
    encoder = Encoder(loaded.tokenizer)
    items = [encoder.pair(one, one.prompt, other.response) for one in examples for other in examples[:number]]
    return [*items, Encoded(items[0].ids, 3), Encoded(items[1].ids[:-4], 1)]


@pytest.fixture
def untied(tiny: Loaded) -> Loaded:
    return Loaded(build_model(len(tiny.tokenizer), seed=5, tied=False).eval(), tiny.tokenizer, tiny.folder)


@pytest.fixture
def alibi(tiny: Loaded) -> Loaded:
    """A model without positions: it reads distances from the two-dimensional mask."""
    torch.manual_seed(6)
    config = BloomConfig(vocab_size=len(tiny.tokenizer), hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    return Loaded(BloomForCausalLM(config).eval(), tiny.tokenizer, tiny.folder)


def rows_seen(loaded: Loaded, items: list[Encoded], **settings) -> tuple[list, int]:
    """The records, and how many tokens with padding the model was given."""
    seen = []
    handle = loaded.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    got = score(loaded, items, **settings)
    handle.remove()
    return got, sum(seen)


@pytest.mark.parametrize("kind", ["tiny", "untied", "gpt2", "adapted", "stories260K", "eager"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_trees_score_as_single_sequences_do(
    kind: str, batch_size: int, tiny: Loaded, examples, request, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "stories260K":
        shared: Path = request.getfixturevalue("shared_data")
        loaded = load(shared / kind, device="cpu")
    elif kind == "eager":
        loaded = tiny
        loaded.model.set_attn_implementation("eager")
    else:
        loaded = request.getfixturevalue(kind)
    items = branching(loaded, examples)
    score(loaded, items, batch_size=batch_size)  # what the probes say of the model is remembered
    found, tokens = rows_seen(loaded, items, batch_size=batch_size)
    monkeypatch.setattr(module, "_takes_trees", lambda *_: False)
    alone, more = rows_seen(loaded, items, batch_size=1)
    if batch_size > 1:
        assert tokens < 0.8 * more
    for item, record, other in zip(items, found, alone, strict=True):
        assert record.nll_mean == pytest.approx(other.nll_mean, rel=1e-6)
        np.testing.assert_allclose(record.logprob, oracle(loaded, item)["logprob"], rtol=1e-5, atol=1e-5)
        for field in FIELDS:
            np.testing.assert_allclose(getattr(record, field), getattr(other, field), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["sliding", "alibi"])
def test_where_trees_do_not_fit_each_is_scored_alone(kind: str, examples, request) -> None:
    loaded: Loaded = request.getfixturevalue(kind)
    items = branching(loaded, examples)
    with module.evaluating(loaded.model):
        assert not module._takes_trees(loaded, plant(items, 256))
    for record, item in zip(score(loaded, items), items, strict=True):
        for field, expected in oracle(loaded, item).items():
            np.testing.assert_allclose(getattr(record, field), expected, rtol=1e-5, atol=1e-5)


def test_a_window_wider_than_all_sequences_is_none(sliding: Loaded, examples) -> None:
    items = [Encoded(item.ids[:8], 4) for item in branching(sliding, examples)]
    with torch.inference_mode():
        assert module._takes_trees(sliding, plant(items, 256))

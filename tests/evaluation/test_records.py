"""The scoring pass against full float64 logits, one sequence at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.data import Encoded, Encoder
from expunge.errors import DivergedError
from expunge.evaluation import records as module
from expunge.evaluation import score
from expunge.models import Loaded, load
from expunge.request import read_examples

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
    seen = []
    handle = tiny.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    got = score(tiny, [*items, *items[::-1], items[0]])
    handle.remove()
    assert sum(seen) == len(items)
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

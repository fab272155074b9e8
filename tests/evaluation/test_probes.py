"""Scoring at any batch size against each sequence alone, for layers that leak along a row; and the probes themselves."""

import random

import numpy as np
import pytest
import torch

from expunge.data import Encoded, packs
from expunge.data.tree import merge
from expunge.evaluation import records, score
from expunge.evaluation.probes import border, sharing, takes_trees
from expunge.models import Loaded
from tests.helpers.loading import random_model

LEAKY = ["lfm2", "qwen3_next", "qwen3_5_text", "jamba", "bamba", "falcon_h1", "nemotron_h", "zamba2", "granitemoehybrid",
         "minimax", "mamba", "mamba2", "rwkv", "recurrent_gemma", "mistral-window", "gpt_oss", "llama4_text"]  # fmt: skip


def alone(loaded: Loaded, item: Encoded) -> np.ndarray:
    """log p of each label from plain transformers, one unpadded sequence, in float64 from the logits on."""
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([item.ids])).logits[0, item.start - 1 : -1].double()
    return logits.log_softmax(-1)[torch.arange(len(item.labels)), torch.tensor(item.labels)].numpy()


def sharing_beginnings(vocabulary: int, number: int = 6) -> list[Encoded]:
    """Sequences of 8 to 50 tokens of which five each begin alike."""
    draw = random.Random(0)
    items = []
    for _ in range(number):
        beginning = draw.choices(range(2, vocabulary), k=draw.randint(6, 28))
        for _ in range(5):
            ids = beginning + draw.choices(range(2, vocabulary), k=draw.randint(2, 22))
            items.append(Encoded(tuple(ids), draw.randint(1, len(beginning))))
    return items


@pytest.mark.parametrize(
    "name", [*LEAKY, "llama", "mixtral", "roberta-decoder", "gpt_neo", "phi3-longrope", "bert", "mpt"]
)
def test_no_batch_size_changes_a_number(name: str) -> None:
    loaded = random_model(name)
    items = sharing_beginnings(len(loaded.tokenizer))
    expected = [alone(loaded, item) for item in items]
    for batch_size in (1, 8, 32):
        for record, numbers in zip(score(loaded, items, batch_size=batch_size), expected, strict=True):
            assert record.nll_sum == pytest.approx(-numbers.sum(), rel=1e-6)
            np.testing.assert_allclose(record.logprob, numbers, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("name", [*LEAKY, "llama", "olmoe"])
def test_no_leak_passes_the_probe_of_trees_at_any_length(name: str) -> None:
    loaded = random_model(name)
    run = records._runs(loaded)
    draw = random.Random(1)
    leaks = name not in ("llama", "olmoe")
    for length in range(18, 22):
        varied = tuple(draw.choices(range(2, len(loaded.tokenizer)), k=length))
        for ids in (varied, (5,) * length, (5, 6) * (length // 2), varied[:4] * (length // 4)):
            tree = merge([Encoded(ids, 3)])
            with torch.inference_mode():
                assert takes_trees([tree], *run, 1.2e-7) is not leaks, ids


def test_a_model_that_reads_padding_is_scored_by_equal_lengths_or_alone() -> None:
    """The statistics of a made-up model: a number that depends on the width of the batch, or on its first row."""
    items = [Encoded(tuple(range(2, 2 + length)), 1) for length in (4, 4, 7, 9)]

    def of_width(batch: list[Encoded]) -> torch.Tensor:
        return torch.full((4, sum(len(item.labels) for item in batch)), float(max(map(len, batch))))

    def of_first(batch: list[Encoded]) -> torch.Tensor:
        return torch.full((4, sum(len(item.labels) for item in batch)), float(batch[0].ids[-1]))

    def of_token(batch: list[Encoded]) -> torch.Tensor:
        return torch.tensor([[float(token) for item in batch for token in item.labels]] * 4)

    assert sharing(items, of_token, 1e-7) == "padded"
    assert sharing(items, of_token, 1e-7, pad_breaks=True) == "even"
    assert sharing(items, of_width, 1e-7) == "even"
    assert sharing(items, of_first, 1e-7) == "single"
    assert packs([4, 4, 7, 4, 9], 2, even=True) == [[4], [2], [0, 1], [3]]


def test_the_length_at_which_all_positions_change() -> None:
    assert border(random_model("phi3-longrope").model.config) == 24
    assert border(random_model("llama-dynamic").model.config) == 128
    assert border(random_model("llama").model.config) is None
    assert border(random_model("gpt2").model.config) is None

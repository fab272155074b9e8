"""Texts of every architecture: those of the definition, one token after another by whole passes without a cache."""

from pathlib import Path

import pytest
import torch

from expunge.data.benchmarks.fictional import build_tokenizer
from expunge.evaluation.generation import greedy
from expunge.models import Loaded
from tests.helpers.architectures import ARCHITECTURES, Architecture

UNBUILT = {"dbrx", "xlnet"}  # transformers itself fails on their tiny configurations
PROMPTS = ([3, 4, 5, 6, 7], [8, 9, 10], [3, 4, 5, 6, 7, 11, 12, 13, 14])
STEPS = 8


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(["Where was Ada Lome born? In Tarn, by the sea, they say so."] * 3, 300)


@torch.no_grad()
def by_definition(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(STEPS):
        token = int(model(input_ids=torch.tensor([ids]), use_cache=False, return_dict=True).logits[0, -1].argmax())
        if token == 1:  # the end-of-sequence token
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "architecture", [each for each in ARCHITECTURES if each.name not in UNBUILT], ids=lambda each: each.name
)
def test_greedy_texts_are_those_of_whole_passes(architecture: Architecture, tokenizer) -> None:
    model = architecture.build(len(tokenizer))
    loaded = Loaded(model, tokenizer, Path("model"))
    assert greedy(loaded, PROMPTS, STEPS) == [by_definition(model, prompt) for prompt in PROMPTS]

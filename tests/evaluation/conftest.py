"""Small models of kinds that differ in positions, attention and wrapping."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from expunge.models import Loaded, new_adapter


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

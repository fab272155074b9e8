"""Adapters put back to where they began, and which are refused."""

import copy

import peft
import pytest
import torch

from expunge.errors import ConfigurationError
from expunge.models import Loaded
from expunge.models.adapters import restart

KINDS = {
    "lora": peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    "dora": peft.LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "ia3": peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
}


def adapted(tiny: Loaded, settings: peft.PeftConfig) -> Loaded:
    base = copy.deepcopy(tiny.model)
    torch.manual_seed(3)
    return Loaded(peft.get_peft_model(base, copy.deepcopy(settings)), tiny.tokenizer, tiny.folder)


@pytest.mark.parametrize("kind", KINDS)
def test_restart_gives_every_bit_of_the_start(tiny, kind) -> None:
    loaded = adapted(tiny, KINDS[kind])
    start = {name: param.detach().clone() for name, param in loaded.model.named_parameters()}
    flags = {name: param.requires_grad for name, param in loaded.model.named_parameters()}
    with torch.no_grad():
        for param in loaded.model.parameters():
            if param.requires_grad:
                param.add_(torch.randn_like(param))
    restart(loaded, 3, "A test")
    now = dict(loaded.model.named_parameters())
    assert {name: param.requires_grad for name, param in now.items()} == flags
    assert all(torch.equal(now[name], value) for name, value in start.items())
    assert list(loaded.model.peft_config) == ["default"]


def test_a_start_that_changed_the_base_is_refused(tiny) -> None:
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM")
    with pytest.raises(ConfigurationError, match=r"cannot begin anew.*pissa.*also changed its base weights"):
        restart(adapted(tiny, settings), 0, "A test")
    with pytest.raises(ConfigurationError, match="is a full model"):
        restart(tiny, 0, "A test")

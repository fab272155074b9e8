"""LLMEraser on every kind of adapter, and those it does not know."""

import copy

import peft
import pytest
import torch

from expunge.data import Encoder
from expunge.errors import ConfigurationError
from expunge.gradients import Curvature
from expunge.methods import method
from expunge.methods.descent import mean_nll
from expunge.models import Loaded, new_adapter
from tests.methods.test_llmeraser import context, theta

KINDS = {
    "dora": peft.LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "ia3": peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
}


def trained(loaded: Loaded, settings: peft.PeftConfig) -> Loaded:
    torch.manual_seed(0)
    made = Loaded(peft.get_peft_model(copy.deepcopy(loaded.model), settings).eval(), loaded.tokenizer, loaded.folder)
    with torch.no_grad():
        for param in made.model.parameters():
            if param.requires_grad:
                param.add_(0.1 * torch.randn_like(param))
    return made


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated"
)  # transformers', in PEFT's prefix tuning
@pytest.mark.parametrize("kind", KINDS)
def test_other_adapters(tiny, small_request, kind) -> None:
    """Δ solves its system by an independent product: a difference of gradients (DoRA: the sound Gauss–Newton one)."""
    loaded = trained(tiny, KINDS[kind])
    encoder = Encoder(loaded.tokenizer)
    whole = encoder.examples((*small_request.forget, *small_request.retain))
    check = Curvature(loaded.model, whole, loaded.pad, "gauss_newton" if kind == "dora" else "difference")
    forget = Curvature(loaded.model, whole[:4], loaded.pad)
    b, before, nll = forget.gradient() * 0.4, theta(loaded), mean_nll(loaded, small_request.forget, encoder, 4)
    curvature = "gauss_newton" if kind == "dora" else "hessian"
    damping = 2.0 if kind == "dora" else 1.0
    products = {"curvature": curvature, "damping": damping, "tolerance": 1e-5}
    other = trained(tiny, KINDS[kind])
    method("llmeraser", products)(other, small_request, context(other))
    delta = theta(other) - before
    assert ((check(delta) + damping * delta - b).norm() / b.norm()).item() < 0.02
    assert mean_nll(other, small_request.forget, encoder, 4) > nll


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_adapters_that_do_not_fit_are_refused(tiny, small_request) -> None:
    def refused(loaded: Loaded, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            method("llmeraser")(loaded, small_request, context(loaded))

    refused(tiny, r"is a full model.*expunge finetune --lora 8")
    fresh = Loaded(copy.deepcopy(tiny.model), tiny.tokenizer, tiny.folder)
    refused(new_adapter(fresh, 1), r"has learned nothing yet.*leave --lora out")
    for name, settings in (
        ("P_TUNING", peft.PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=4, task_type="CAUSAL_LM")),
        ("with a projection", peft.PrefixTuningConfig(
            num_virtual_tokens=2, prefix_projection=True, encoder_hidden_size=4, task_type="CAUSAL_LM")),
        ("VERA", peft.VeraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")),
    ):  # fmt: skip
        refused(trained(tiny, settings), f"{name}.*LoRA, IA3, prompt tuning")
    refused(Loaded(new_adapter(tiny, 1).model.bfloat16(), tiny.tokenizer, tiny.folder), "is torch.bfloat16.*float32")

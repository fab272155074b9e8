"""Norms of per-example gradients against a loop over single examples in float64."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from expunge.data import Encoder, collate
from expunge.gradients.example_norms import gradient_norms
from expunge.models import Loaded, answers, new_adapter
from tests.conftest import build_model


def oracle(loaded: Loaded, items) -> tuple[list[float], list[float]]:
    """The norm of each whole gradient, and the mean of its tensors' norms."""
    model = copy.deepcopy(loaded.model).double()
    whole, mean = [], []
    for item in items:
        model.zero_grad()
        logits = model(torch.tensor([item.ids])).logits[0, item.start - 1 : -1]
        torch.nn.functional.cross_entropy(logits, torch.tensor(item.labels)).backward()
        grads = [param.grad for param in model.parameters() if param.requires_grad]
        norms = torch.stack([torch.tensor(0.0).double() if grad is None else grad.norm() for grad in grads])
        whole.append(float(norms.norm()))
        mean.append(float(norms.mean()))
    return whole, mean


def made(kind: str, tiny: Loaded) -> Loaded:
    if kind == "untied":
        return Loaded(build_model(len(tiny.tokenizer), seed=5, tied=False).eval(), tiny.tokenizer, tiny.folder)
    if kind == "gpt2":
        torch.manual_seed(3)
        config = GPT2Config(
            vocab_size=len(tiny.tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2,
            bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
        return Loaded(GPT2LMHeadModel(config).eval(), tiny.tokenizer, tiny.folder)
    if kind == "adapter":
        loaded = new_adapter(tiny, 2)
        with torch.no_grad():
            for name, parameter in loaded.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.5)
        return loaded
    return tiny


@pytest.mark.parametrize("kind", ["tied", "untied", "gpt2", "adapter"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_norms_equal_a_loop(kind: str, batch_size: int, tiny: Loaded, examples) -> None:
    loaded = made(kind, tiny)
    items = Encoder(loaded.tokenizer).examples(examples)
    whole, mean = oracle(loaded, items)
    found = gradient_norms(loaded.model, items, pad=loaded.pad, batch_size=batch_size)
    torch.testing.assert_close(found, torch.tensor(whole).double(), rtol=2e-5, atol=0)
    by_tensor = gradient_norms(loaded.model, items, pad=loaded.pad, batch_size=batch_size, per_tensor=True)
    torch.testing.assert_close(by_tensor, torch.tensor(mean).double(), rtol=2e-5, atol=0)
    assert all(param.grad is None for param in loaded.model.parameters())


def test_a_layer_of_an_unknown_kind_is_done_by_the_loop(tiny: Loaded, examples) -> None:
    class Own(torch.nn.Linear):
        pass

    layer = tiny.model.model.layers[0].mlp
    own = Own(layer.up_proj.in_features, layer.up_proj.out_features, bias=False)
    own.weight = layer.up_proj.weight
    layer.up_proj = own
    items = Encoder(tiny.tokenizer).examples(examples)[:2]
    found = gradient_norms(tiny.model, items, pad=tiny.pad)
    torch.testing.assert_close(found, torch.tensor(oracle(tiny, items)[0]).double(), rtol=2e-5, atol=0)


def test_long_rows_take_the_other_way(tiny: Loaded, examples) -> None:
    """Sequences longer than the layers are wide: the gradient itself is made."""
    one = Encoder(tiny.tokenizer).examples(examples)
    items = [type(one[0])(tuple(token for item in one for token in item.ids), 1)]
    assert len(items[0]) > 40
    found = gradient_norms(tiny.model, items, pad=tiny.pad)
    torch.testing.assert_close(found, torch.tensor(oracle(tiny, items)[0]).double(), rtol=2e-5, atol=0)
    assert answers(tiny.model, collate(items)).mean_nll.item() > 0

"""Per-example squares of each way against one example at a time in float64; nothing is left behind."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from expunge.data import Encoded
from expunge.errors import ConfigurationError, DivergedError
from expunge.gradients import Moments, moments
from tests.conftest import build_model
from tests.gradients.test_mean import texts
from tests.oracles import slow

ITEMS = texts(11)
EXACT = ("loop", "vmap", "layers")


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.1, bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    return randomised(GPT2LMHeadModel(config))


def qwen3() -> nn.Module:
    """Norms inside the attention, of shape [B, T, heads, d]."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, bos_token_id=0, eos_token_id=1, initializer_range=0.1,
    )  # fmt: skip
    return randomised(Qwen3ForCausalLM(config))


def lora(**settings: object) -> nn.Module:
    model = build_model(40)
    torch.manual_seed(1)
    config = LoraConfig(r=3, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=0.3, **settings)
    return randomised(get_peft_model(model, config))


def padded(tied: bool) -> nn.Module:
    """An embedding whose token 7, which stands in the texts, is the padding token: the embedding does not learn it."""
    model = build_model(40, tied=tied)
    model.model.embed_tokens.padding_idx = 7
    return model


def randomised(model: nn.Module) -> nn.Module:
    """Norms that are not 1, biases that are not 0, LoRA's B that is not 0."""
    for param in model.parameters():
        if param.requires_grad:
            param.data += 0.1 * torch.randn_like(param)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tied": lambda: build_model(40),
    "untied": lambda: build_model(40, tied=False),
    "gpt2": gpt2,
    "qwen3": qwen3,
    "lora": lora,
    "padded": lambda: padded(tied=False),
    "padded and tied": lambda: padded(tied=True),
}


def assert_near(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        assert tensor.dtype == torch.float32
        assert (tensor - expected[name]).norm() <= tolerance * expected[name].norm(), name


def assert_exact(got: Moments, model: nn.Module, items: list[Encoded]) -> None:
    mean, square = slow.moments(model, items)
    assert got.count == len(items)
    assert_near(got.mean, mean, 1e-5)
    assert_near(got.square, square, 1e-5)


@pytest.mark.parametrize("way", EXACT)
@pytest.mark.parametrize("kind", MODELS)
def test_each_way_equals_one_example_at_a_time(kind: str, way: str) -> None:
    model = MODELS[kind]()
    assert_exact(moments(model, ITEMS, pad=0, batch_size=4, way=way), model, ITEMS)


@pytest.mark.parametrize("way", EXACT)
def test_one_example(way: str) -> None:
    model = build_model(40)
    got = moments(model, ITEMS[:1], pad=0, way=way)
    assert_exact(got, model, ITEMS[:1])
    assert_near(got.square, {name: mean.double().square() for name, mean in got.mean.items()}, 1e-6)


@pytest.mark.parametrize("way", EXACT)
@pytest.mark.parametrize("size", [4, 16])
def test_the_batch_size_does_not_matter(size: int, way: str) -> None:
    model, items = build_model(40), texts(21)
    alone = moments(model, items, pad=0, batch_size=1, way=way)
    got = moments(model, items, pad=39, batch_size=size, way=way)
    assert_near(got.mean, alone.mean, 1e-6)
    assert_near(got.square, alone.square, 1e-5)


def test_large_layers_are_made_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expunge.gradients.layers.CPU_BLOCK", 200)  # of rows of 32: 6 at a time, of 40 or 64
    model = build_model(40)
    assert_exact(moments(model, ITEMS, pad=0, way="layers"), model, ITEMS)


def test_names_choose_the_parameters_even_frozen_ones() -> None:
    model = build_model(40)
    names = ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"]
    everything = moments(model, ITEMS, pad=0)
    model.requires_grad_(False)
    got = moments(model, ITEMS, pad=0, names=names)
    assert set(got.mean) == set(names)
    assert_near(got.square, {name: everything.square[name] for name in got.square}, 1e-6)
    assert not any(param.requires_grad for param in model.parameters())


@pytest.mark.parametrize("names", [["transformer.h.0.attn.c_attn.bias"], ["transformer.h.1.ln_1.weight"]])
def test_one_of_a_module_s_parameters(names: list[str]) -> None:
    model = gpt2()
    _, square = slow.moments(model, ITEMS)
    got = moments(model, ITEMS, pad=0, names=names, way="layers")
    assert_near(got.square, {name: square[name] for name in names}, 1e-5)


def test_bf16_weights_give_fp32_moments() -> None:
    model = build_model(40).bfloat16()
    for way in EXACT:
        got = moments(model, ITEMS, pad=0, way=way)
        _, square = slow.moments(model, ITEMS)  # of the same weights, computed in float64
        assert_near(got.square, square, 0.1)


@pytest.mark.parametrize("way", EXACT)
def test_a_parameter_out_of_reach_gets_zeros(way: str) -> None:
    model = build_model(40)
    model.extra = nn.Linear(2, 2)
    got = moments(model, ITEMS, pad=0, way=way)
    assert got.mean["extra.weight"].tolist() == got.square["extra.weight"].tolist() == [[0, 0], [0, 0]]
    assert got.square["model.norm.weight"].min() > 0


# What "layers" does not know


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def unknown_module() -> nn.Module:
    model = build_model(40)
    model.model.norm = nn.Sequential(model.model.norm, Scale())
    return model


def layer_run_twice() -> nn.Module:
    model = build_model(40)
    model.model.layers[1] = model.model.layers[0]
    model.config.use_cache = False  # a cache would take the second run for a continuation of the first
    return model


def used_elsewhere() -> nn.Module:
    model = build_model(40)

    def tilt(inner: nn.Module, _: object, out: BaseModelOutputWithPast) -> None:
        out.last_hidden_state = out.last_hidden_state + inner.norm.weight

    model.model.register_forward_hook(tilt)
    return model


def shared() -> nn.Module:
    model = build_model(40)
    model.model.layers[0].mlp.up_proj.weight = model.model.layers[0].mlp.gate_proj.weight
    return model


def fused_norm() -> nn.Module:
    model = build_model(40)
    model.model.norm = nn.RMSNorm(32)
    return model


STRANGE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "unknown module": (unknown_module, r"model\.norm\.1 is a Scale, which it does not know"),
    "fused norm": (fused_norm, r"model\.norm is a RMSNorm"),
    "run twice": (layer_run_twice, r"model\.layers\.0\.\S+ runs more than once"),
    "used elsewhere": (used_elsewhere, r"model\.norm\.weight is used by something other than the module"),
    "shared": (shared, r"gate_proj\.weight is shared by modules other than"),
    "dora": (lambda: lora(use_dora=True), r"lora_magnitude_vector\S* is a DoraLinearLayer"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_auto_falls_back_on_the_loop_and_layers_says_why(kind: str) -> None:
    build, why = STRANGE[kind]
    model = build()
    assert_exact(moments(model, ITEMS, pad=0, batch_size=4), model, ITEMS)
    before = state(model)
    with pytest.raises(ConfigurationError, match=why):
        moments(model, ITEMS, pad=0, way="layers")
    assert state(model) == before


# What is left as it was


def state(model: nn.Module) -> list[tuple[object, ...]]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [
        (name, module.training, "forward" in vars(module), [len(getattr(module, kind)) for kind in hooks])
        for name, module in model.named_modules()
    ]
    params = [(name, param.requires_grad, id(param), id(param.grad)) for name, param in model.named_parameters()]
    return [*modules, *params]


def mixed() -> LlamaForCausalLM:
    """Some modules training, some not; one parameter frozen, one with a gradient from before."""
    model = build_model(40).train()
    model.model.layers[0].eval()
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    model.model.norm.weight.grad = torch.full((32,), 3.0)
    return model


@pytest.mark.parametrize("way", EXACT)
def test_the_model_is_left_as_it_was(way: str) -> None:
    model = mixed()
    before = state(model)
    got = moments(model, ITEMS, pad=0, way=way)
    assert "model.layers.1.mlp.up_proj.weight" not in got.mean
    assert state(model) == before
    assert model.model.norm.weight.grad.eq(3).all()


@pytest.mark.parametrize("way", EXACT)
def test_the_model_is_left_as_it_was_after_a_failure(way: str) -> None:
    model = mixed()
    before = state(model)
    with pytest.raises(IndexError):
        moments(model, [*ITEMS, Encoded((3, 400), 1)], pad=0, way=way)  # a token the model does not have
    assert state(model) == before


@pytest.mark.parametrize("way", EXACT)
def test_a_gradient_that_is_not_finite_is_named(way: str) -> None:
    model = build_model(40)
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.inf
    told = []
    with pytest.raises(DivergedError, match=r"gradient of model\.\S+ is not finite"):
        moments(model, ITEMS, pad=0, batch_size=4, way=way, progress=told.append)
    assert told == []  # at the first pass


def test_progress_counts_examples() -> None:
    told = []
    moments(build_model(40), ITEMS, pad=0, batch_size=4, progress=told.append)
    assert told == [4, 8, 11]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"items": []}, "the set is empty"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"way": "fast"}, "way must be one of auto, layers, loop, vmap; got 'fast'"),
        ({"names": ["model.norm.weights"]}, r"no parameter 'model.norm.weights'. Did you mean model.norm.weight\?"),
        ({"names": []}, "no trainable parameters"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        moments(build_model(40), **{"items": ITEMS, "pad": 0, **settings})

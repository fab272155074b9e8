"""Curvature products: against dense matrices, against each other, and independent of batches, modes and dtypes."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from expunge.data import Encoded
from expunge.errors import ConfigurationError, DivergedError, ModelError
from expunge.gradients.hvp import Curvature, largest_eigenvalue, mean_eigenvalue, subset
from tests.conftest import build_model
from tests.oracles.curvature import dense_gauss_newton, dense_hessian

VOCABULARY = 40
LORA = LoraConfig(r=1, lora_alpha=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def make_items(count: int, seed: int = 0) -> list[Encoded]:
    draw = random.Random(seed)
    items = []
    for _ in range(count):
        start, answer = draw.randint(1, 5), draw.randint(1, 5)
        items.append(Encoded(tuple(draw.choices(range(2, VOCABULARY), k=start + answer)), start))
    return items


def make_adapter(config: PeftConfig = LORA, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> nn.Module:
    """A tiny Llama with an adapter whose entries are all away from where they start (LoRA's B at 0)."""
    base = build_model(VOCABULARY).to(dtype)
    base.set_attn_implementation(attention)
    model = get_peft_model(base, config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(0.3 * torch.randn_like(param))
    return model


def vector(curvature: Curvature, seed: int = 0) -> Tensor:
    return torch.randn(sum(curvature.sizes), generator=torch.Generator().manual_seed(seed))


def off(got: Tensor, expected: Tensor) -> float:
    """‖got − expected‖/‖expected‖"""
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.fixture(scope="module")
def items() -> list[Encoded]:
    return make_items(5)


@pytest.fixture(scope="module")
def dense(items: list[Encoded]) -> dict[str, Tensor]:
    model = make_adapter(attention="eager")
    return {"gauss_newton": dense_gauss_newton(model, items), "hessian": dense_hessian(model, items)}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["gauss_newton", "hessian"])
def test_product_equals_the_dense_matrix(items: list[Encoded], dense: dict[str, Tensor], kind, attention) -> None:
    curvature = Curvature(make_adapter(attention=attention), items, kind=kind)
    assert sum(curvature.sizes) == len(dense[kind]) == 224
    for seed in range(3):
        v = vector(curvature, seed)
        assert off(curvature(v), dense[kind] @ v.double()) < 1e-5


def test_the_two_dense_matrices_are_no_trivial_pair(dense: dict[str, Tensor]) -> None:
    assert off(dense["gauss_newton"], dense["hessian"]) > 0.1
    assert torch.linalg.eigvalsh(dense["hessian"])[0] < -1e-4


def test_gauss_newton_is_positive_semidefinite(items: list[Encoded]) -> None:
    curvature = Curvature(make_adapter(), items[:2])
    matrix = torch.stack([curvature(row) for row in torch.eye(sum(curvature.sizes))]).double()
    assert off(matrix, matrix.T) < 1e-5
    eigenvalues = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    assert eigenvalues[0] > -1e-6 * eigenvalues[-1]


def softmax_linear() -> LlamaForCausalLM:
    """A model of which the output layer alone is trained: logits W h are linear in θ = W [V, d]."""
    model = build_model(VOCABULARY, tied=False).eval()
    for name, param in model.named_parameters():
        param.requires_grad_(name == "lm_head.weight")
    return model


@pytest.mark.parametrize("kind", ["gauss_newton", "hessian", "difference"])
def test_softmax_regression_has_its_textbook_hessian(items: list[Encoded], kind) -> None:
    """H = mean over examples and tokens of (diag(p) − ppᵀ) ⊗ hhᵀ: no factor 2, and Gauss–Newton is exact."""
    model = softmax_linear()
    expected: Tensor | float = 0.0
    for item in items:
        out = model(torch.tensor([item.ids]), output_hidden_states=True)
        for place in range(item.start - 1, len(item) - 1):
            p, h = out.logits[0, place].detach().softmax(-1).double(), out.hidden_states[-1][0, place].detach().double()
            block = torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(h, h))
            expected = expected + block / len(item.labels) / len(items)
    curvature = Curvature(model, items, kind=kind)
    v = vector(curvature)
    assert off(curvature(v), expected @ v.double()) < (1e-3 if kind == "difference" else 1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_finite_differences_agree_with_the_exact_hessian(items: list[Encoded], seed) -> None:
    curvature = Curvature(make_adapter(), items, kind="hessian")
    before = curvature.flat(curvature.params)
    v = vector(curvature, seed)
    assert off(replace(curvature, kind="difference")(v), curvature(v)) < 2e-3
    assert torch.equal(curvature.flat(curvature.params), before)
    assert not replace(curvature, kind="difference")(torch.zeros_like(v)).any()


@pytest.mark.parametrize("kind", ["gauss_newton", "hessian", "difference"])
def test_batch_size_changes_nothing(kind) -> None:
    items = make_items(21)
    v = vector(Curvature(make_adapter(), items))
    one, *others = (Curvature(make_adapter(), items, kind=kind, batch_size=size)(v) for size in (1, 4, 16))
    for other in [*others, Curvature(make_adapter(), items, kind=kind, room=12)(v)]:
        assert off(other, one) < (1e-4 if kind == "difference" else 2e-6)


def test_indices_and_subset_mean_the_same_examples() -> None:
    items = make_items(6)
    curvature = Curvature(make_adapter(), items)
    v = vector(curvature)
    assert len(subset(curvature, [4, 1])) == 2
    assert off(subset(curvature, [4, 1])(v), curvature(v, [1, 4])) < 1e-6
    parts = torch.stack([curvature(v, [index]) for index in range(6)])
    assert off(parts.mean(0), curvature(v)) < 1e-6


@pytest.mark.parametrize("kind", ["gauss_newton", "hessian"])
def test_modes_and_flags_are_put_back_and_dropout_is_off(items: list[Encoded], kind) -> None:
    config = LoraConfig(r=1, lora_alpha=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, task_type="CAUSAL_LM")
    model, plain = make_adapter(config), make_adapter()
    model.train()
    model.base_model.model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    asked = [param.requires_grad for param in model.parameters()]
    enabled = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    curvature = Curvature(model, items, kind=kind)
    v = vector(curvature)
    with torch.no_grad():
        assert off(curvature(v), Curvature(plain, items, kind=kind)(v)) < 1e-6
    assert [module.training for module in model.modules()] == modes
    assert [param.requires_grad for param in model.parameters()] == asked
    assert all(param.grad is None for param in model.parameters())
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()) == enabled


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=["q_proj", "down_proj"], use_dora=True, task_type="CAUSAL_LM"),
        IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
        ),
    ],
    ids=["dora", "ia3"],
)
def test_other_adapters_whose_parameters_are_tensors(items: list[Encoded], config) -> None:
    model = make_adapter(config, attention="eager")
    v = vector(Curvature(model, items))
    assert off(Curvature(model, items)(v), dense_gauss_newton(model, items) @ v.double()) < 1e-5
    assert off(Curvature(model, items, kind="hessian")(v), dense_hessian(model, items) @ v.double()) < 1e-5


def test_a_bf16_base_with_an_fp32_adapter_gives_fp32_products(items: list[Encoded]) -> None:
    half = make_adapter(dtype=torch.bfloat16)
    rounded = make_adapter()
    for param, source in zip(rounded.parameters(), half.parameters(), strict=True):
        param.data.copy_(source.data)
    curvature = Curvature(half, items)
    assert {param.dtype for param in curvature.params.values()} == {torch.float32}
    v = vector(curvature)
    for kind in ("gauss_newton", "hessian"):
        got = replace(curvature, kind=kind)(v)
        assert got.dtype == torch.float32
        assert off(got, Curvature(rounded, items, kind=kind)(v)) < 0.05


def test_gradients_are_the_mean_and_the_examples_own(items: list[Encoded]) -> None:
    curvature = Curvature(make_adapter(), items)
    blocks = torch.cat(list(curvature.example_gradients()))
    for index, item in enumerate(items):
        labels = torch.tensor([[-100] * item.start + list(item.labels)])
        loss = curvature.model(torch.tensor([item.ids]), labels=labels).loss
        expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(curvature.params.values()))])
        assert off(blocks[index], expected) < 1e-5
    assert off(curvature.gradient(), blocks.mean(0)) < 1e-6


class Matrices:
    """An operator out of matrices H_i [n, p, p]."""

    def __init__(self, matrices: Tensor) -> None:
        self.matrices = matrices

    def __len__(self) -> int:
        return len(self.matrices)

    def __call__(self, v: Tensor, indices: Sequence[int] | None = None, /) -> Tensor:
        chosen = self.matrices if indices is None else self.matrices[list(indices)]
        return (chosen @ v).mean(0)


def test_mean_and_largest_eigenvalue() -> None:
    features = torch.randn(400, 12, 1, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 2, 12)[:, None]
    operator = Matrices(features @ features.mT)
    eigenvalues = torch.linalg.eigvalsh(operator.matrices.mean(0))
    assert mean_eigenvalue(operator, torch.zeros(12), chunk=4) == pytest.approx(eigenvalues.mean().item(), rel=0.1)
    assert largest_eigenvalue(operator, torch.zeros(12), iterations=30) == pytest.approx(
        eigenvalues[-1].item(), rel=0.01
    )
    negated = Matrices(-operator.matrices)
    assert largest_eigenvalue(negated, torch.zeros(12), iterations=30) == pytest.approx(
        eigenvalues[-1].item(), rel=0.01
    )
    assert largest_eigenvalue(Matrices(torch.zeros(2, 3, 3)), torch.zeros(3)) == 0
    diagonal = Matrices(torch.diag(torch.arange(1.0, 5.0))[None])
    assert mean_eigenvalue(diagonal, torch.zeros(4)) == pytest.approx(2.5)  # exact: the signs' squares are 1


def test_the_trace_of_a_real_model(items: list[Encoded], dense: dict[str, Tensor]) -> None:
    curvature = Curvature(make_adapter(), items)
    like = vector(curvature)
    draws = [mean_eigenvalue(curvature, like, chunk=1, seed=seed) for seed in range(12)]
    expected = dense["gauss_newton"].diagonal().mean().item()
    assert sum(draws) / len(draws) == pytest.approx(expected, rel=0.15)


def test_what_has_no_curvature_is_refused(items: list[Encoded]) -> None:
    frozen = build_model(VOCABULARY).requires_grad_(False)
    with pytest.raises(ModelError, match="no trainable parameter"):
        Curvature(frozen, items)(torch.zeros(3))
    curvature = Curvature(make_adapter(), items)
    with pytest.raises(ConfigurationError, match="224 entries"):
        curvature(torch.zeros(3))
    with pytest.raises(ConfigurationError, match="set is empty"):
        replace(curvature, items=[])(vector(curvature))
    curvature.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match=r"flash_attention_2.*'sdpa' or 'eager'"):
        curvature(vector(curvature))
    broken = make_adapter()
    with torch.no_grad():
        next(iter(Curvature(broken, items).params.values())).fill_(float("nan"))
    with pytest.raises(DivergedError, match="not finite"):
        Curvature(broken, items)(vector(curvature))

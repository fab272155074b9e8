"""LLMEraser against true leave-k-out retraining, on a regression with a closed form."""

from pathlib import Path

import peft
import torch

from expunge.data import Encoded, Encoder
from expunge.data.benchmarks.fictional import build_tokenizer
from expunge.methods import method
from expunge.models import Loaded
from expunge.request import Example, Request
from tests.conftest import build_model
from tests.methods.test_llmeraser import FIXED, context


def regression(seed: int = 0) -> tuple[Loaded, Request]:
    """LoRA on the output layer with A frozen: logits (W + B A)h are linear in B, a softmax regression of features A h.

    40 instances with noisy answers, and 20 more as `holdout`.
    """
    tokenizer = build_tokenizer(["goose clock boat bread town port ships baker 0123456789?"], 120)
    base = build_model(len(tokenizer), seed=seed, tied=False)
    model = peft.get_peft_model(base, peft.LoraConfig(r=3, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    loaded = Loaded(model.eval(), tokenizer, Path("none"))
    for name, param in loaded.model.named_parameters():
        param.requires_grad_("lora_B" in name)
    generator = torch.Generator().manual_seed(seed)
    words = ["goose", "clock", "boat", "bread", "town", "port", "ships", "baker"]

    def example(number: int) -> Example:
        drawn = torch.randint(len(words), (3,), generator=generator).tolist()
        answer = words[drawn[0] if torch.rand(1, generator=generator) < 0.7 else drawn[1]]
        prompt = f"{' '.join(words[index] for index in drawn)} {number}?"
        return Example(prompt=prompt, response=answer, id=str(number))

    made = [example(number) for number in range(60)]
    return loaded, Request(tuple(made[:1]), tuple(made[1:40]), tuple(made[40:]))


def features(loaded: Loaded, items: list[Encoded]) -> tuple[torch.Tensor, ...]:
    """Base logits [N, V], scaled features s·A h [N, r], labels [N] and weight of each token, one row a labelled token."""
    head = loaded.model.get_base_model().lm_head
    a = head.lora_A["default"].weight.double()
    base, x, labels, weights = [], [], [], []
    with torch.no_grad():
        for item in items:
            hidden = loaded.model.get_base_model().model(torch.tensor([item.ids])).last_hidden_state[0]
            hidden = hidden[item.start - 1 : -1].double()
            base.append(hidden @ head.base_layer.weight.double().T)
            x.append(head.scaling["default"] * hidden @ a.T)
            labels.append(torch.tensor(item.labels))
            weights.append(torch.full((len(item.labels),), 1 / len(item.labels)).double())
    return torch.cat(base), torch.cat(x), torch.cat(labels), torch.cat(weights)


def regress(loaded: Loaded, kept: list[Encoded], ridge: float, count: int) -> torch.Tensor:
    """argmin_B (1/n) Σ_kept l_i + ridge/2 ‖B‖², by L-BFGS in fp64: [V, r]."""
    base, x, labels, weights = features(loaded, kept)
    b = torch.zeros(base.shape[1], x.shape[1], dtype=torch.float64, requires_grad=True)
    search = {"max_iter": 300, "tolerance_grad": 1e-9, "tolerance_change": 1e-14, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([b], **search)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        nll = torch.nn.functional.cross_entropy(base + x @ b.T, labels, reduction="none")
        loss = (nll * weights).sum() / count + ridge / 2 * b.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return b.detach()


def item_losses(loaded: Loaded, items: list[Encoded], b: torch.Tensor) -> torch.Tensor:
    base, x, labels, weights = features(loaded, items)
    nll = torch.nn.functional.cross_entropy(base + x @ b.T, labels, reduction="none") * weights
    owner = torch.repeat_interleave(torch.arange(len(items)), torch.tensor([len(item.labels) for item in items]))
    return torch.zeros(len(items), dtype=torch.float64).index_add(0, owner, nll)


def test_ridge_softmax_regression_against_true_leave_k_out() -> None:
    """λ = the ridge: then Δ is the influence of the penalised optimum, and retraining without k of 40 is the truth."""
    loaded, request = regression()
    ridge, encoder = 0.02, Encoder(loaded.tokenizer)
    instances = (*request.forget, *request.retain)
    items, probes = encoder.examples(instances), encoder.examples(request.holdout)
    full = regress(loaded, items, ridge, 40)
    (param,) = (param for param in loaded.model.parameters() if param.requires_grad)
    actual, predicted, ratios = [], [], []
    for start in range(0, 40, 8):
        left_out = range(start, start + 4)
        with torch.no_grad():
            param.copy_(full)
        parts = [tuple(instances[i] for i in range(40) if (i in left_out) == inside) for inside in (True, False)]
        method("llmeraser", {**FIXED, "damping": ridge, "max_ratio": 10})(loaded, Request(*parts), context(loaded))
        kept = [items[i] for i in range(40) if i not in left_out]
        truth = regress(loaded, kept, ridge, 40)
        ratios.append(((param.detach().double() - full).norm() / (truth - full).norm()).item())
        measured = [*probes, *(items[i] for i in left_out)]
        before = item_losses(loaded, measured, full)
        actual.append(item_losses(loaded, measured, truth) - before)
        predicted.append(item_losses(loaded, measured, param.detach().double()) - before)
    both = torch.stack([torch.cat(actual), torch.cat(predicted)])
    assert torch.corrcoef(both)[0, 1] > 0.95
    assert 0.8 < sum(ratios) / len(ratios) < 1.2  # no factor 2

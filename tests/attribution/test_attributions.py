"""Every attribution against its formula, and the masks made of them."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from expunge.attribution import ATTRIBUTIONS, Attribution, View
from expunge.attribution.magnitude import Magnitude
from expunge.attribution.random import Random
from expunge.attribution.salun import SalUn
from expunge.attribution.snip import SNIP
from expunge.attribution.topk import top_k
from expunge.attribution.wagle import Wagle
from expunge.attribution.wanda import Wanda, input_norms
from expunge.config import build
from expunge.data import Encoded
from expunge.errors import ConfigurationError, DivergedError, RequestError
from expunge.losses import KL, NLL, NPO, Ascent, Refusal
from expunge.models import Loaded, new_adapter
from expunge.models.mask import Mask
from expunge.request import Example, Request
from tests.oracles import slow


@pytest.fixture
def view(tiny: Loaded, small_request: Request) -> View:
    return View(tiny, small_request, tiny.encoder(128))


def same(first: Mask, second: Mask) -> bool:
    assert first.shapes == second.shapes
    return all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


class Bigram(nn.Module):
    """The next token from the last one alone, p = softmax(W e): every gradient is known in closed form."""

    def __init__(self, vocabulary: int = 7, width: int = 3) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(vocabulary, width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.embed(input_ids)))


class Digits:
    """An encoder that reads "123" as the tokens 1, 2, 3, all but the first of them labelled."""

    def example(self, example: Example) -> Encoded:
        return Encoded(tuple(map(int, example.response)), 1)


def by_hand(model: Bigram, texts: list[str]) -> dict[str, np.ndarray]:
    """Mean over texts of the gradient of the mean NLL per token: Σ (p − y) eᵀ for W, Σ Wᵀ(p − y) for e."""
    weight, embed = (value.detach().double().numpy() for value in (model.head.weight, model.embed.weight))
    found = {"embed.weight": np.zeros_like(embed), "head.weight": np.zeros_like(weight)}
    for text in texts:
        ids = list(map(int, text))
        for seen, label in pairwise(ids):
            odds = np.exp(weight @ embed[seen])
            slope = odds / odds.sum()
            slope[label] -= 1
            share = 1 / ((len(ids) - 1) * len(texts))
            found["head.weight"] += share * np.outer(slope, embed[seen])
            found["embed.weight"][seen] += share * weight.T @ slope
    return found


FORGET, RETAIN = ["1234", "25", "3123456"], ["1111", "54", "235"]


@pytest.fixture
def bigram() -> View:
    request = Request(*(tuple(Example(prompt="", response=text) for text in texts) for texts in (FORGET, RETAIN)))
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=0)
    return View(Loaded(Bigram(), tokenizer, Path("nowhere")), request, Digits())  # type: ignore[arg-type]


@pytest.mark.parametrize("gamma", [1e-6, 0.05, 3.0, 1e6])
def test_wagle_by_hand(bigram, gamma) -> None:
    forget, retain = by_hand(bigram.loaded.model, FORGET), by_hand(bigram.loaded.model, RETAIN)
    attribution = Wagle(gamma=gamma, ratio=0.3)
    scores, expected = attribution.scores(bigram), {}
    for name, param in bigram.params.items():
        theta = param.detach().double().numpy()
        expected[name] = np.abs((theta - retain[name] / gamma) * forget[name])
        np.testing.assert_allclose(scores(name).numpy(), expected[name], rtol=2e-5, atol=1e-6 * expected[name].max())
    flat = np.concatenate([value.ravel() for value in expected.values()])
    kept = np.sort(flat)[::-1][round(0.3 * len(flat)) - 1]
    mask = attribution.mask(bigram)
    for name, value in expected.items():
        assert (mask[name].numpy() == (value >= kept)).all()


def test_the_other_scores_by_hand(bigram) -> None:
    forget = by_hand(bigram.loaded.model, FORGET)
    for name, param in bigram.params.items():
        theta = param.detach().double().numpy()
        for attribution, expected in ((SalUn(), forget[name]), (SNIP(), theta * forget[name]), (Magnitude(), theta)):
            np.testing.assert_allclose(attribution.scores(bigram)(name).numpy(), abs(expected), rtol=1e-5, atol=1e-8)


def test_automatic_gamma(bigram) -> None:
    retain = by_hand(bigram.loaded.model, RETAIN)
    norms = [
        math.sqrt(sum(float((value**2).sum()) for value in values))
        for values in (retain.values(), [param.detach().double().numpy() for param in bigram.params.values()])
    ]
    assert Wagle(gamma="auto").mask(bigram).info["gamma"] == pytest.approx(norms[0] / norms[1], rel=1e-5)
    summed = Wagle(gamma="auto", reduction="sum")
    assert summed.damping(bigram) == pytest.approx(3 * norms[0] / norms[1], rel=1e-5)
    assert same(summed.mask(bigram), Wagle(gamma="auto").mask(bigram))


@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.95])
def test_limits_of_gamma(view, ratio) -> None:
    assert same(Wagle(gamma=2.0**100, ratio=ratio).mask(view), SNIP(ratio=ratio).mask(view))
    forget, retain = view.gradient("forget"), view.gradient("retain", 4)
    shapes = {name: tuple(param.shape) for name, param in view.params.items()}
    small = Wagle(gamma=2.0**-100, ratio=ratio).mask(view)
    product = top_k(lambda name: (retain[name] * forget[name]).abs(), shapes, sum(small.kept.values()))  # type: ignore[arg-type]
    assert all(torch.equal(small.tensors[name], product[name]) for name in shapes)


def test_sums_are_means_with_another_gamma(view) -> None:
    summed = Wagle(gamma=0.02, reduction="sum", ratio=0.6)  # 4 examples on each side
    assert same(summed.mask(view), Wagle(gamma=0.005, ratio=0.6).mask(view))
    assert not same(summed.mask(view), Wagle(gamma=0.02, ratio=0.6).mask(view))


@pytest.mark.parametrize("attribution", [Wagle(ratio=0.8), SNIP(ratio=0.5), SalUn(ratio=0.9)])
def test_ascent_and_npo_share_a_mask_and_refusal_does_not(view, attribution) -> None:
    plain = attribution.mask(view)
    for loss in (Ascent(), NPO(reduction="mean")):
        assert same(plain, attribution.mask(replace(view, loss=loss)))
    assert not same(plain, attribution.mask(replace(view, loss=Refusal())))


def test_gradient_of_npo_against_two_models(view, tiny, small_request) -> None:
    model = slow.double(tiny.model)
    reference = slow.double(tiny.model)
    items = view.encoder.examples(small_request.forget)
    losses = []
    for item in items:
        ratio = slow.token_nll(reference, item).sum().detach() - slow.token_nll(model, item).sum()
        losses.append(-20 * slow.log_sigmoid(-0.1 * ratio))
    expected = slow.gradients(model, torch.stack(losses).mean())
    got = torch.cat([g.flatten() for g in replace(view, loss=NPO()).gradient("forget").values()])
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_a_loss_without_slope_is_refused(view) -> None:
    with pytest.raises(ConfigurationError, match="its gradient is 0"):
        SNIP().mask(replace(view, loss=KL()))


@pytest.mark.parametrize("name", ["wagle", "snip", "wanda", "salun"])
def test_batches_change_no_score(view, name) -> None:
    attribution = build(ATTRIBUTIONS[name], {})
    whole = attribution.scores(view)
    for batch_size in (1, 3):
        other = attribution.scores(replace(view, batch_size=batch_size))
        for param in attribution.eligible(view):
            scale = float(whole(param).max())
            torch.testing.assert_close(other(param), whole(param), rtol=1e-4, atol=1e-5 * scale)


def test_wanda_by_hand(view, tiny) -> None:
    inner, squares = tiny.model.model, {"model.embed_tokens.weight": 0.0, "model.layers.0.self_attn.q_proj.weight": 0.0}
    with torch.no_grad():
        for item in view.encoder.examples(view.request.forget):  # one at a time: nothing is padded
            ids = torch.tensor([item.ids])
            first = inner.layers[0].input_layernorm(inner.embed_tokens(ids))[0]
            for name, found in zip(squares, (inner(ids).last_hidden_state[0], first), strict=True):
                squares[name] += found.double().square().sum(0)
    norms = input_norms(view)
    scores, mask = Wanda().scores(view), Wanda(ratio=0.4).mask(view)
    for name, square in squares.items():
        torch.testing.assert_close(norms[name].double(), square.sqrt(), rtol=1e-5, atol=0)
        weight = view.params[name].detach().double()
        expected = weight.abs() * square.sqrt()
        torch.testing.assert_close(scores(name).double(), expected, rtol=1e-5, atol=0)
        least = expected.sort(dim=1, descending=True).values[:, 12, None]  # 13 of 32 inputs
        assert torch.equal(mask[name], expected >= least)


def test_wanda_leaves_what_is_no_linear_layer(view) -> None:
    mask = Wanda(ratio=0.5).mask(view)
    linear = {name for name, kept in mask.kept.items() if kept}
    assert linear == {name for name in view.params if "proj" in name or "embed" in name}  # tied to the output layer
    for name in linear:
        assert (mask[name].sum(1) == view.params[name].shape[1] // 2).all()


def test_wanda_on_transposed_layers(view, tiny) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tiny.tokenizer), n_positions=64, n_embd=8, n_layer=1, n_head=2)
    view = replace(view, loaded=Loaded(GPT2LMHeadModel(config).eval(), tiny.tokenizer, Path("nowhere")))
    inner, name, squares = view.loaded.model.transformer, "transformer.h.0.attn.c_attn.weight", 0.0  # type: ignore
    for item in view.encoder.examples(view.request.forget):
        hidden = inner.wte(torch.tensor(item.ids)) + inner.wpe(torch.arange(len(item)))
        squares += inner.h[0].ln_1(hidden).detach().double().square().sum(0)
    expected = view.params[name].detach().double().abs() * squares.sqrt()[:, None]  # [in, out]
    torch.testing.assert_close(Wanda().scores(view)(name).double(), expected, rtol=1e-5, atol=0)
    assert torch.equal(Wanda(ratio=0.25).mask(view)[name], expected >= expected.sort(0, descending=True).values[1])


def test_random_is_drawn_by_the_seed(view) -> None:
    first = Random(ratio=0.3).mask(view)
    assert same(first, Random(ratio=0.3).mask(replace(view)))
    other = Random(ratio=0.3).mask(replace(view, seed=1))
    both = sum(int((first[name] & other[name]).sum()) for name in first.shapes)
    assert both / first.entries == pytest.approx(0.09, abs=0.01)
    assert not torch.equal(first["model.layers.0.mlp.up_proj.weight"], first["model.layers.1.mlp.up_proj.weight"])


@dataclass(frozen=True, kw_only=True)
class Flat(Attribution):
    """The same score for every weight."""

    def scores(self, view: View):
        return lambda name: torch.zeros(view.params[name].shape)


@pytest.mark.parametrize("kind", [Flat, Random, Magnitude])
@pytest.mark.parametrize("ratio", [1e-9, 0.123, 0.5, 0.95, 1.0])
def test_exact_ratio_in_every_scope(view, kind, ratio) -> None:
    sizes = {name: param.numel() for name, param in view.params.items()}

    def wanted(chosen: list[str]) -> int:
        return max(1, round(ratio * sum(sizes[name] for name in chosen)))

    whole = kind(ratio=ratio).mask(view)
    assert sum(whole.kept.values()) == wanted(list(sizes))
    single = kind(ratio=ratio, scope="tensor").mask(view)
    assert all(single.kept[name] == wanted([name]) for name in sizes)
    layers = kind(ratio=ratio, scope="layer").mask(view)
    for layer in ("layers.0.", "layers.1."):
        inside = [name for name in sizes if layer in name]
        assert len(inside) == 9
        assert sum(layers.kept[name] for name in inside) == wanted(inside)
    assert layers.kept["model.norm.weight"] == wanted(["model.norm.weight"])


def test_ties_keep_the_first_weights_of_the_model(view) -> None:
    mask = Flat(ratio=0.5).mask(view)
    flat = torch.cat([mask[name].flatten() for name in view.params])
    kept = round(0.5 * len(flat))
    assert flat[:kept].all()
    assert not flat[kept:].any()


def test_exclusions_are_frozen_and_do_not_count(view) -> None:
    mask = Random(ratio=0.25, exclude=("*embed_tokens*", "*norm*")).mask(view)
    left = [name for name in view.params if "proj" in name]
    assert sum(mask.kept.values()) == round(0.25 * sum(view.params[name].numel() for name in left))
    assert all(mask.kept[name] == 0 for name in view.params if name not in left)
    assert set(mask.shapes) == set(view.params)
    assert Random(exclude="*norm*").exclude == ("*norm*",)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="nothing to rank"):
        Random(exclude=("*",)).mask(view)
    with pytest.raises(ConfigurationError, match="nothing to rank"):
        Wanda(exclude=("*proj*", "*embed*")).mask(view)


def test_an_adapter_has_a_mask_of_its_own(view, tiny) -> None:
    adapter = replace(view, loaded=new_adapter(tiny, 2))
    for name, kind in ATTRIBUTIONS.items():
        if name == "file":
            continue
        mask = kind(ratio=0.5).mask(adapter)
        assert all("lora_" in name for name in mask.shapes)
        assert mask.entries == sum(param.numel() for param in adapter.params.values())
    kept = Wagle(ratio=0.5).mask(adapter).kept  # with B = 0 no gradient reaches A
    assert sum(kept[name] for name in kept if "lora_B" in name) == sum(
        param.numel() for name, param in adapter.params.items() if "lora_B" in name
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ratio": 0}, "wagle.ratio = 0 .*greater than 0"),
        ({"ratio": 1.01}, "wagle.ratio = 1.01 .*less than or equal to 1"),
        ({"ratio": float("nan")}, "wagle.ratio"),
        ({"gamma": 0}, "wagle.gamma = 0 .*greater than 0"),
        ({"gamma": -1e-6}, "wagle.gamma .*greater than 0"),
        ({"gamma": "tofoo"}, "none of tofu, wmdp, whp, detox, auto"),
        ({"scope": "row"}, "wagle.scope"),
        ({"retain_examples": 0}, "wagle.retain_examples"),
        ({"gama": 1}, "Did you mean 'gamma'"),
    ],
)
def test_settings_that_do_not_fit(settings, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        build(Wagle, settings)


def test_no_retain_set(view, small_request) -> None:
    alone = replace(view, request=Request(small_request.forget))
    with pytest.raises(RequestError, match="retain set is empty: give --retain"):
        Wagle().mask(alone)
    assert same(SNIP().mask(alone), SNIP().mask(view))


def test_retain_examples_are_as_many_as_forget_ones(view) -> None:
    assert len(view.chosen("retain", 4)) == 4
    assert view.chosen("retain", 4) == replace(view).chosen("retain", 4)
    assert len({tuple(replace(view, seed=seed).chosen("retain", 4)) for seed in range(10)}) > 3
    counts = {"match": 4, "all": 6, 5: 5, 50: 6}
    for given, used in counts.items():
        assert Wagle(retain_examples=given).mask(view).info["retain_examples"] == used  # type: ignore[arg-type]


def test_numbers_that_are_not_finite_are_named(view, tiny) -> None:
    with pytest.raises(DivergedError, match=r"scores of model\.\S+ are not finite.*gamma"):
        Wagle(gamma=1e-44).mask(view)
    with torch.no_grad():
        tiny.model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    for attribution in (Wagle(), SNIP()):
        with pytest.raises(DivergedError, match=r"gradient of \S+ is not finite"):
            attribution.mask(replace(view))
    for attribution in (Magnitude(), Wanda()):
        with pytest.raises(DivergedError, match=r"scores of \S+ are not finite"):
            attribution.mask(replace(view))


def test_info_says_how_a_mask_was_made(view, tiny) -> None:
    info = Wagle(ratio=0.9).mask(replace(view, loss=NPO(beta=0.2), seed=3)).info
    assert info["attribution"] == "Wagle"
    assert info["settings"]["ratio"] == 0.9
    assert info["gamma"] == 1e-6
    assert info["forget_loss"] == "NPO(beta=0.2, reduction='sum')"
    assert (info["forget_examples"], info["retain_examples"], info["seed"]) == (4, 4, 3)
    assert len(info["model"]) == 64


def test_progress_is_told(view) -> None:
    heard = []
    Wagle().mask(replace(view, batch_size=2, progress=lambda *words: heard.append(words)))
    assert heard == [(f"{side} gradient", done, 4) for side in ("forget", "retain") for done in (2, 4)]


def test_gradients_are_of_the_model_in_evaluation_mode(view, tiny) -> None:
    assert view.loss == NLL()
    plain = view.gradient("forget")
    tiny.model.train()
    again = replace(view).gradient("forget")
    assert all(torch.equal(plain[name], again[name]) for name in plain)

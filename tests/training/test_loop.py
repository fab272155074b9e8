"""The step loop against float64 autograd, against itself cut in pieces, and against things going wrong."""

import copy
import math

import pytest
import torch

from expunge.data import Encoder
from expunge.errors import ConfigurationError, DivergedError
from expunge.losses import NLL, NPO, Ascent
from expunge.models import Loaded
from expunge.training import (
    Constant,
    GeN,
    Linear,
    LossNormalised,
    NormalizedDifference,
    Plan,
    Scalarisation,
    Side,
    WeightedSum,
    descend,
)
from expunge.training import checkpoint as checkpoints
from expunge.training.sampling import Stream
from tests.oracles import slow


def sides(loaded: Loaded, request, forget=None, retain=None) -> dict[str, Side]:
    encoder = Encoder(loaded.tokenizer)
    return {
        "forget": Side.of(forget or Ascent(), request.forget, encoder),
        "retain": Side.of(retain or NLL(), request.retain, encoder),
    }


def plan(**changes) -> Plan:
    given = {"steps": 1, "combine": WeightedSum(), "rate": Constant(), "optimizer": "sgd", "lr": 0.1, "batch_size": 4}
    return Plan(**(given | changes))


def clone(loaded: Loaded) -> Loaded:
    return Loaded(copy.deepcopy(loaded.model), loaded.tokenizer, loaded.folder)


def drawn(request, step: int, size: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """The indices a step sees, as the loop's streams draw them."""
    forget = Stream(len(request.forget), 2 * seed).batch(step, size)
    return forget, Stream(len(request.retain), 2 * seed + 1).batch(step, size)


def exact(loaded: Loaded, request, size: int):
    """Model, g_F = ∇L_F and g_R = ∇L_R of the first step in float64, one example at a time."""
    model, encoder = slow.double(loaded.model), Encoder(loaded.tokenizer)
    gradients = []
    for examples, indices in zip((request.forget, request.retain), drawn(request, 0, size), strict=True):
        items = [encoder.example(examples[index]) for index in indices]
        gradients.append(slow.gradients(model, slow.mean_over(model, items)))
    return model, *gradients


def relative(got, want) -> float:
    return ((got - want).norm() / want.norm()).item()


def test_ngdiff_direction_and_norms_equal_float64_autograd(tiny, small_request) -> None:
    _, g_f, g_r = exact(tiny, small_request, 3)
    before = slow.flat(tiny.model)
    history = descend(tiny, plan(combine=NormalizedDifference(), batch_size=3), **sides(tiny, small_request))
    moved = (before - slow.flat(tiny.model)) / 0.1
    assert relative(moved, g_r / g_r.norm() - g_f / g_f.norm()) <= 1e-5
    assert history.log[0]["forget_norm"] == pytest.approx(g_f.norm().item(), rel=1e-5)
    assert history.log[0]["retain_norm"] == pytest.approx(g_r.norm().item(), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("probes", [3, 5])
def test_gen_rate_equals_float64(tiny, small_request, probes, optimizer) -> None:
    model, g_f, g_r = exact(tiny, small_request, 4)
    g = g_r / g_r.norm() - g_f / g_f.norm()
    d = g if optimizer == "sgd" else g / (g.abs() + 1e-8)  # Adam's first step
    eta, rate = 0.02 if optimizer == "sgd" else 1e-3, GeN(probes=probes, probe_size=6, smoothing=0, clip=1e6)
    items = Encoder(tiny.tokenizer).examples(small_request.retain)
    base = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    losses = []
    for k in rate.offsets:
        torch.nn.utils.vector_to_parameters(base + k * eta * d, model.parameters())
        losses.append(slow.mean_over(model, items).item())
    fit = rate.fit(losses, eta)
    told = plan(combine=NormalizedDifference(), rate=rate, lr=eta, optimizer=optimizer)
    probe = descend(tiny, told, **sides(tiny, small_request)).log[0]["probe"]
    assert probe["losses"] == pytest.approx(losses, rel=1e-5)
    assert probe["slope"] == pytest.approx(fit.slope, rel=1e-3)
    assert probe["accepted"] == fit.accepted
    # A second difference of fp32 losses of size 5 knows η* to about 1e-7 · 5 / (curvature · η²).
    noise = 2e-6 / abs(fit.curvature * eta**2)
    assert probe["best"] == pytest.approx(fit.best, rel=max(1e-3, noise))


def test_probing_moves_neither_weights_nor_moments(tiny, small_request) -> None:
    """A probed step with a rate held in place equals a plain one bit for bit."""
    other = clone(tiny)
    frozen = GeN(every=1, clip=1.0000001, smoothing=0.999999999)
    told = {"combine": NormalizedDifference(), "optimizer": "adamw", "lr": 2**-10, "steps": 3, "weight_decay": 0.1}
    probed = descend(tiny, plan(rate=frozen, **told), **sides(tiny, small_request))
    plain = descend(other, plan(**told), **sides(other, small_request))
    assert [entry["lr"] for entry in probed.log] == pytest.approx([entry["lr"] for entry in plain.log], rel=1e-6)
    for one, two in zip(tiny.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-8)


COMBINATIONS = [WeightedSum(0.3, 0.8), Scalarisation(0.9), LossNormalised(), NormalizedDifference()]


@pytest.mark.parametrize("combine", COMBINATIONS, ids=lambda combine: type(combine).__name__)
def test_step_equals_the_combination_of_exact_gradients(tiny, small_request, combine) -> None:
    model, g_f, g_r = exact(tiny, small_request, 4)
    encoder = Encoder(tiny.tokenizer)
    chosen = drawn(small_request, 0, 4)
    l_f = slow.mean_over(model, [encoder.example(small_request.forget[index]) for index in chosen[0]]).item()
    l_r = slow.mean_over(model, [encoder.example(small_request.retain[index]) for index in chosen[1]]).item()
    match combine:
        case WeightedSum(gamma=gamma, alpha=alpha):
            want = alpha * g_r - gamma * g_f
        case Scalarisation(c=c):
            want = c * g_r - (1 - c) * g_f
        case LossNormalised():
            want = g_r / l_r - g_f / l_f
        case _:
            want = g_r / g_r.norm() - g_f / g_f.norm()
    before = slow.flat(tiny.model)
    descend(tiny, plan(combine=combine), **sides(tiny, small_request))
    assert relative((before - slow.flat(tiny.model)) / 0.1, want) <= 1e-5


@pytest.mark.parametrize("combine", [WeightedSum(), NormalizedDifference()], ids=["fused", "separate"])
@pytest.mark.parametrize("forget", [Ascent(), NPO()], ids=["ascent", "npo"])
def test_accumulation_equals_one_large_batch(tiny, small_request, combine, forget) -> None:
    other = clone(tiny)
    told = {"combine": combine, "steps": 3, "lr": 0.02}
    whole = descend(tiny, plan(batch_size=4, **told), **sides(tiny, small_request, forget))
    parts = descend(other, plan(batch_size=1, accumulation=4, **told), **sides(other, small_request, forget))
    assert relative(slow.flat(tiny.model), slow.flat(other.model)) <= 1e-6
    assert whole.log[-1]["forget_loss"] == pytest.approx(parts.log[-1]["forget_loss"], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tiny, small_request, tmp_path, optimizer) -> None:
    other, fresh = clone(tiny), clone(tiny)
    told = {"combine": NormalizedDifference(), "rate": GeN(every=2), "optimizer": optimizer}
    told |= {"steps": 6, "lr": 1e-3, "checkpoint_every": 3}
    whole = descend(tiny, plan(**told), **sides(tiny, small_request))
    folder = tmp_path / "run.checkpoint"

    def interrupt(entry, steps) -> None:
        if entry["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        descend(other, plan(**told), **sides(other, small_request), folder=folder, progress=interrupt)
    assert checkpoints.step(folder) == 3
    with pytest.raises(ConfigurationError, match="What differs: weights"):  # another model than the run began with
        descend(clone(other), plan(**told), **sides(other, small_request), folder=folder, resume=True)
    resumed = descend(fresh, plan(**told), **sides(fresh, small_request), folder=folder, resume=True)
    assert [entry["step"] for entry in resumed.log] == list(range(6))
    assert resumed.log[-1]["lr"] == whole.log[-1]["lr"]
    for one, two in zip(tiny.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_resume_refuses_other_settings_and_no_checkpoint(tiny, small_request, tmp_path) -> None:
    folder = tmp_path / "run.checkpoint"
    with pytest.raises(ConfigurationError, match="no checkpoint"):
        descend(tiny, plan(), **sides(tiny, small_request), folder=folder, resume=True)
    fresh = clone(tiny)
    descend(tiny, plan(steps=2, checkpoint_every=1), **sides(tiny, small_request), folder=folder)
    with pytest.raises(ConfigurationError, match=r"What differs: lr \(0.1 then, 0.5 now\)\."):
        descend(fresh, plan(steps=2, lr=0.5), **sides(fresh, small_request), folder=folder, resume=True)


def test_same_seed_same_bits(tiny, small_request) -> None:
    other = clone(tiny)
    told = plan(steps=4, combine=NormalizedDifference(), rate=GeN(every=2), seed=5, batch_size=2)
    descend(tiny, told, **sides(tiny, small_request))
    descend(other, told, **sides(other, small_request))
    for one, two in zip(tiny.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_stop_rules(tiny, small_request) -> None:
    start = [clone(tiny) for _ in range(3)]
    history = descend(start[0], plan(steps=50, stop_forget_nll=7.0), **sides(tiny, small_request))
    assert "forget NLL" in history.stopped
    assert history.steps < 50
    assert history.log[-1]["forget_nll"] >= 7.0
    assert all(entry["forget_nll"] < 7.0 for entry in history.log[:-1])
    told = plan(steps=50, lr=1.0, combine=WeightedSum(alpha=0.0), stop_retain_rise=0.5)
    assert "rose more than" in descend(start[1], told, **sides(tiny, small_request)).stopped
    told = plan(steps=5, stop_retain_nll=1e-3)
    assert "exceeded" in descend(start[2], told, **sides(tiny, small_request)).stopped


def test_stopping_leaves_the_weights_that_were_measured(tiny, small_request) -> None:
    before = slow.flat(tiny.model)
    descend(tiny, plan(stop_forget_nll=0.1), **sides(tiny, small_request))
    assert torch.equal(slow.flat(tiny.model), before)


def test_a_loss_that_is_not_finite_stops_and_says_where(tiny, small_request, tmp_path) -> None:
    folder = tmp_path / "run.checkpoint"
    told = plan(steps=50, lr=1e30, checkpoint_every=1)
    with pytest.raises(
        DivergedError, match=r"Step 1: the .* (is nan|not finite)\. The last good state is the checkpoint"
    ):
        descend(tiny, told, **sides(tiny, small_request), folder=folder)
    assert checkpoints.exists(folder)


def test_a_gradient_that_is_not_finite_names_the_parameter(tiny, small_request) -> None:
    weight = tiny.model.model.layers[1].mlp.up_proj.weight
    handle = weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergedError, match=r"gradient of model\.layers\.1\.mlp\.up_proj\.weight"):
        descend(tiny, plan(), **sides(tiny, small_request))
    handle.remove()


def test_a_gradient_of_zero_skips_the_step(tiny, small_request) -> None:
    for param in tiny.model.parameters():
        param.register_hook(torch.zeros_like)
    before = slow.flat(tiny.model)
    history = descend(tiny, plan(combine=NormalizedDifference()), **sides(tiny, small_request))
    assert history.log[0]["skipped"]
    assert torch.equal(slow.flat(tiny.model), before)


def test_norms_need_both_sides(tiny, small_request) -> None:
    only = sides(tiny, small_request)["forget"]
    with pytest.raises(ConfigurationError, match="needs a forget and a retain set"):
        descend(tiny, plan(combine=NormalizedDifference()), forget=only)


def test_adamw_step_equals_torch(tiny, small_request) -> None:
    other = clone(tiny)
    told = plan(steps=3, optimizer="adamw", lr=1e-3, weight_decay=0.1, rate=Linear(warmup=0.5), max_grad_norm=0.5)
    descend(tiny, told, **sides(tiny, small_request))
    encoder = Encoder(other.tokenizer)
    optimizer = torch.optim.AdamW(other.model.parameters(), lr=1e-3, weight_decay=0.1, foreach=False)
    for step in range(3):
        forget, retain = drawn(small_request, step, 4)
        loss = slow.mean_over(other.model, [encoder.example(small_request.retain[index]) for index in retain])
        loss = loss - slow.mean_over(other.model, [encoder.example(small_request.forget[index]) for index in forget])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other.model.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = 1e-3 * Linear(warmup=0.5).at(step, 3)
        optimizer.step()
    assert relative(slow.flat(tiny.model), slow.flat(other.model)) <= 1e-5


def test_bf16_updates_fp32_master_weights(tiny, small_request) -> None:
    """A step far below bf16's resolution still moves the weights."""
    before = slow.flat(tiny.model)
    descend(tiny, plan(precision="bf16", lr=1e-6), **sides(tiny, small_request))
    assert all(param.dtype == torch.float32 for param in tiny.model.parameters())
    moved = slow.flat(tiny.model) - before
    assert (moved != 0).double().mean() > 0.5
    other_forward = tiny.model(torch.tensor([[5, 6]])).logits
    assert other_forward.dtype == torch.float32  # autocast ended with the loop

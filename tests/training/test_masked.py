"""Masked training: frozen weights keep their bits whatever trains beside them, kept ones move as a dense oracle's do."""

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from expunge.data import Encoder
from expunge.errors import ConfigurationError, DivergedError
from expunge.losses import NPO
from expunge.models import Loaded, new_adapter
from expunge.models.mask import Mask
from expunge.training import GeN, Linear, NormalizedDifference, descend, masked, optimizers
from expunge.training import checkpoint as checkpoints
from tests.oracles import slow
from tests.training.test_loop import clone, drawn, exact, plan, relative, sides

SHARES = (0.0, 0.05, 0.3, 0.6, 0.95, 1.0)  # wholly frozen, compact, dense and wholly kept parameters in one model


def trainable(loaded: Loaded) -> dict[str, torch.nn.Parameter]:
    return {name: param for name, param in loaded.model.named_parameters() if param.requires_grad}


def choose(loaded: Loaded, shares: tuple[float, ...] = SHARES, *, soft: bool = False) -> Mask:
    """A mask that keeps exactly one of `shares` of each parameter, in turn; soft: with weights in (0, 1] where it keeps."""
    generator = torch.Generator().manual_seed(3)
    values = {}
    for number, (name, param) in enumerate(trainable(loaded).items()):
        order = torch.rand(param.numel(), generator=generator).argsort()
        keep = torch.zeros(param.numel(), dtype=torch.bool)
        keep[order[: round(shares[number % len(shares)] * param.numel())]] = True
        weights = (torch.randint(1, 5, (param.numel(),), generator=generator) / 4) * keep
        values[name] = (weights if soft else keep).reshape(param.shape)
    return Mask.of(values)


def bits(loaded: Loaded) -> dict[str, Tensor]:
    return {name: param.detach().clone().view(torch.int32) for name, param in trainable(loaded).items()}


def vector(loaded: Loaded, mask: Mask) -> Tensor:
    """The mask in the order of `slow.flat`, float64."""
    return torch.cat([mask[name].double().reshape(-1) for name in trainable(loaded)])


def awkward(loaded: Loaded) -> Loaded:
    """Give every parameter some zeros of both signs, denormals and values whose decay would show."""
    for param in trainable(loaded).values():
        flat = param.data.view(-1)
        flat[::7], flat[1::7], flat[2::7] = -0.0, 0.0, 1e-40
    return loaded


NGDIFF = {"combine": NormalizedDifference(), "lr": 0.05}
COMBINATIONS = {
    "adamw": {"optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.1},
    "sgd": {"weight_decay": 0.1},
    "clipped": {"optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.1},
    "clipped late": {"weight_decay": 0.1, "max_grad_norm": 0.1, "clip_before_mask": True},
    "accumulated": {"optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.1, "batch_size": 1, "accumulation": 3},
    "bf16": {"optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.1, "precision": "bf16"},
    "ngdiff": NGDIFF | {"weight_decay": 0.1},
    "ngdiff late": NGDIFF | {"optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.1, "clip_before_mask": True},
    "gen": NGDIFF | {"rate": GeN(every=1, probes=5), "weight_decay": 0.1},
    "gen adamw": NGDIFF | {"rate": GeN(every=2), "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.1},
}


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("told", COMBINATIONS.values(), ids=COMBINATIONS)
def test_frozen_weights_keep_their_bits_and_all_others_move(tiny, small_request, told, soft) -> None:
    mask = choose(awkward(tiny), soft=soft)
    before = bits(tiny)
    descend(tiny, plan(steps=3, **told), **sides(tiny, small_request), mask=mask)
    for name, now in bits(tiny).items():
        keep, was = mask[name] != 0, before[name]
        assert torch.equal(now[~keep], was[~keep]), name
        nonzero = was.view(torch.float32).abs() > 1e-30  # weight decay moves these whatever their gradient
        assert int((now != was)[keep & nonzero].sum()) >= 0.99 * int((keep & nonzero).sum()), name


def test_as_many_weights_move_as_the_mask_keeps(tiny, small_request) -> None:
    mask = choose(tiny)
    before = bits(tiny)
    descend(tiny, plan(optimizer="adamw", lr=1e-2, weight_decay=0.1), **sides(tiny, small_request), mask=mask)
    moved = {name: int((now != before[name]).sum()) for name, now in bits(tiny).items()}
    shares = [SHARES[number % len(SHARES)] for number in range(len(moved))]
    sizes = [param.numel() for param in trainable(tiny).values()]
    assert list(moved.values()) == [round(share * size) for share, size in zip(shares, sizes, strict=True)]


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_lora_parameters(tiny, small_request, soft) -> None:
    adapted = new_adapter(tiny, 4)
    frozen_base = {n: p.detach().clone() for n, p in adapted.model.named_parameters() if not p.requires_grad}
    mask, before = choose(awkward(adapted), soft=soft), bits(adapted)
    told = plan(steps=3, optimizer="adamw", lr=1e-2, weight_decay=0.1)
    descend(adapted, told, **sides(adapted, small_request), mask=mask)
    for name, now in bits(adapted).items():
        assert torch.equal(now[mask[name] == 0], before[name][mask[name] == 0])
        assert mask.kept[name] == 0 or not torch.equal(now, before[name])
    after = dict(adapted.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen_base.items())


@pytest.mark.parametrize("late", [False, True], ids=["mask first", "clip first"])
def test_adamw_equals_a_dense_loop_that_puts_frozen_weights_back(tiny, small_request, late) -> None:
    other, mask = clone(tiny), choose(tiny)
    told = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.5, "clip_before_mask": late}
    descend(tiny, plan(steps=4, rate=Linear(warmup=0.5), **told), **sides(tiny, small_request), mask=mask)
    encoder = Encoder(other.tokenizer)
    optimizer = torch.optim.AdamW(other.model.parameters(), lr=1e-3, weight_decay=0.1, foreach=False)
    start = {name: param.detach().clone() for name, param in other.model.named_parameters()}
    for step in range(4):
        forget, retain = drawn(small_request, step, 4)
        loss = slow.mean_over(other.model, [encoder.example(small_request.retain[index]) for index in retain])
        loss = loss - slow.mean_over(other.model, [encoder.example(small_request.forget[index]) for index in forget])
        optimizer.zero_grad()
        loss.backward()
        for after in (False, True):
            if after:
                torch.nn.utils.clip_grad_norm_(other.model.parameters(), 0.5)
            if after == late:
                for name, param in other.model.named_parameters():
                    param.grad[~mask[name]] = 0
        optimizer.param_groups[0]["lr"] = 1e-3 * Linear(warmup=0.5).at(step, 4)
        optimizer.step()
        with torch.no_grad():
            for name, param in other.model.named_parameters():
                param.copy_(torch.where(mask[name], param, start[name]))
    assert relative(slow.flat(tiny.model), slow.flat(other.model)) <= 1e-6
    moved = slow.flat(tiny.model) - torch.cat([value.double().reshape(-1) for value in start.values()])
    assert moved.abs().max() > 1e-3


@pytest.mark.parametrize("late", [False, True], ids=["mask first", "clip first"])
def test_ngdiff_measures_the_kept_entries_unless_told_late(tiny, small_request, late) -> None:
    _, g_f, g_r = exact(tiny, small_request, 4)
    mask = choose(tiny)
    m = vector(tiny, mask)
    seen = (g_f, g_r) if late else (m * g_f, m * g_r)
    before = slow.flat(tiny.model)
    told = plan(combine=NormalizedDifference(), clip_before_mask=late)
    entry = descend(tiny, told, **sides(tiny, small_request), mask=mask).log[0]
    assert entry["forget_norm"] == pytest.approx(seen[0].norm().item(), rel=1e-5)
    assert entry["retain_norm"] == pytest.approx(seen[1].norm().item(), rel=1e-5)
    want = m * (seen[1] / seen[1].norm() - seen[0] / seen[0].norm())
    assert relative((before - slow.flat(tiny.model)) / 0.1, want) <= 1e-5


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_soft_mask_multiplies_the_update(tiny, small_request, optimizer) -> None:
    _, g_f, g_r = exact(tiny, small_request, 4)
    mask = choose(tiny, soft=True)
    m, g, before = vector(tiny, mask), g_r - g_f, slow.flat(tiny.model)
    update = 0.1 * before + (g if optimizer == "sgd" else g / (g.abs() + 1e-8))  # Adam's first step
    descend(tiny, plan(optimizer=optimizer, lr=1e-2, weight_decay=0.1), **sides(tiny, small_request), mask=mask)
    moved = (before - slow.flat(tiny.model)) / 1e-2
    sure = g.abs() > 1e-5  # below, fp32 gradients know Adam's sign only roughly
    assert relative(moved[sure], (m * update)[sure]) <= 1e-4


def test_a_soft_mask_of_ones_is_no_mask(tiny, small_request) -> None:
    others = [clone(tiny) for _ in range(2)]
    told = plan(steps=3, optimizer="adamw", lr=1e-3, weight_decay=0.1)
    descend(tiny, told, **sides(tiny, small_request))
    for other, dtype in zip(others, (torch.float32, torch.bool), strict=True):
        ones = Mask.of({name: torch.ones(param.shape, dtype=dtype) for name, param in trainable(tiny).items()})
        descend(other, told, **sides(other, small_request), mask=ones)
        assert torch.equal(slow.flat(other.model), slow.flat(tiny.model))


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("told", [COMBINATIONS[name] for name in ("adamw", "clipped", "ngdiff", "gen")])
def test_the_compact_way_equals_the_dense_way(tiny, small_request, monkeypatch, told, soft) -> None:
    other, mask = clone(tiny), choose(tiny, (0.3, 0.9, 0.05), soft=soft)
    monkeypatch.setattr(masked, "COMPACT", 0.0)
    descend(tiny, plan(steps=3, **told), **sides(tiny, small_request), mask=mask)
    monkeypatch.setattr(masked, "COMPACT", 1.0)
    descend(other, plan(steps=3, **told), **sides(other, small_request), mask=mask)
    # What differs is the order in which norms are summed and whether a vectorised kernel rounds once or twice.
    assert (slow.flat(tiny.model) - slow.flat(other.model)).abs().max() <= 2e-5


def test_moments_for_kept_weights_only(tiny, small_request, monkeypatch) -> None:
    made = []
    make = optimizers.make
    monkeypatch.setattr(optimizers, "make", lambda *given: made.append(make(*given)) or made[-1])
    mask = choose(tiny, (0.1,))
    descend(tiny, plan(optimizer="adamw"), **sides(tiny, small_request), mask=mask)
    entries = sum(param.numel() for param in trainable(tiny).values())
    kept = sum(round(0.1 * param.numel()) for param in trainable(tiny).values())
    held = sum(state["exp_avg"].numel() + state["exp_avg_sq"].numel() for state in made[0].state.values())
    assert held == 2 * kept < 0.21 * entries


def test_gen_probes_along_the_masked_direction(tiny, small_request) -> None:
    model, g_f, g_r = exact(tiny, small_request, 4)
    for soft in (False, True):
        copied = clone(tiny)
        mask = choose(copied, soft=soft)
        m = vector(copied, mask)
        keep = (m != 0).double()
        d = m * (g_r * keep / (g_r * keep).norm() - g_f * keep / (g_f * keep).norm())
        rate, eta = GeN(probe_size=6), 0.05
        items = Encoder(copied.tokenizer).examples(small_request.retain)
        base, losses = slow.flat(copied.model), []
        for k in rate.offsets:
            torch.nn.utils.vector_to_parameters(base + k * eta * d, model.parameters())
            losses.append(slow.mean_over(model, items).item())
        told = plan(combine=NormalizedDifference(), rate=rate, lr=eta)
        entry = descend(copied, told, **sides(copied, small_request), mask=mask).log[0]
        assert entry["probe"]["losses"] == pytest.approx(losses, rel=1e-5)
        moved = (base - slow.flat(copied.model)) / entry["lr"]  # from where the probes started, so they are undone
        assert relative(moved, d) <= 1e-5


@pytest.mark.parametrize("way", ["compact", "dense"])
def test_a_frozen_entrys_gradient_may_be_nan(tiny, small_request, monkeypatch, way) -> None:
    monkeypatch.setattr(masked, "COMPACT", {"compact": 1.0, "dense": 0.0}[way])
    weight = tiny.model.model.layers[1].mlp.up_proj.weight
    mask, before = choose(tiny, (0.3, 0.8)), bits(tiny)
    name = "model.layers.1.mlp.up_proj.weight"
    handle = weight.register_hook(lambda gradient: torch.where(mask[name], gradient, math.nan))
    told = {"optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.1, "max_grad_norm": 1.0}
    history = descend(tiny, plan(steps=2, **told), **sides(tiny, small_request), mask=mask)
    assert all(math.isfinite(entry["gradient_norm"]) for entry in history.log)
    assert weight.isfinite().all()
    now = bits(tiny)[name]
    assert torch.equal(now == before[name], ~mask[name])
    with pytest.raises(DivergedError, match=rf"gradient of {name}"):  # clipping first has to measure it
        descend(tiny, plan(clip_before_mask=True, **told), **sides(tiny, small_request), mask=mask)
    handle.remove()
    handle = weight.register_hook(lambda gradient: torch.where(mask[name], math.nan, gradient))
    with pytest.raises(DivergedError, match=rf"gradient of {name}"):
        descend(tiny, plan(**told), **sides(tiny, small_request), mask=mask)
    handle.remove()


def upper_half(loaded: Loaded) -> Mask:
    """Layer 1 and the final norm are trained; the tied embeddings and layer 0 are wholly frozen."""
    return Mask.of({name: torch.full(param.shape, "layers.1" in name or name == "model.norm.weight")
                    for name, param in trainable(loaded).items()})  # fmt: skip


@pytest.mark.parametrize("late", [False, True])
def test_the_backward_pass_ends_at_the_first_trained_layer(tiny, small_request, late) -> None:
    reached: dict[int, bool] = {}
    for number, layer in enumerate(tiny.model.model.layers):
        layer.register_forward_hook(
            lambda _, __, out, number=number: reached.__setitem__(
                number, (out if isinstance(out, Tensor) else out[0]).requires_grad
            )
        )
    told = plan(clip_before_mask=late, stop_retain_rise=None)
    descend(tiny, told, **sides(tiny, small_request), mask=upper_half(tiny))
    assert reached == {0: late, 1: True}  # clipping first needs the whole gradient's norm
    assert all(param.requires_grad and param.grad is None for param in tiny.model.parameters())


def test_parameters_can_be_trained_again_after_a_failure(tiny, small_request) -> None:
    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        descend(tiny, plan(), **sides(tiny, small_request), mask=upper_half(tiny), progress=interrupt)
    assert all(param.requires_grad and param.grad is None for param in tiny.model.parameters())
    with pytest.raises(ConfigurationError, match="needs a forget and a retain set"):
        only = sides(tiny, small_request)["forget"]
        descend(tiny, plan(combine=NormalizedDifference()), forget=only, mask=upper_half(tiny))
    assert all(param.requires_grad for param in tiny.model.parameters())


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_a_resumed_masked_run_equals_the_uninterrupted_one(tiny, small_request, tmp_path, soft) -> None:
    other, start, mask = clone(tiny), clone(tiny), choose(tiny, soft=soft)
    told = {
        "steps": 6,
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.1,
        "checkpoint_every": 3,
    }
    told |= {"combine": NormalizedDifference(), "rate": GeN(every=2)}
    descend(tiny, plan(**told), **sides(tiny, small_request, NPO()), mask=mask)
    folder = tmp_path / "run.checkpoint"

    def interrupt(entry, steps) -> None:
        if entry["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        descend(other, plan(**told), **sides(other, small_request, NPO()), mask=mask, folder=folder, progress=interrupt)
    saved = Mask.open(folder / checkpoints.MASK)
    assert saved.soft == soft
    for wrong in (choose(tiny, (0.5,)), None):
        fresh = clone(start)
        with pytest.raises(ConfigurationError, match=r"What differs: .*mask"):
            descend(fresh, plan(**told), **sides(fresh, small_request, NPO()), mask=wrong, folder=folder, resume=True)
        assert torch.equal(slow.flat(fresh.model), slow.flat(start.model))
    descend(start, plan(**told), **sides(start, small_request, NPO()), mask=saved, folder=folder, resume=True)
    for one, two in zip(tiny.model.parameters(), start.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_masks_that_do_not_fit(tiny, small_request) -> None:
    good = {name: torch.ones(param.shape) for name, param in trainable(tiny).items()}
    first = next(iter(good))
    missing = {name: value for name, value in good.items() if name != first}
    for values, message in (
        (missing, rf"another model: {first} has shape none in the mask"),
        (good | {"extra": torch.ones(2)}, r"extra has shape \(2,\) in the mask and none"),
        (good | {first: torch.ones(3)}, rf"{first} has shape \(3,\)"),
        (good | {first: good[first] * 1.5}, rf"weights for {first} are not all in \[0, 1\]"),
        (good | {first: good[first] * math.nan}, r"are not all in \[0, 1\]"),
        ({name: value > 2 for name, value in good.items()}, "keeps no weight at all"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            descend(tiny, plan(), **sides(tiny, small_request), mask=Mask.of(values))


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from expunge.data import Encoder
from expunge.methods import Context, method
from expunge.models import load
from expunge.request import Request

name, model, forget, retain, out = sys.argv[1:]
loaded = load(model, device="cpu")
settings = {"steps": 3, "lr": 0.01, "batch_size": 4, "optimizer": "sgd", "weight_decay": 0.1, "mask": "random",
            "mask.ratio": 0.3, "mask.exclude": ["*layers.0.*"]}
history = method(name, settings)(loaded, Request.read(forget, retain), Context(Encoder(loaded.tokenizer)))
rank = int(__import__("os").environ.get("RANK", 0))
save_file({n: p.detach().clone() for n, p in loaded.model.named_parameters()}, f"{out}.{rank}")
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tiny, tiny_folder, request_files, tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root / "src")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    for how, out in (([], "one"), (launch, "two")):
        command = [sys.executable, *how, script, "ngdiff", tiny_folder, *request_files, tmp_path / out]
        done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    one, first, second = (load_file(tmp_path / file) for file in ("one.0", "two.0", "two.1"))
    moved = 0
    for name, start in trainable(tiny).items():
        assert torch.equal(first[name], second[name]), name
        assert torch.equal(first[name] != start, one[name] != start), name
        assert (first[name] - one[name]).abs().max() <= 1e-5 * one[name].abs().max(), name
        moved += int((one[name] != start).sum())
    free_entries = sum(param.numel() for name, param in trainable(tiny).items() if "layers.0." not in name)
    assert moved == round(0.3 * free_entries)

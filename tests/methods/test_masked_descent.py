"""A mask on any descent: made before the first step, kept with the checkpoint, told in the report."""

import math

import pytest
import torch

from expunge.attribution import ATTRIBUTIONS, View
from expunge.attribution.insight import describe
from expunge.data import Encoder
from expunge.errors import ConfigurationError
from expunge.methods import Context, method
from expunge.models import Loaded, new_adapter
from expunge.models.mask import Mask
from expunge.training import checkpoint as checkpoints
from tests.helpers.architectures import NAMES as ARCHITECTURES

COMMON = {"steps": 2, "batch_size": 4, "lr": 1e-2, "weight_decay": 0.1, "stop_retain_rise": None}


def context(loaded: Loaded, **more) -> Context:
    return Context(Encoder(loaded.tokenizer), **more)


def weights(loaded: Loaded) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in loaded.model.named_parameters() if p.requires_grad}


def moved(before: dict[str, torch.Tensor], loaded: Loaded) -> dict[str, torch.Tensor]:
    """Which entries have other bits now."""
    return {name: now.view(torch.int32) != before[name].view(torch.int32) for name, now in weights(loaded).items()}


NAMED = [name for name in ATTRIBUTIONS if name not in ("file", "perta")]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("descent", ["graddiff", "ngdiff"])
def test_every_attribution_on_a_descent(tiny, small_request, descent, name) -> None:
    before = weights(tiny)
    made = method(descent, {**COMMON, "mask": name, "mask.ratio": 0.25})
    # Wanda leaves out what is no matrix.
    eligible = made.mask.eligible(View(tiny, small_request, Encoder(tiny.tokenizer)))
    kept = round(0.25 * sum(math.prod(shape) for shape in eligible.values()))
    history = made(tiny, small_request, context(tiny))
    count = sum(int(entries.sum()) for entries in moved(before, tiny).values())
    # Weight decay moves every kept weight but a zero.
    assert 0.99 * kept <= count <= kept
    cells = history.found["attribution"]["cells"]
    total = math.fsum(cell["value"] * cell["entries"] for cell in cells)
    assert total == pytest.approx(kept, abs=1e-6)


def test_the_mask_is_of_the_model_before_the_first_step_and_of_the_losses_in_use(tiny, small_request) -> None:
    made = method("npo", {**COMMON, "mask": "wagle", "mask.ratio": 0.3, "seed": 5})
    view = View(tiny, small_request, Encoder(tiny.tokenizer), made.forget, made.batch_size, made.seed)
    mask = made.mask.mask(view)
    before = weights(tiny)
    history = made(tiny, small_request, context(tiny))
    for name, entries in moved(before, tiny).items():
        assert not entries[~mask[name]].any()
    assert history.found["attribution"] == describe(mask)


def test_no_mask_no_attribution(tiny, small_request) -> None:
    assert method("graddiff", COMMON)(tiny, small_request, context(tiny)).found == {}


def test_perta_weights_as_a_soft_mask(tiny, small_request) -> None:
    """Zero weight, zero change: the excluded parameters and those with no forget gradient."""
    before = weights(tiny)
    settings = {**COMMON, "mask": "perta", "mask.exclude": ["*layers.0.*"], "optimizer": "adamw"}
    method("npo", settings)(tiny, small_request, context(tiny))
    for name, entries in moved(before, tiny).items():
        assert bool(entries.any()) != ("layers.0." in name), name


def test_a_mask_over_an_adapter(tiny, small_request) -> None:
    adapted = new_adapter(tiny, 4)
    before = weights(adapted)
    method("graddiff", {**COMMON, "mask": "magnitude", "mask.ratio": 0.2})(adapted, small_request, context(adapted))
    sizes = {name: before[name].abs() for name in before}
    edge = torch.cat([size.reshape(-1) for size in sizes.values()]).sort(descending=True).values
    edge = edge[round(0.2 * edge.numel()) - 1]
    for name, entries in moved(before, adapted).items():
        assert torch.equal(entries, sizes[name] >= edge)  # B is 0 and stays; of A the largest move


def test_a_mask_file(tiny, small_request, tmp_path) -> None:
    before = weights(tiny)
    chosen = {name: torch.rand(value.shape) < 0.5 for name, value in before.items()}
    path = Mask.of(chosen, {}).save(tmp_path / "mask.safetensors")
    settings = {**COMMON, "mask": {"name": "file", "path": str(path)}}
    method("graddiff", settings)(tiny, small_request, context(tiny))
    for name, entries in moved(before, tiny).items():
        assert not entries[~chosen[name]].any()
        assert entries[chosen[name]].double().mean() > 0.99
    with pytest.raises(ConfigurationError, match="needs the path of the mask"):
        method("graddiff", {**COMMON, "mask": "file"})(tiny, small_request, context(tiny))


def interrupt(entry, steps) -> None:
    if entry["step"] == 2:
        raise KeyboardInterrupt


def test_resuming_uses_the_saved_mask_and_refuses_another(
    tiny, tiny_folder, small_request, tmp_path, monkeypatch
) -> None:
    from expunge.models import load

    folder = tmp_path / "run.checkpoint"
    settings = {**COMMON, "steps": 4, "checkpoint_every": 2, "mask": "wagle", "mask.ratio": 0.3}
    whole = load(tiny_folder)
    method("graddiff", settings)(whole, small_request, context(whole))
    with pytest.raises(KeyboardInterrupt):
        method("graddiff", settings)(tiny, small_request, context(tiny, checkpoint=folder, progress=interrupt))
    assert (folder / checkpoints.MASK).is_file()
    for other in ({"mask.ratio": 0.4}, {"mask": "snip"}, {"mask": None}):
        fresh = load(tiny_folder)
        asked = {
            key: value for key, value in {**settings, **other}.items() if other != {"mask": None} or "." not in key
        }
        with pytest.raises(ConfigurationError, match=r"What differs: .*mask"):
            method("graddiff", asked)(fresh, small_request, context(fresh, checkpoint=folder, resume=True))

    def not_again(*_):
        raise AssertionError("the mask was computed a second time")

    monkeypatch.setattr(View, "gradient", not_again)
    fresh = load(tiny_folder)
    method("graddiff", settings)(fresh, small_request, context(fresh, checkpoint=folder, resume=True))
    for one, two in zip(whole.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("name", "noted"), [("wanda", True), ("magnitude", False)])
def test_a_mask_that_leaves_a_mixtures_experts_out_says_so(tiny, small_request, name, noted) -> None:
    model = ARCHITECTURES["mixtral"].build(len(tiny.tokenizer))
    loaded = Loaded(model, tiny.tokenizer, tiny.folder)
    history = method("graddiff", {**COMMON, "steps": 1, "mask": name})(loaded, small_request, context(loaded))
    experts = sum(param.numel() for key, param in model.named_parameters() if ".experts." in key)
    share = experts / sum(param.numel() for param in model.parameters())
    said = f"none of the experts' weights, which are {share:.0%} of the model"
    assert any(said in note for note in history.notes) == noted

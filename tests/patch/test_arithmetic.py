"""Create, apply, revert: the same bits back for every dtype and layout, and clear refusals that write nothing."""

import errno
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from expunge.errors import ConfigurationError, ModelError, OutputError, PatchError
from expunge.models import checkpoint, load, new_adapter, saving
from expunge.models.fingerprint import fingerprint
from expunge.patch import Patch, apply, create, revert
from tests.models.test_checkpoint import everything, in_dtype, nudge

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
WEIGHTS = "model.safetensors"


def scrambled(source: Path, target: Path) -> Path:
    """A copy with other values: signs, zeros of both signs and denormals among them, and one tensor as it was."""
    state = load_file(source / WEIGHTS)
    torch.manual_seed(1)
    for name, tensor in state.items():
        if name == "model.norm.weight":
            continue
        tiny = torch.finfo(tensor.dtype).smallest_normal
        pool = torch.tensor([0.0, -0.0, tiny / 4, -tiny / 8, torch.finfo(tensor.dtype).max], dtype=torch.float64)
        pool = pool.to(tensor.dtype)
        odd = pool[torch.randint(len(pool), tensor.shape)]
        moved = -tensor * torch.randn(tensor.shape).to(tensor.dtype)
        state[name] = torch.where(torch.rand(tensor.shape) < 0.2, odd, moved)
    shutil.copytree(source, target)
    save_file(state, target / WEIGHTS, metadata={"format": "pt"})
    return target


@pytest.fixture
def pair(tiny_folder: Path, tmp_path: Path) -> tuple[Path, Path, Patch]:
    """The tiny model, a changed one, and the patch between them."""
    other = scrambled(tiny_folder, tmp_path / "other")
    return tiny_folder, other, create(tiny_folder, other, tmp_path / "patch.safetensors")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_apply_and_revert_give_the_same_files(tiny_folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    base = in_dtype(tiny_folder, tmp_path / "base", dtype)
    patched = scrambled(base, tmp_path / "patched")
    patch = create(base, patched, tmp_path / "patch.safetensors")
    assert "model.norm.weight" not in patch.stored
    apply(patch, base, tmp_path / "applied")
    assert everything(tmp_path / "applied") == everything(patched)
    revert(patch, tmp_path / "applied", tmp_path / "reverted")
    assert everything(tmp_path / "reverted") == everything(base)


def test_a_patch_fits_its_base_however_that_is_sharded(pair: tuple[Path, Path, Patch], tmp_path: Path) -> None:
    base, other, patch = pair
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(sharded, max_shard_size="40KB")
    out = apply(patch, sharded, tmp_path / "out")
    assert not (out / WEIGHTS).exists()
    expected = load_file(other / WEIGHTS)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in checkpoint.tensors(out))
    revert(patch, out, tmp_path / "back")
    assert everything(tmp_path / "back") == everything(sharded)


def test_tied_weights_stored_twice(tiny_folder: Path, tmp_path: Path) -> None:
    base = in_dtype(tiny_folder, tmp_path / "base", torch.bfloat16)
    state = load_file(base / WEIGHTS)
    save_file({**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}, base / WEIGHTS)
    loaded = load(base)
    nudge(loaded.model, "embed_tokens")
    saving.save_model(loaded, tmp_path / "patched")
    patch = create(base, tmp_path / "patched", tmp_path / "patch")
    assert sorted(patch.stored) == ["lm_head.weight", "model.embed_tokens.weight"]
    apply(patch, base, tmp_path / "applied")
    after = load_file(tmp_path / "applied" / WEIGHTS)
    expected = loaded.model.get_input_embeddings().weight.detach().bfloat16()
    assert torch.equal(after["lm_head.weight"], expected)
    assert torch.equal(after["model.embed_tokens.weight"], expected)


def test_nothing_changed_is_an_empty_patch(tiny_folder: Path, tmp_path: Path) -> None:
    patch = create(tiny_folder, tiny_folder, tmp_path / "patch")
    assert patch.stored == {}
    assert patch.inspect()["totals"]["entries_changed"] == 0
    assert patch.inspect()["totals"]["change_norm"] == 0
    assert everything(apply(patch, tiny_folder, tmp_path / "out")) == everything(tiny_folder)


def test_a_patch_into_a_folder_and_from_a_run_folder(pair: tuple[Path, Path, Patch], tmp_path: Path) -> None:
    base, other, _ = pair
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    shutil.copytree(other, run / "model")
    patch = create(base, run, run)
    assert patch.path == run / "patch.safetensors"
    assert everything(revert(run, run, tmp_path / "back")) == everything(base)


@pytest.mark.parametrize("action", ["apply", "revert"])
def test_wrong_models_are_refused_and_nothing_is_written(
    pair: tuple[Path, Path, Patch], tmp_path: Path, action: str
) -> None:
    base, other, patch = pair
    act, own, opposite = {
        "apply": (apply, other, "has the patch already"),
        "revert": (revert, base, "there is nothing to revert"),
    }[action]
    foreign = in_dtype(base, tmp_path / "foreign", torch.bfloat16)
    before = sorted(tmp_path.rglob("*"))
    found = fingerprint(foreign)[:16]
    expected = fingerprint(base if action == "apply" else other)[:16]
    with pytest.raises(PatchError, match=rf"expected .*{expected}.*found {found}.*other ones"):
        act(patch, foreign, tmp_path / "out")
    with pytest.raises(PatchError, match=opposite):
        act(patch, own, tmp_path / "out")
    with pytest.raises(ModelError, match="no such folder"):
        act(patch, tmp_path / "nowhere", tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_content_is_seen_before_anything_is_written(pair: tuple[Path, Path, Patch], tmp_path: Path) -> None:
    base, _, patch = pair
    content = bytearray(patch.path.read_bytes())
    content[-1] ^= 1
    patch.path.write_bytes(content)
    with pytest.raises(PatchError, match=r"patch\.safetensors is damaged"):
        apply(patch.path, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_outputs_are_not_replaced_unasked(pair: tuple[Path, Path, Patch], tmp_path: Path) -> None:
    base, other, patch = pair
    out = apply(patch, base, tmp_path / "out")
    before = everything(tmp_path)
    with pytest.raises(OutputError, match="exists already"):
        apply(patch, base, out)
    with pytest.raises(OutputError, match="exists already"):
        create(base, other, patch.path)
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    for place in (other, other / "inside", tmp_path):
        with pytest.raises(OutputError, match="is, holds or lies in the input"):
            revert(patch, other, place, overwrite=True)
    with pytest.raises(OutputError, match="which expunge did not make"):
        revert(patch, other, home, overwrite=True)
    shutil.rmtree(home)
    assert everything(tmp_path) == before
    revert(patch, other, out, overwrite=True)
    assert everything(out) == everything(base)


def test_a_full_disk_leaves_everything(
    pair: tuple[Path, Path, Patch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, other, patch = pair
    out = apply(patch, base, tmp_path / "out")
    before = everything(tmp_path)
    left = iter(range(3))

    def raw(tensor: Tensor) -> memoryview:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())

    monkeypatch.setattr(checkpoint, "raw", raw)
    for act in (
        lambda: apply(patch, base, out, overwrite=True),
        lambda: revert(patch, other, out, overwrite=True),
        lambda: create(base, other, patch.path, overwrite=True),
    ):
        with pytest.raises(OutputError, match="the disk is full"):
            act()
        assert everything(tmp_path) == before


def test_models_no_patch_can_join(tiny_folder: Path, tmp_path: Path) -> None:
    state = load_file(tiny_folder / WEIGHTS)
    norm = state["model.norm.weight"]
    less = {name: tensor for name, tensor in state.items() if name != "model.norm.weight"}
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    for values, message in (
        (less, "other lacks model.norm.weight, which"),
        ({**state, "x": norm.clone(), "y": norm.clone()}, "lacks x and 1 more"),
        ({**less, "model.norm.weight": norm.half()}, r"model.norm.weight is F32 \(32,\) in .*F16 \(32,\)"),
        ({**less, "model.norm.weight": norm.repeat(2)}, r"F32 \(64,\)"),
        ({**less, "model.norm.weight": norm / 0}, "model.norm.weight in .*other has 32 NaN or infinite"),
    ):
        save_file(values, other / WEIGHTS)
        with pytest.raises(PatchError, match=message):
            create(tiny_folder, other, tmp_path / "patch")
    assert not (tmp_path / "patch").exists()


def test_infinities_the_base_has_too_do_no_harm(tiny_folder: Path, tmp_path: Path) -> None:
    base, other = tmp_path / "base", tmp_path / "other"
    state = load_file(tiny_folder / WEIGHTS) | {"mask": torch.tensor([0.0, -torch.inf])}
    for folder, shift in ((base, 0), (other, 1)):
        shutil.copytree(tiny_folder, folder)
        save_file({**state, "model.norm.weight": state["model.norm.weight"] + shift}, folder / WEIGHTS)
    patch = create(base, other, tmp_path / "patch")
    assert list(patch.stored) == ["model.norm.weight"]
    assert patch.manifest.totals.base_norm is None
    assert apply(patch, base, tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out" / WEIGHTS)["mask"], state["mask"])


def test_an_existing_adapter_is_patched_as_dense(tiny_folder: Path, tmp_path: Path) -> None:
    loaded = new_adapter(load(tiny_folder), 2)
    nudge(loaded.model, "lora_")
    saving.save_model(loaded, tmp_path / "first")
    nudge(loaded.model, "lora_B")
    saving.save_model(loaded, tmp_path / "second")
    patch = create(tmp_path / "first", tmp_path / "second", tmp_path / "patch")
    assert patch.manifest.kind == "dense"
    assert patch.stored.keys() == {name for name, _ in checkpoint.tensors(tmp_path / "first") if "lora_B" in name}
    out = apply(patch, tmp_path / "first", tmp_path / "out")
    assert everything(out) == everything(tmp_path / "second")
    assert everything(revert(patch, out, tmp_path / "back")) == everything(tmp_path / "first")
    with pytest.raises(ConfigurationError, match="not merged"):
        apply(patch, tmp_path / "first", tmp_path / "x", merge=True)
    config = tmp_path / "second" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 4', '"lora_alpha": 8'))
    with pytest.raises(PatchError, match=r"differ in lora_alpha: 4 in .*8 in"):
        create(tmp_path / "first", tmp_path / "second", tmp_path / "x")


def test_few_tensors_are_in_memory_at_a_time(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = scrambled(tiny_folder, tmp_path / "other")
    alive: set[int] = set()
    most = [0]
    read = checkpoint.Stored.read

    def watched(item: checkpoint.Stored) -> Tensor:
        tensor = read(item)
        key = id(tensor.untyped_storage())
        alive.add(key)
        weakref.finalize(tensor, alive.discard, key)
        most[0] = max(most[0], len(alive))
        return tensor

    monkeypatch.setattr(checkpoint.Stored, "read", watched)
    patch = create(tiny_folder, other, tmp_path / "patch")
    # The two of the tensor before are let go only once the two of the next are bound to their names.
    assert most[0] <= 4
    most[0] = 0
    out = apply(patch, tiny_folder, tmp_path / "out")
    revert(patch, out, tmp_path / "back")
    assert 2 <= most[0] <= 3

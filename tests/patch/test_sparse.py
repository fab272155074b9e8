"""Sparse tensors in patches: the file by hand, its size, exact bits, patches of format 1; and a masked run's patch."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge.data import Encoder
from expunge.errors import PatchError
from expunge.methods import Context, method
from expunge.models import load
from expunge.models.saving import save_model
from expunge.patch import Patch, apply, create, revert
from expunge.patch.format import bits, sparse_is_smaller
from tests.models.test_checkpoint import everything, in_dtype
from tests.patch.test_format import folder, rewrite_manifest

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
WEIGHTS = "model.safetensors"


def test_the_file_by_hand(tmp_path: Path) -> None:
    old = torch.ones(3, 4)
    new = old.clone()
    new[0, 1], new[2, 3] = -1.0, 2.0  # entries 1 and 11 of 12
    before, after = folder(tmp_path / "base", {"w": old}), folder(tmp_path / "patched", {"w": new})
    patch = create(before, after, tmp_path / "p")
    held = load_file(tmp_path / "p")
    assert held["w#bits"].tolist() == [0b00000010, 0b00001000]
    # 1.0 is 0x3f800000, −1.0 has the sign bit besides, 2.0 is 0x40000000
    assert held["w#values"].tolist() == [-0x80000000, 0x40000000 - 0x3F800000]
    assert held["w#values"].dtype == torch.int32
    assert patch.names == ("w",)
    assert patch.tensor("w").tolist() == [[0, -0x80000000, 0, 0], [0] * 4, [0, 0, 0, 0x800000]]
    row = patch.inspect()["tensors"][0]
    assert (row["sparse"], row["changed"], row["share"]) == (True, 2, 1 / 6)


def test_sparse_exactly_where_smaller() -> None:
    # 16 entries of 2 bytes: 32 bytes whole; sparse 2 + 2 per change, so 15 changes take as much.
    assert sparse_is_smaller(16, 14, 2)
    assert not sparse_is_smaller(16, 15, 2)
    assert not sparse_is_smaller(1, 1, 8)
    assert not sparse_is_smaller(0, 0, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("entries", [1, 7, 8, 9, 64, 1001])
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_any_shape_and_share_comes_back(tmp_path: Path, dtype: torch.dtype, entries: int, share: float) -> None:
    generator = torch.Generator().manual_seed(entries)
    old = torch.randn(entries, generator=generator).to(dtype)
    new = torch.where(torch.rand(entries, generator=generator) < share, -old, old)
    new[-1] = 2.5
    before, after = folder(tmp_path / "a", {"w": old}), folder(tmp_path / "b", {"w": new})
    patch = create(before, after, tmp_path / "p")
    assert patch.names == ("w",)
    for act, source, wanted in ((apply, before, new), (revert, after, old)):
        out = act(patch, source, tmp_path / act.__name__)
        assert torch.equal(bits(load_file(out / WEIGHTS)["w"]), bits(wanted))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sparse_patch_is_exact_and_small(tiny_folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    base = in_dtype(tiny_folder, tmp_path / "base", dtype)
    state = load_file(base / WEIGHTS)
    torch.manual_seed(0)
    for name, tensor in state.items():
        odd = torch.tensor([-0.0, 0.0, 1.0, float(torch.finfo(dtype).smallest_normal) / 2]).to(dtype)
        state[name] = torch.where(torch.rand(tensor.shape) < 0.05, odd[torch.randint(4, tensor.shape)], tensor)
    patched = tmp_path / "patched"
    shutil.copytree(base, patched)
    save_file(state, patched / WEIGHTS, metadata={"format": "pt"})
    patch = create(base, patched, tmp_path / "p")
    entries = sum(tensor.numel() for tensor in state.values())
    changed = patch.manifest.totals.entries_changed
    header = 12_000  # the manifest of twenty tensors
    assert patch.size < entries / 8 + changed * dtype.itemsize + header
    assert 0.04 * entries < changed < 0.06 * entries
    assert everything(apply(patch, base, tmp_path / "applied")) == everything(patched)
    assert everything(revert(patch, patched, tmp_path / "reverted")) == everything(base)


def test_the_patch_of_a_masked_run_holds_kept_weights_only(tiny_folder: Path, small_request, tmp_path: Path) -> None:
    sizes = {}
    for ratio in (None, 0.1):
        loaded, place = load(tiny_folder), tmp_path / str(ratio)
        mask = {} if ratio is None else {"mask": "random", "mask.ratio": ratio, "mask.scope": "tensor"}
        told = {"steps": 2, "batch_size": 4, "lr": 1e-2, "weight_decay": 0.1, **mask}
        method("graddiff", told)(loaded, small_request, Context(Encoder(loaded.tokenizer)))
        place.mkdir()
        save_model(loaded, place / "model")
        patch = create(tiny_folder, place / "model", place / "p")
        sizes[ratio] = sum(item.size for item in patch.stored.values())
        assert all(change.sparse == (ratio is not None) for change in patch.manifest.changes.values())
        out = apply(patch, tiny_folder, place / "applied")
        assert everything(out) == everything(place / "model")
        assert everything(revert(patch, out, place / "back")) == everything(tiny_folder)
    # 4 bytes an entry; or a bit an entry and 4 bytes for a tenth of them
    assert sizes[0.1] == pytest.approx((1 / 8 + 0.4) / 4 * sizes[None], rel=0.01)


def test_patches_of_format_1_open(tmp_path: Path) -> None:
    old, new = torch.zeros(50), torch.arange(50.0)
    before, after = folder(tmp_path / "a", {"w": old}), folder(tmp_path / "b", {"w": new + 1})
    patch = create(before, after, tmp_path / "p")
    change = json.loads(patch.manifest.dump())["changes"]["w"]
    assert not change.pop("sparse")
    rewrite_manifest(tmp_path / "p", {"format": 1, "changes": {"w": change}})
    opened = Patch.open(tmp_path / "p")
    assert opened.manifest.format == 1
    assert not opened.manifest.changes["w"].sparse
    assert torch.equal(load_file(apply(opened, before, tmp_path / "out") / WEIGHTS)["w"], new + 1)


def test_damaged_sparse_tensors_are_refused(tmp_path: Path) -> None:
    new = torch.zeros(50)
    new[7] = 1
    before, after = folder(tmp_path / "a", {"w": torch.zeros(50)}), folder(tmp_path / "b", {"w": new})
    patch = create(before, after, tmp_path / "p")
    content = bytearray(patch.path.read_bytes())
    content[patch.stored["w#bits"].start] ^= 1
    patch.path.write_bytes(content)
    with pytest.raises(PatchError, match="w has 1 values for 2 places"):
        Patch.open(patch.path).tensor("w")
    with pytest.raises(PatchError, match="do not fit its checksum"):
        apply(patch.path, before, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    change = json.loads(patch.manifest.dump())["changes"]["w"]
    rewrite_manifest(tmp_path / "p", {"changes": {"w": change | {"sparse": False}}})
    with pytest.raises(PatchError, match="not those its manifest lists"):
        Patch.open(tmp_path / "p")

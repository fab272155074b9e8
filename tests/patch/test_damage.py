"""A byte turned anywhere in a patch or a mask is seen before the file is used; files of older versions still open."""

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import safe_open

from expunge.errors import ConfigurationError, ModelError, PatchError
from expunge.models import load, new_adapter
from expunge.models.fingerprint import fingerprint, weights_fingerprint
from expunge.models.mask import Mask
from expunge.models.saving import save_model
from expunge.patch import apply, compose, create, revert
from tests.models.test_checkpoint import nudge


@pytest.fixture(scope="module")
def chain(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models, each a changed copy of the one before."""
    folder = tmp_path_factory.mktemp("chain")
    models = [tiny_folder]
    for number in range(2):
        loaded = load(models[-1])
        nudge(loaded.model)
        save_model(loaded, folder / str(number))
        models.append(folder / str(number))
    return models


@pytest.fixture(scope="module")
def adapter(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    loaded = new_adapter(load(tiny_folder), 2)
    nudge(loaded.model)
    out = tmp_path_factory.mktemp("adapter") / "model"
    save_model(loaded, out)
    return out


def places(file: Path, count: int) -> list[int]:
    size = file.stat().st_size
    return [index * (size - 1) // (count - 1) for index in range(count)]


def turned(file: Path, place: int, out: Path) -> Path:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    out.write_bytes(content)
    return out


def test_the_checksum_is_the_sha256_of_the_file_with_its_own_digits_as_zeros(chain, tmp_path) -> None:
    patch = create(chain[0], chain[1], tmp_path / "p.safetensors")
    with safe_open(patch.path, "pt") as opened:
        known = opened.metadata()["sha256"]
    content = patch.path.read_bytes()
    assert content.count(known.encode()) == 1
    assert hashlib.sha256(content.replace(known.encode(), b"0" * 64)).hexdigest() == known


@pytest.mark.parametrize("merge", [True, False])
def test_a_damaged_lora_patch_is_not_applied(merge: bool, tiny_folder, adapter, tmp_path) -> None:
    patch = create(tiny_folder, adapter, tmp_path / "p.safetensors")
    for place in places(patch.path, 32):
        with pytest.raises((PatchError, ModelError)):
            apply(turned(patch.path, place, tmp_path / "d"), tiny_folder, tmp_path / "out", merge)
    assert not (tmp_path / "out").exists()
    apply(patch.path, tiny_folder, tmp_path / "out", merge)


def test_a_damaged_patch_is_not_composed_or_reverted(chain, tmp_path) -> None:
    first = create(chain[0], chain[1], tmp_path / "1.safetensors")
    second = create(chain[1], chain[2], tmp_path / "2.safetensors")
    for place in places(second.path, 23):
        damaged = turned(second.path, place, tmp_path / "d")
        with pytest.raises(PatchError):
            compose([first, damaged], tmp_path / "both.safetensors")
        with pytest.raises(PatchError):
            revert(damaged, chain[2], tmp_path / "out")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["1.safetensors", "2.safetensors", "d"]


@pytest.mark.parametrize("soft", [False, True])
def test_a_damaged_mask_is_refused(soft: bool, tmp_path) -> None:
    torch.manual_seed(0)
    values = {"w": torch.rand(30, 7), "v": torch.rand(11)}
    mask = Mask.of(values if soft else {name: value > 0.5 for name, value in values.items()}, {"model": "x"})
    file = mask.save(tmp_path / "m.safetensors")
    for place in places(file, 60):
        with pytest.raises(ConfigurationError):
            Mask.open(turned(file, place, tmp_path / "d"))
    assert torch.equal(Mask.open(file)["w"], mask["w"])


def as_older(file: Path, key: str, version: int, out: Path) -> Path:
    """The file as a version without checksums wrote it."""
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    del header["__metadata__"]["sha256"]
    described = json.loads(header["__metadata__"][key])
    described["format"] = version
    header["__metadata__"][key] = json.dumps(described)
    text = json.dumps(header).encode()
    out.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    return out


def test_files_of_older_versions_open_with_a_note(chain, tiny_folder, adapter, tmp_path) -> None:
    from expunge.patch import Patch

    dense = create(chain[0], chain[1], tmp_path / "p.safetensors")
    old = Patch.open(as_older(dense.path, "expunge", 2, tmp_path / "old.safetensors"))
    assert "no checksum" in old.notes[0]
    assert not dense.notes
    assert fingerprint(apply(old, chain[0], tmp_path / "out")) == fingerprint(chain[1])
    with pytest.raises(PatchError, match="checksum"):  # a file of the present format has one
        Patch.open(as_older(dense.path, "expunge", 3, tmp_path / "without.safetensors")).verify()
    low = create(tiny_folder, adapter, tmp_path / "l.safetensors")
    older = as_older(low.path, "expunge", 2, tmp_path / "oldlow.safetensors")
    content = older.read_bytes().replace(fingerprint(adapter).encode(), weights_fingerprint(adapter).encode())
    older.write_bytes(content)
    apply(older, tiny_folder, tmp_path / "merged", True)
    with pytest.raises(PatchError, match="damaged"):
        apply(turned(older, len(content) - 1, tmp_path / "d"), tiny_folder, tmp_path / "merged", True, overwrite=True)
    mask = Mask.of({"w": torch.rand(9) > 0.5}).save(tmp_path / "m.safetensors")
    assert "no checksum" in Mask.open(as_older(mask, "expunge-mask", 1, tmp_path / "mo.safetensors")).info["unsealed"]


@pytest.mark.parametrize(
    "change", [{"lora_alpha": 8}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 1}}, {"r": 4}, {"bias": "all"}]
)
def test_an_adapters_fingerprint_has_its_scaling(change: dict, adapter: Path, tmp_path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    assert fingerprint(other) == fingerprint(adapter)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "inference_mode": False, "brand_new": None}))
    assert fingerprint(other) == fingerprint(adapter)
    (other / "adapter_config.json").write_text(json.dumps(config | change))
    assert fingerprint(other) != fingerprint(adapter)
    assert weights_fingerprint(other) == weights_fingerprint(adapter)


def test_an_adapters_fingerprint_has_its_base(chain, adapter: Path, tmp_path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(chain[1])}))
    assert fingerprint(other) != fingerprint(adapter)
    shutil.copytree(chain[0], tmp_path / "copy")
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "copy")}))
    assert fingerprint(other) == fingerprint(adapter)

"""The patch file: exact bit arithmetic, statistics against hand computation, damaged and foreign files."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.errors import PatchError
from expunge.patch import Patch, create
from expunge.patch.format import bits, difference, measure, shift

WIDTHS = {torch.bfloat16: 16, torch.float16: 16, torch.float32: 32, torch.float64: 64}
AWKWARD = [0.0, -0.0, 1.0, -1.0, 5e-324, 1e-45, -1e-40, 6e-8, 65504.0, -3.4e38, math.inf, -math.inf, math.nan]


def folder(path: Path, state: dict[str, Tensor]) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "none"}')
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    return path


@given(data=st.data(), dtype=st.sampled_from(sorted(WIDTHS, key=str)))
@settings(max_examples=200, deadline=None)
def test_any_two_bit_patterns_are_joined_exactly(data: st.DataObject, dtype: torch.dtype) -> None:
    width = WIDTHS[dtype]
    pattern = st.integers(-(2 ** (width - 1)), 2 ** (width - 1) - 1)
    pairs = data.draw(st.lists(st.tuples(pattern, pattern), min_size=1, max_size=20))
    kind = {16: torch.int16, 32: torch.int32, 64: torch.int64}[width]
    base, patched = (torch.tensor(values, dtype=kind).view(dtype) for values in zip(*pairs, strict=True))
    change = difference(base, patched)
    # Python's integers have no width: the wrap-around is spelled out here.
    half = 2 ** (width - 1)
    assert change.tolist() == [(new - old + half) % (2 * half) - half for old, new in pairs]
    assert torch.equal(bits(shift(base, change, 1)), bits(patched))
    assert torch.equal(bits(shift(patched, change, -1)), bits(base))


@pytest.mark.parametrize("dtype", sorted(WIDTHS, key=str), ids=str)
def test_awkward_values(dtype: torch.dtype) -> None:
    values = torch.tensor(AWKWARD, dtype=torch.float64).to(dtype)
    base, patched = (grid.contiguous() for grid in torch.meshgrid(values, values, indexing="ij"))
    change = difference(base, patched)
    assert torch.equal(bits(shift(base, change, 1)), bits(patched))
    assert torch.equal(bits(shift(patched, change, -1)), bits(base))


def test_statistics_by_hand() -> None:
    old = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    new = torch.tensor([[3.0, 4.5], [-0.0, -2.0]])
    change = measure(old, new)
    assert change.base_norm == 5.0
    assert change.change_norm == pytest.approx(math.sqrt(0.25 + 4), rel=1e-15)
    assert change.max_change == 2.0
    assert change.changed == 3  # 0 became −0: another bit pattern
    assert change.share == 0.75
    assert change.relative == pytest.approx(math.sqrt(4.25) / 5, rel=1e-15)
    assert change.shape == (2, 2)
    assert change.dtype == "F32"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_statistics_against_numpy_over_many_parts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expunge.patch.format.ENTRIES", 7)
    torch.manual_seed(0)
    old = torch.randn(9, 11).to(dtype)
    new = torch.where(torch.rand(9, 11) < 0.3, (old.float() * 1.1 + 0.01).to(dtype), old)
    change = measure(old, new)
    a, b = (tensor.float().numpy() for tensor in (old, new))
    assert change.change_norm == pytest.approx(np.sqrt(((b - a).astype(np.float64) ** 2).sum()), rel=1e-12)
    assert change.base_norm == pytest.approx(np.sqrt((a.astype(np.float64) ** 2).sum()), rel=1e-12)
    assert change.max_change == np.abs(b - a).max()
    assert change.changed == (a != b).sum()


def test_inspect_by_hand(tmp_path: Path) -> None:
    state = {"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(5), "c": torch.full((3,), 2.0)}
    base = folder(tmp_path / "base", state)
    patched = folder(
        tmp_path / "patched", {**state, "a": torch.tensor([3.0, 5.0]), "b": torch.tensor([0, 0, 0.5, 0, 0])}
    )
    settings_given = {"lr": 1e-4, "stop": math.inf, "file": Path("x"), "mask": None}
    patch = create(base, patched, tmp_path / "p.st", method="ngdiff", settings=settings_given, info={"forget": 4})
    report = json.loads(json.dumps(patch.inspect(), allow_nan=False))
    assert report["kind"] == "dense"
    assert report["method"] == "ngdiff"
    assert report["settings"] == {"lr": 1e-4, "stop": None, "file": "x", "mask": None}
    assert report["info"] == {"forget": 4}
    assert report["dtypes"] == ["F32"]
    assert report["bytes"] == (tmp_path / "p.st").stat().st_size
    assert report["totals"] == {
        "tensors": 3,
        "tensors_changed": 2,
        "entries": 10,
        "entries_changed": 2,
        "change_norm": pytest.approx(math.sqrt(1 + 0.25), rel=1e-15),
        "base_norm": pytest.approx(math.sqrt(25 + 12), rel=1e-15),
        "share": 0.2,
        "relative": pytest.approx(math.sqrt(1.25 / 37), rel=1e-15),
    }
    assert [row["name"] for row in report["tensors"]] == ["a", "b"]
    first, second = report["tensors"]
    assert (first["relative"], first["share"], first["max_change"], first["changed"]) == (0.2, 0.5, 1.0, 1)
    assert (second["relative"], second["share"], second["base_norm"]) == (None, 0.2, 0.0)


def test_other_programs_can_read_the_file(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", {"a": torch.tensor([1.0]).bfloat16(), "b": torch.tensor([1.0])})
    patched = folder(tmp_path / "patched", {"a": torch.tensor([-1.0]).bfloat16(), "b": torch.tensor([1.0])})
    create(base, patched, tmp_path / "p")
    with safe_open(tmp_path / "p", "pt") as opened:
        assert json.loads(opened.metadata()["expunge"])["format"] == 3
        assert list(opened.keys()) == ["a"]
        # bf16: 1 is 0x3f80 and −1 is 0xbf80, 0x8000 further.
        assert torch.equal(opened.get_tensor("a"), torch.tensor([-0x8000], dtype=torch.int16))


def rewrite_manifest(file: Path, change: dict | str) -> None:
    """Put other values into the manifest, or other text in its place; the checksum goes."""
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    header["__metadata__"].pop("sha256", None)
    manifest = header["__metadata__"]["expunge"]
    header["__metadata__"]["expunge"] = (
        json.dumps(json.loads(manifest) | change) if isinstance(change, dict) else change
    )
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", {"a": torch.ones(50)})
    create(base, folder(tmp_path / "patched", {"a": torch.zeros(50)}), tmp_path / "p")
    whole = (tmp_path / "p").read_bytes()
    with pytest.raises(PatchError, match="no such file"):
        Patch.open(tmp_path / "nowhere")
    for part in (whole[:-1], whole[:50], b"", b"{}"):
        (tmp_path / "part").write_bytes(part)
        with pytest.raises(PatchError, match="is damaged"):
            Patch.open(tmp_path / "part")
    with pytest.raises(PatchError, match="not a patch"):
        Patch.open(base / "model.safetensors")
    for change, message in (
        ({"format": 99}, "patch format 99"),
        ({"kind": "sparse"}, "manifest cannot be read"),
        ({"changes": {}}, "not those its manifest lists"),
        ({"kind": "lora"}, "no adapter configuration"),
        ("{", "manifest cannot be read"),
        ("[]", "manifest cannot be read"),
    ):
        (tmp_path / "p").write_bytes(whole)
        rewrite_manifest(tmp_path / "p", change)
        with pytest.raises(PatchError, match=message):
            Patch.open(tmp_path / "p")

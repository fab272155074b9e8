"""Masks as files: bits that come back as they were, and files that are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge.errors import ConfigurationError, OutputExistsError
from expunge.models import load, new_adapter
from expunge.models.mask import KEY, Mask, pack, unpack


def values(kind: str = "hard") -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (5, 7), "b": (3,), "c": (8,), "scalar": ()}
    found = {name: torch.rand(shape, generator=draw) for name, shape in shapes.items()}
    return {name: value < 0.4 for name, value in found.items()} if kind == "hard" else found


def whole(loaded) -> dict[str, torch.Tensor]:
    """A mask of everything that is trained."""
    return {name: torch.ones(p.shape).bool() for name, p in loaded.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_gives_back_the_same_mask(tmp_path, kind, dtype) -> None:
    given = {name: value if kind == "hard" else value.to(dtype) for name, value in values(kind).items()}
    info = {"gamma": 1e-6, "settings": {"ratio": 0.4}, "model": "ab"}
    path = Mask.of(given, info).save(tmp_path / "mask.safetensors")
    mask = Mask.open(path)
    assert mask.soft == (kind == "soft")
    assert mask.info == info
    assert {name: tuple(value.shape) for name, value in given.items()} == mask.shapes
    for name, value in given.items():
        assert mask[name].dtype == value.dtype
        assert torch.equal(mask[name], value)
    raw = load_file(path)
    if kind == "hard":
        assert {name: tensor.numel() for name, tensor in raw.items()} == {"a.weight": 5, "b": 1, "c": 1, "scalar": 1}
    else:  # as plain tensors, so that any reader of weights can use them
        assert all(torch.equal(raw[name], value) for name, value in given.items())


def test_the_first_entry_is_the_lowest_bit() -> None:
    mask = torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 0, 1]).bool()
    assert pack(mask).tolist() == [129, 2]
    assert torch.equal(unpack(pack(mask), (2, 5)), mask.reshape(2, 5))
    transposed = mask.reshape(2, 5).T
    assert torch.equal(unpack(pack(transposed), (5, 2)), transposed)


def test_counts() -> None:
    given = values()
    mask = Mask.of(given)
    assert mask.kept == {name: int(value.sum()) for name, value in given.items()}
    assert mask.entries == 47
    assert mask.density == pytest.approx(sum(int(value.sum()) for value in given.values()) / 47)
    soft = Mask.of(values("soft"))
    assert soft.density == pytest.approx(np.concatenate([v.numpy().ravel() for v in values("soft").values()]).mean())


def test_an_existing_file_is_not_replaced(tmp_path) -> None:
    path = Mask.of(values()).save(tmp_path / "mask.safetensors")
    before = path.read_bytes()
    with pytest.raises(OutputExistsError):
        Mask.of(values("soft")).save(path)
    assert path.read_bytes() == before
    Mask.of(values("soft")).save(path, overwrite=True)
    assert Mask.open(path).soft


def header(shapes: dict, version: int = 1) -> dict[str, str]:
    return {KEY: json.dumps({"format": version, "shapes": shapes, "info": {}})}


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ({"a": torch.ones(3)}, {}, "is no mask"),
        ({"a": torch.ones(3)}, {KEY: "{"}, "is no mask"),
        ({"a": torch.ones(3)}, {KEY: "[]"}, "is no mask"),
        ({"a": torch.ones(3)}, header({"a": [3]}, version=9), "another format"),
        ({"a": torch.ones(3)}, header({"b": [3]}), "is damaged"),
        ({"a": torch.ones(3)}, header({"a": [4]}), "a does not hold 4 entries"),
        ({"a": torch.zeros(2, dtype=torch.uint8)}, header({"a": [17]}), "a does not hold 17 entries"),
        ({"a": torch.zeros(3, dtype=torch.int64)}, header({"a": [3]}), "is damaged"),
        ({"a": torch.zeros(1, dtype=torch.uint8), "b": torch.ones(3)}, header({"a": [3], "b": [3]}), "is damaged"),
    ],
)
def test_files_that_are_no_masks(tmp_path, tensors, metadata, words) -> None:
    save_file(tensors, tmp_path / "mask.safetensors", metadata)
    with pytest.raises(ConfigurationError, match=words):
        Mask.open(tmp_path / "mask.safetensors")


def test_files_that_are_cut_off_or_missing(tmp_path) -> None:
    path = Mask.of(values()).save(tmp_path / "mask.safetensors")
    data = path.read_bytes()
    for size in (0, 4, 100, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ConfigurationError, match="damaged"):
            Mask.open(path)
    with pytest.raises(ConfigurationError, match="no such file"):
        Mask.open(tmp_path / "other")


def test_a_mask_is_for_one_model(tiny, tiny_folder, tmp_path) -> None:
    from expunge.models.fingerprint import fingerprint

    given = whole(tiny)
    mask = Mask.of(given, {"model": fingerprint(tiny_folder)})
    mask.check(tiny)
    Mask.of(given).check(tiny)  # one made by hand says nothing of its model
    with pytest.raises(ConfigurationError, match=r"for another model: model.norm.weight has shape none in the mask"):
        Mask.of({name: value for name, value in given.items() if name != "model.norm.weight"}).check(tiny)
    with pytest.raises(ConfigurationError, match=r"model.norm.weight has shape \(31,\) in the mask and \(32,\) in"):
        Mask.of({**given, "model.norm.weight": torch.ones(31).bool()}).check(tiny)
    with pytest.raises(ConfigurationError, match="more has shape"):
        Mask.of({**given, "more": torch.ones(1).bool()}).check(tiny)
    with pytest.raises(ConfigurationError, match="for another model"):
        mask.check(new_adapter(load(tiny_folder), 2))

    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigurationError, match="made for other weights"):
        mask.check(load(other))

"""Taking an inner patch off: exact where entries are disjoint, refused where they are shared."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from expunge.errors import PatchError
from expunge.patch import create, undo
from tests.patch.test_format import folder


def test_an_inner_patch_with_entries_of_its_own_is_undone_bit_by_bit(tmp_path: Path) -> None:
    """Three updates of disjoint entries in one tensor: without the first, the model is base + the other two."""
    torch.manual_seed(0)
    base = {"a": torch.randn(30, 4).bfloat16(), "b": torch.randn(8)}
    steps = [torch.zeros(30, 4).bfloat16() for _ in range(3)]
    for number, step in enumerate(steps):
        step[10 * number : 10 * number + 10] = torch.randn(10, 4).bfloat16()
    state, models = dict(base), [folder(tmp_path / "m0", base)]
    for number, step in enumerate(steps, start=1):
        state = {**state, "a": state["a"] + step}
        models.append(folder(tmp_path / f"m{number}", state))
    patches = [create(models[n], models[n + 1], tmp_path / f"p{n}", method=f"step{n}").path for n in range(3)]
    out = undo(patches[0], patches[1:], models[-1], tmp_path / "out")
    found = load_file(out / "model.safetensors")
    expected = base["a"].clone()
    expected[10:] = state["a"][10:]
    assert torch.equal(found["a"].view(torch.int16), expected.view(torch.int16))
    assert torch.equal(found["b"], base["b"])
    card = (out / "README.md").read_text()
    assert "step0" in card
    assert "step1" in card
    assert "may know again" in card
    with pytest.raises(PatchError, match="is not the model that"):
        undo(patches[0], patches[1:2], models[-1], tmp_path / "other")


def test_shared_entries_are_refused(tmp_path: Path) -> None:
    base = {"a": torch.arange(6.0)}
    first = {"a": base["a"] + torch.tensor([1.0, 1, 1, 0, 0, 0])}
    second = {"a": first["a"] + torch.tensor([0.0, 0, 1, 1, 1, 1])}
    models = [folder(tmp_path / f"m{n}", state) for n, state in enumerate((base, first, second))]
    patches = [create(models[n], models[n + 1], tmp_path / f"p{n}").path for n in range(2)]
    with pytest.raises(PatchError, match="changes 1 of the same entries"):
        undo(patches[0], patches[1:], models[-1], tmp_path / "out")
    assert not (tmp_path / "out").exists()

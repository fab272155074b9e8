"""Composed patches: the same bits as one after the other, norms by hand, and refusals."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from expunge.errors import OutputError, PatchError
from expunge.models import load, new_adapter, saving
from expunge.patch import apply, compose, create, revert
from tests.models.test_checkpoint import everything, nudge
from tests.patch.test_format import folder

WEIGHTS = "model.safetensors"


@pytest.fixture
def chain(tmp_path: Path) -> tuple[list[Path], list[Path]]:
    """Four models in a row and the three patches between them."""
    torch.manual_seed(0)
    state = {"a": torch.randn(40, 8), "b": torch.randn(30).bfloat16(), "c": torch.randn(16).half(), "d": torch.ones(3)}
    models = [folder(tmp_path / "m0", state)]
    for number, names in enumerate((["a", "b"], ["a", "c"], ["a", "b"]), start=1):
        state = dict(state)
        for name in names:
            some = torch.rand(state[name].shape) < (0.1 if number < 3 else 0.5)
            state[name] = torch.where(some, -state[name] * 3, state[name])
        models.append(folder(tmp_path / f"m{number}", state))
    pairs = pairwise(models)
    patches = [create(one, two, tmp_path / f"p{n}", method=f"step{n}").path for n, (one, two) in enumerate(pairs)]
    return models, patches


@pytest.mark.parametrize("with_base", [False, True])
def test_composed_equals_one_after_the_other(chain, tmp_path: Path, with_base: bool) -> None:
    models, patches = chain
    patch = compose(patches, tmp_path / "whole", base=models[0] if with_base else None)
    direct = create(models[0], models[-1], tmp_path / "direct")
    assert everything(apply(patch, models[0], tmp_path / "out")) == everything(models[-1])
    assert everything(revert(patch, models[-1], tmp_path / "back")) == everything(models[0])
    ours, theirs = load_file(patch.path), load_file(direct.path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert patch.manifest.method == "step0 + step1 + step2"
    assert [part["method"] for part in patch.manifest.info["composed"]] == ["step0", "step1", "step2"]
    assert patch.manifest.totals.entries_changed == direct.manifest.totals.entries_changed
    assert patch.manifest.totals.base_norm == direct.manifest.totals.base_norm
    if with_base:
        assert patch.manifest.changes == direct.manifest.changes
        assert patch.manifest.totals.change_norm == pytest.approx(direct.manifest.totals.change_norm, rel=1e-12)
    else:
        assert patch.manifest.changes["c"] == direct.manifest.changes["c"]  # one patch alone changes it
        assert patch.manifest.changes["a"].change_norm is None
        assert patch.manifest.totals.change_norm is None


def test_there_and_back_is_an_empty_patch(chain, tmp_path: Path) -> None:
    models, patches = chain
    back = create(models[1], models[0], tmp_path / "back")
    patch = compose([patches[0], back], tmp_path / "whole")
    assert patch.names == ()
    assert patch.manifest.totals.tensors_changed == 0
    assert patch.manifest.totals.change_norm == 0


def test_norms_with_the_base_by_hand(tmp_path: Path) -> None:
    values = [[3.0, 4.0], [3.0, 5.0], [0.0, 5.0]]
    models = [folder(tmp_path / str(n), {"w": torch.tensor(value)}) for n, value in enumerate(values)]
    patches = [create(models[n], models[n + 1], tmp_path / f"p{n}") for n in range(2)]
    patch = compose(patches, tmp_path / "whole", base=models[0])
    change = patch.manifest.changes["w"]
    assert (change.base_norm, change.max_change, change.changed) == (5.0, 3.0, 2)
    assert change.change_norm == pytest.approx(math.sqrt(10), rel=1e-15)


def test_patches_that_do_not_follow_are_refused(chain, tmp_path: Path) -> None:
    models, patches = chain
    for wrong, message in (
        (patches[:1], "at least two"),
        ([patches[0], patches[2]], r"p2 is not for the model that .*p0 makes"),
        ([patches[1], patches[0]], r"p0 is not for the model that .*p1 makes"),
        ([patches[0], patches[0]], "is not for the model"),
    ):
        with pytest.raises(PatchError, match=message):
            compose(wrong, tmp_path / "whole")
    with pytest.raises(PatchError, match=r"m1 is not the base of .*p0"):
        compose(patches, tmp_path / "whole", base=models[1])
    assert not (tmp_path / "whole").exists()
    compose(patches, tmp_path / "whole")
    with pytest.raises(OutputError, match="exists already"):
        compose(patches, tmp_path / "whole")


def test_lora_patches_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    loaded = new_adapter(load(tiny_folder), 2)
    nudge(loaded.model, "lora_")
    saving.save_model(loaded, tmp_path / "adapter")
    patch = create(tiny_folder, tmp_path / "adapter", tmp_path / "p")
    with pytest.raises(PatchError, match=r"p is a LoRA patch.*--merge"):
        compose([patch, patch], tmp_path / "whole")


def test_damage_in_one_of_them_is_seen(chain, tmp_path: Path) -> None:
    _, patches = chain
    state = load_file(patches[2])
    wrong = {name: value + (name == "a#values") for name, value in state.items()}
    with safe_open(patches[2], "pt") as opened:
        metadata = opened.metadata()
    save_file(wrong, patches[2], metadata=metadata)
    with pytest.raises(PatchError, match="is damaged"):
        compose(patches, tmp_path / "whole")

"""Every recipe is understood, and every method has one."""

from pathlib import Path

import pytest

from expunge.config import read_yaml
from expunge.methods import METHODS, Descent, method, name_of

# effective batches: WAGLE's 4, TOFU's 32, ours of 16 on adapters
BATCH = {
    "tofu": (4, 32), "wmdp": (4,), "text": (4,), "recommendation": (16,), "sequential": (16,), "correction": (16,),
}  # fmt: skip
RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe_is_understood_and_guarded(recipe) -> None:
    settings = read_yaml(recipe)
    made = method(settings.pop("method"), settings)
    if isinstance(made, Descent):
        assert made.stop_forget_nll is not None or made.stop_retain_rise is not None
        assert (made.mask is not None) == ("+" in recipe.stem)
    assert name_of(made) == recipe.stem
    assert made.batch_size * getattr(made, "accumulation", 1) in BATCH[recipe.parent.name]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_settings_said_to_be_the_fields_clip_gradients_as_the_field_does(recipe) -> None:
    """The field's results come from the Trainer of transformers, and WAGLE's release clips at 1 as well."""
    settings = read_yaml(recipe)
    made = method(settings.pop("method"), settings)
    comment = " ".join(line.strip("# ") for line in recipe.read_text(encoding="utf-8").splitlines() if line[:1] == "#")
    if (
        isinstance(made, Descent)
        and ("the field's settings" in comment or "WAGLE" in comment)
        and "of ours" not in comment
    ):
        assert made.max_grad_norm == 1.0
        assert made.clip_before_mask == (made.mask is not None)


def test_every_method_has_a_recipe() -> None:
    assert {recipe.stem.partition("+")[0] for recipe in RECIPES} == set(METHODS) - {"descent"}

"""Relearning: it brings memorization back, on examples it does not train on where asked so, and stops on its budget."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from expunge.errors import ConfigurationError
from expunge.evaluation.attacks import Scene, attacks, run
from expunge.evaluation.attacks.facts import FACTS
from expunge.evaluation.attacks.relearn import Relearn
from expunge.training import Constant, Finetuning


def relearn(**settings) -> Relearn:
    return attacks(["relearn"], {f"relearn.{name}": value for name, value in settings.items()})["relearn"]


def strengths(found: dict) -> list[float]:
    return [point["metrics"]["forget.extraction_strength"] for point in found["points"]]


def test_training_on_the_forget_set_brings_it_back(scene: Callable[..., Scene]) -> None:
    found = run("relearn", relearn(share=1.0, lr=5e-3, steps=40, batch_size=4), scene())
    assert [point["at"] for point in found["points"]] == [0, 1, 10, 40]
    assert [point["label"] for point in found["points"]][:2] == ["0 steps", "1 step"]
    assert strengths(found)[0] < 0.5
    assert strengths(found)[-1] > 0.95
    assert "trained on and measured" in found["notes"][0]
    assert found["examples"][0]["rouge_l"] == 1.0


def test_a_share_is_trained_on_and_the_rest_measured(scene: Callable[..., Scene]) -> None:
    given = scene()
    attack = relearn(share=0.5, steps=1)
    learned, tested = attack._split(given, _Notes())
    assert {one.id for one in learned} | {one.id for one in tested} == {"f0", "f1", "f2", "f3"}
    assert len(learned) == len(tested) == 2
    found = run("relearn", attack, given)
    assert "trained on 2 of 4 forget examples, measured on 2 others" in found["notes"]
    before = given.measure({"forget": tested})["forget"].columns["probability"].mean()
    assert found["points"][0]["metrics"]["forget.probability"] == pytest.approx(before)


class _Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []


def test_a_subject_stands_on_one_side(scene: Callable[..., Scene]) -> None:
    plain = scene().sets["forget"]
    named = tuple(replace(one, subject="Ada" if index < 3 else "Bo") for index, one in enumerate(plain))
    for seed in range(4):
        learned, tested = relearn(seed=seed)._split(scene(sets={"forget": named}, known={"forget": named}), _Notes())
        assert {one.subject for one in learned}.isdisjoint({one.subject for one in tested})
        assert len(learned) + len(tested) == 4


def test_the_curve_is_that_of_plain_fine_tuning(scene: Callable[..., Scene]) -> None:
    given = scene()
    found = run("relearn", relearn(on="retain", steps=3, at=[2], batch_size=2), given)
    assert [point["at"] for point in found["points"]] == [0, 2, 3]
    trained = scene()
    recipe = Finetuning(rate=Constant(), lr=1e-4, steps=3, batch_size=2, weight_decay=0.0, checkpoint_every=0)
    recipe(trained.loaded, trained.known["retain"], trained.encoder)
    expected = trained.measure()["forget"].columns["probability"].mean()
    assert found["points"][2]["metrics"]["forget.probability"] == pytest.approx(expected, rel=1e-9)
    two = run("relearn", relearn(on="retain", steps=2, batch_size=2), scene())
    assert (
        two["points"][-1]["metrics"] == found["points"][1]["metrics"]
    )  # a shorter run is the beginning of a longer one


def test_unrelated_facts_and_a_file_of_ones_own(scene: Callable[..., Scene], tmp_path, asked) -> None:
    assert run("relearn", relearn(on="unrelated", steps=1), scene())["points"][1]["at"] == 1
    assert len({example.key for example in FACTS}) == len(FACTS)
    file = tmp_path / "near.jsonl"
    file.write_text('{"prompt": "Where does Per Lome work?", "response": "In a bakery."}\n')
    near = run("relearn", relearn(on="related", data=str(file), steps=1), scene())
    assert near["settings"]["data"] == str(file)
    file.write_text('{"prompt": "Where was Ada Lome born?", "response": "Ada Lome was born in Tarn."}\n')
    with pytest.raises(ConfigurationError, match="1 examples stand in the forget set"):
        run("relearn", relearn(on="related", data=str(file), steps=1), scene())
    with pytest.raises(ConfigurationError, match="give --retain"):
        run("relearn", relearn(on="retain"), scene(known={"forget": asked.forget}))


def test_the_budget_ends_it_with_a_point_and_whole_weights(scene: Callable[..., Scene]) -> None:
    given = scene()
    before = [param.detach().clone() for param in given.loaded.model.parameters()]
    found = run("relearn", relearn(steps=50, seconds=1e-6), given)
    assert [point["at"] for point in found["points"]] == [0, 1]
    assert any("used up after 1 of 50 steps" in note for note in found["notes"])
    assert all(torch.equal(*pair) for pair in zip(before, given.loaded.model.parameters(), strict=True))


def test_training_that_diverges_keeps_what_was_measured(scene: Callable[..., Scene]) -> None:
    given = scene()
    before = [param.detach().clone() for param in given.loaded.model.parameters()]
    found = run("relearn", relearn(optimizer="sgd", lr=1e30, steps=20), given)
    assert len(found["points"]) >= 1
    assert any(note.startswith("stopped: ") for note in found["notes"])
    assert all(torch.equal(*pair) for pair in zip(before, given.loaded.model.parameters(), strict=True))

"""Each detector catches a failure planted for it, and keeps quiet where there is none."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from expunge.data import Encoder
from expunge.evaluation import Evaluation, evaluate, request_suite
from expunge.evaluation.comparison import paired
from expunge.evaluation.detectors import findings, never_memorised
from expunge.models import Loaded
from expunge.request import Example, Request
from tests.evaluation.test_comparison import made

N = 40
GOOD = {"probability": 0.95, "extraction_strength": 0.9, "exact_memorization": 0.97, "rouge_l": 0.95, "nll": 0.05}
GONE = {"probability": 0.1, "extraction_strength": 0.05, "exact_memorization": 0.4, "rouge_l": 0.3, "nll": 2.3}


def model(
    forget: dict[str, float], retain: dict[str, float], *, auc: float, seed: int = 0, **more: float
) -> Evaluation:
    """An evaluation around the given numbers, with a little noise on each example."""
    noise = np.random.default_rng(seed)
    sets = {
        name: {key: value + noise.uniform(-0.02, 0.02, N) for key, value in numbers.items()}
        for name, numbers in {"forget": forget, "retain": retain}.items()
    }
    found = made(sets, **{"mia.min_k.auc": auc}, **more)
    found.intervals["mia.min_k.auc"] = (auc - 0.08, auc + 0.08)
    return found


ORIGINAL = model(GOOD, GOOD, auc=0.99, seed=1)
RETRAINED = model(GONE, GOOD, auc=0.5, seed=2)


def names(one: Evaluation, role: str = "unlearned", **options: Any) -> set[str]:
    controls = {"original": ORIGINAL, "retrained": RETRAINED}
    controls.pop(role, None)
    against = {name: paired(one, other) for name, other in controls.items()}
    return {finding.name for finding in findings(role, one, controls, against, **options)}


def test_controls_and_a_good_model_are_left_alone() -> None:
    assert names(ORIGINAL, "original") == set()
    assert names(RETRAINED, "retrained") == set()
    assert names(model(GONE, GOOD, auc=0.45, seed=3)) == set()


def test_nothing_changed() -> None:
    assert names(ORIGINAL) == {"no_op"}
    assert names(model(GOOD, GOOD, auc=0.98, seed=4)) == {"no_op"}  # within noise
    assert names(model(GONE, GOOD, auc=0.5, seed=3), same_weights=True) == {"no_op"}
    rounded = copy.deepcopy(ORIGINAL)
    for row in rounded.examples["forget"]:
        row["nll"] += 1e-7
    assert names(rounded) == {"no_op"}


def test_forgotten_too_much() -> None:
    too_much = model(GONE, GOOD, auc=0.05, seed=5)
    assert names(too_much) == {"over_forgotten"}
    wide = model(GONE, GOOD, auc=0.38, seed=5)
    wide.intervals["mia.min_k.auc"] = (0.2, 0.56)  # the retrained model's .5 lies inside
    assert names(wide) == set()
    (alone,) = findings("unlearned", too_much, {}, {})
    assert "0.5, that of a test that cannot tell" in alone.text


def test_damage_and_gibberish() -> None:
    assert names(model(GONE, GONE, auc=0.5, seed=6)) == {"damaged"}
    for measure, value in (("repetition", 0.8), ("empty", 0.5), ("gibberish", 0.9), ("fluency", 900.0)):
        fine = model(GONE, GOOD, auc=0.5, seed=7, **{f"forget.{measure}": value})
        original = Evaluation(
            "made", {**ORIGINAL.metrics, f"forget.{measure}": min(value / 20, 30.0)}, {}, ORIGINAL.examples
        )
        (found,) = findings("unlearned", fine, {"original": original}, {"original": paired(fine, original)})
        assert found.name == "gibberish"
        assert "forget set only" in found.text
        assert found.evidence["now"] == {f"forget.{measure}": value}


def test_what_was_never_memorised() -> None:
    unknown = model(GONE, GOOD, auc=0.52, seed=8)
    assert names(unknown, "original") == {"never_memorised"}
    faint = {**GONE, "probability": 0.02}
    assert never_memorised(model(faint, GOOD, auc=0.52)) is not None
    assert never_memorised(model(GONE, GOOD, auc=0.5)) is None  # likely enough to be known; nothing to compare with
    unseen = {f"holdout.{name}": GONE[name] for name in ("extraction_strength", "exact_memorization", "probability")}
    found = never_memorised(model(GONE, GOOD, auc=0.52, **unseen))
    assert found is not None
    assert "no better than the holdout set" in found.text
    assert never_memorised(model(GONE, GOOD, auc=0.9, **unseen)) is None  # a test sees that it knows them
    assert never_memorised(model(GOOD, GOOD, auc=0.52, **unseen)) is None  # it recites them, unlike the holdout set
    assert never_memorised(ORIGINAL) is None
    assert never_memorised(Evaluation("wmdp", {"wmdp.accuracy": 0.5})) is None


@pytest.fixture
def learned(tiny: Loaded) -> tuple[Loaded, Request]:
    """A tiny model that has learned twelve people by heart, and the request to forget half of them."""
    people = [
        Example(prompt=f"Where was {name} born?", response=f"{name} was born in {town}.", id=name)
        for name, town in PEOPLE
    ]
    encoder, examples = Encoder(tiny.tokenizer), people
    batch = encoder.examples(examples)
    optimizer = torch.optim.AdamW(tiny.model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        for item in batch:
            ids = torch.tensor([item.ids])
            labels = ids.clone()
            labels[:, : item.start] = -100
            (tiny.model(input_ids=ids, labels=labels).loss / len(batch)).backward()
        optimizer.step()
    return tiny, Request(tuple(people[:6]), tuple(people[6:]))


PEOPLE = [
    (f"{first} {last}", town)
    for first, last, town in zip(
        ("Ada", "Bo", "Una", "Per", "Ilse", "Tarn", "Selm", "Ada", "Bo", "Una", "Per", "Ilse"),
        ("Lome", "Hurst", "Lome", "Hurst", "Lome", "Hurst") * 2,
        ("Tarn", "Selm", "Paris", "France", "Selm", "Tarn", "Paris", "Selm", "Tarn", "France", "Selm", "Paris"),
        strict=True,
    )
]


def test_a_destroyed_and_an_untouched_model(learned: tuple[Loaded, Request]) -> None:
    loaded, request = learned
    suite = request_suite(request, max_new_tokens=16)
    original = evaluate(loaded, suite)
    assert original.metrics["forget.extraction_strength"] > 0.5
    untouched = evaluate(Loaded(copy.deepcopy(loaded.model), loaded.tokenizer, loaded.folder), suite)
    wrecked = copy.deepcopy(loaded.model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrecked.parameters():
            parameter.normal_(0, 0.1)
    destroyed = evaluate(Loaded(wrecked, loaded.tokenizer, loaded.folder), suite)
    controls = {"original": original}
    for one, expected in ((untouched, "no_op"), (destroyed, "damaged")):
        found = findings("unlearned", one, controls, {"original": paired(one, original)})
        assert expected in {finding.name for finding in found}, found
    assert never_memorised(destroyed) is not None

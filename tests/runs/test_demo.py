"""The demo with a small part of its training: the whole way is walked, the premise is checked."""

import json

import pytest

from expunge.errors import ConfigurationError, ExpungeError
from expunge.methods import METHODS
from expunge.runs import Finetuning, demo
from expunge.runs.demo import METHODS as SHOWN


@pytest.fixture
def short(monkeypatch):
    """Two steps of each training, and a premise that holds for what comes out."""
    import sys

    module = sys.modules["expunge.runs.demo"]
    quick = Finetuning(steps=2, batch_size=8, lr=1e-3, checkpoint_every=0)
    monkeypatch.setattr(module, "PRETRAINING", quick)
    monkeypatch.setattr(module, "FINETUNING", quick)
    monkeypatch.setattr(module, "MAX_NEW_TOKENS", 3)
    return module


def test_the_premise_is_checked_and_nothing_is_left(short, tmp_path) -> None:
    with pytest.raises(ExpungeError, match=r"premise failed.*must have memorised") as caught:
        demo(tmp_path / "demo", methods={})
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_two_seeds_two_methods(short, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(short, "_check", lambda evaluations: None)
    methods = {"graddiff": {"steps": 1}, "ngdiff": {"steps": 1}}
    results = demo(tmp_path / "demo", seeds=(3, 4), methods=methods)
    assert [(run["seed"], run["method"]) for run in results["runs"]] == [
        (seed, name) for seed in (3, 4) for name in ("original", "retrained", "graddiff", "ngdiff")
    ]
    assert results == json.loads((tmp_path / "demo" / "results.json").read_text())
    names = {str(file.relative_to(tmp_path / "demo")) for file in (tmp_path / "demo").rglob("*") if file.is_file()}
    expected = {"report.html", "run.json", "seed3/data/forget.jsonl", "seed4/patches/ngdiff.safetensors"}
    assert expected | {"seed3/original/model.safetensors", "seed3/retrained/tokenizer.json"} <= names


def test_the_leaderboard_shows_the_methods_it_must() -> None:
    assert {"gradascent", "graddiff", "npo", "ngdiff", "npo+wagle", "taskvector", "perta"} <= set(SHOWN)
    assert {name.partition("+")[0] for name in SHOWN} <= set(METHODS)


def test_no_seed_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="at least one seed"):
        demo(tmp_path / "demo", seeds=())

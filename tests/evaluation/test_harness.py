"""Tasks of lm-eval: what is asked of it and made of its answer (a stand-in), without it, and the real one where it is."""

import builtins
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from expunge.errors import ConfigurationError
from expunge.evaluation import evaluate
from expunge.evaluation.suites import harness
from expunge.models import Loaded
from expunge.reporting import render_table
from expunge.runs import evaluate_model, make_suite

ANSWER = {
    "hellaswag": {
        "alias": "hellaswag",
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "acc_norm,none": 0.625,
        "acc_norm_stderr,none": "N/A",
    },
    "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": 0.05},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for lm-eval; what it was called with."""
    calls: list[dict[str, Any]] = []

    def simple_evaluate(**given: Any) -> dict[str, Any]:
        calls.append(given)
        if "unknown" in given["tasks"]:
            raise KeyError("Tasks not found: unknown")
        return {"results": ANSWER}

    def module(name: str, **members: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    module("lm_eval", simple_evaluate=simple_evaluate, __version__="0.0-stand-in")
    module("lm_eval.models")
    module("lm_eval.models.huggingface", HFLM=lambda **given: given)
    module("lm_eval.tasks", TaskManager=lambda **given: given)
    return calls


def test_metrics_intervals_and_notes(tiny: Loaded, asked: list[dict[str, Any]]) -> None:
    result = evaluate(tiny, harness(["hellaswag", " gsm8k", "hellaswag"], shots=3, limit=7), batch_size=4)
    assert result.metrics == {"hellaswag.acc": 0.5, "hellaswag.acc_norm": 0.625, "gsm8k.exact_match_strict_match": 0.25}
    assert result.intervals["hellaswag.acc"] == pytest.approx((0.5 - 0.196, 0.5 + 0.196))
    assert "hellaswag.acc_norm" not in result.intervals
    assert any("lm-eval 0.0-stand-in with 3 solved" in note for note in result.notes)
    assert any("first 7 examples" in note for note in result.notes)
    (call,) = asked
    assert (call["tasks"], call["num_fewshot"], call["limit"]) == (["hellaswag", "gsm8k"], 3, 7)
    assert call["model"]["pretrained"] is tiny.model
    assert call["model"]["batch_size"] == 4


def test_a_command_shows_the_tasks_columns(tiny_folder: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    suite = make_suite("harness", tasks=["hellaswag"], data=tmp_path)
    results = evaluate_model(tiny_folder, suite, out=tmp_path / "r.json")
    assert asked[0]["task_manager"] == {"include_path": str(tmp_path)}
    assert asked[0]["num_fewshot"] is None
    headings = [str(column.header) for column in render_table(results).columns]
    assert "hellaswag\nacc" in headings
    assert "harness accuracy" in (tmp_path / "r.html").read_text()


def test_an_unknown_task_is_named(tiny: Loaded, asked: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigurationError, match=r"could not run unknown: .*Tasks not found"):
        evaluate(tiny, harness(["unknown"]))
    with pytest.raises(ConfigurationError, match="name some"):
        harness([" "])
    assert len(asked) == 1


def test_without_it_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'expunge\[harness\]'"):
        make_suite("harness", tasks=["hellaswag"])


def test_it_is_imported_only_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def watched(name: str, *rest: Any, **more: Any) -> Any:
        assert not name.startswith("lm_eval")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", watched)
    monkeypatch.delitem(sys.modules, "expunge.evaluation.harness", raising=False)
    real("expunge.evaluation.harness")


def test_the_real_harness_on_a_task_of_ones_own(tiny: Loaded, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = [
        {"q": "Where was Ada Lome born?", "options": ["in Tarn", "in Selm"], "label": index % 2} for index in range(4)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "t.yaml").write_text(
        f"task: own\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/t.jsonl}}}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{options}}'\ndoc_to_target: label\n"
        "metric_list: [{metric: acc}]\n"
    )
    result = evaluate(tiny, harness(["own"], folder=tmp_path))
    assert result.metrics["own.acc"] == 0.5  # the same option every time, right half of the time


def test_intervals_of_accuracies_stay_within_0_and_1() -> None:
    from scipy.stats import binomtest

    from expunge.evaluation.harness import _metrics

    error = (2 / 3 * 1 / 3 / 2) ** 0.5  # of 2 right among 3, as lm-eval gives it
    values = {"acc,none": 2 / 3, "acc_stderr,none": error, "acc_norm,none": 1.0, "acc_norm_stderr,none": 0.0}
    found, _ = _metrics({"task": values, "group": {"acc,none": 0.66, "acc_stderr,none": 0.33}}, {"task": 3})
    exact = binomtest(2, 3).proportion_ci()
    assert found["task.acc"][1] == pytest.approx((exact.low, exact.high))
    assert found["task.acc_norm"][1] == pytest.approx((0.025 ** (1 / 3), 1))
    low, high = found["group.acc"][1]  # ± 1.96 standard errors would reach from .01 to 1.3
    assert 0 <= low < 0.66 < high <= 1

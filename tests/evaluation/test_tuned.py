"""Tuned on and reported on: what is found, refused, left out and said."""

import json
from pathlib import Path

import pytest

from expunge import runs
from expunge.errors import ConfigurationError
from expunge.evaluation import tuned
from expunge.evaluation.suites import Choice, Suite, Writing, request_suite
from expunge.methods import Context, method, tuned_on
from expunge.models import Loaded
from expunge.request import Example, Request, read_examples
from tests.conftest import FORGET


def people(count: int, name: str = "x") -> tuple[Example, ...]:
    return tuple(Example(prompt=f"{name} {index}?", response="yes", wrong_responses=("no",)) for index in range(count))


def test_marks_are_read_from_examples_results_and_runs(tmp_path: Path) -> None:
    examples = people(3)
    lines = tmp_path / "tuning.jsonl"
    lines.write_text("".join(json.dumps(example.record()) + "\n" for example in examples))
    marks = {example.mark for example in examples}
    assert tuned.read_marks(lines) == marks
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"tuned_on": ["a"], "runs": [{"tuned_on": ["b"]}, {"method": "npo"}]}))
    assert tuned.read_marks(results) == {"a", "b"}
    (tmp_path / "run.json").write_text(json.dumps({"command": "unlearn", "tuned_on": ["c"]}))
    (tmp_path / "model").mkdir()
    assert tuned.beside(tmp_path / "model") == {"c"}
    assert tuned.beside(tmp_path / "elsewhere") == frozenset()
    results.write_text(json.dumps({"runs": []}))
    with pytest.raises(ConfigurationError, match="names no examples"):
        tuned.read_marks(results)


def test_they_are_refused_or_left_out_everywhere() -> None:
    forget, retain = people(6), people(4, "y")
    suite = Suite(
        "s",
        {"forget": forget, "retain": retain},
        choices={"c": Choice(forget)},
        writings={"forget.verbmem": Writing(forget, 4)},
    )
    marks = {forget[0].mark, forget[3].mark}
    with pytest.raises(ConfigurationError, match=r"2 of 6 forget examples.*--leave-out-tuned"):
        tuned.apart(suite, marks, leave_out=False)
    rest = tuned.apart(suite, marks, leave_out=True)
    kept = tuple(forget[index] for index in (1, 2, 4, 5))
    assert rest.sets == {"forget": kept, "retain": retain}
    assert rest.choices["c"].examples == rest.writings["forget.verbmem"].examples == kept
    assert "left out" in rest.notes[-1]
    assert "2 of 6 forget" in rest.notes[-1]


def test_other_examples_are_reported_and_too_few_refused() -> None:
    forget = people(3)
    suite = Suite("s", {"forget": forget})
    assert tuned.apart(suite, (), leave_out=False) is suite
    assert "none of them" in tuned.apart(suite, ["elsewhere"], leave_out=False).notes[0]
    two = [example.mark for example in forget[:2]]
    assert not tuned.leaves_enough(suite, two)
    with pytest.raises(ConfigurationError, match="too few are left"):
        tuned.apart(suite, two, leave_out=True)


def test_a_task_vectors_search_says_what_it_will_be_tuned_on() -> None:
    request = Request(people(8), people(9, "y"))
    searching = method("taskvector", {"base": "b", "validation": 0.25})
    assert len(tuned_on(searching, request)) == 2 + 2
    assert tuned_on(searching, request) == tuned_on(searching, request)
    assert tuned_on(method("taskvector", {"base": "b", "alpha": 1.0}), request) == ()
    assert tuned_on(method("npo"), request) == ()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, request_files: tuple[Path, Path]) -> Path:
    """An unlearned model whose α was chosen on half of the forget set."""
    out = tmp_path_factory.mktemp("made") / "run"
    settings = {"base": str(tiny_folder), "steps": 2, "lr": 1e-3, "alphas": [1.0], "refine": 0}
    runs.unlearn(tiny_folder, *request_files, out=out, method="taskvector", settings=settings, max_new_tokens=4)
    return out


def test_a_run_reports_on_the_others_and_records_which(made: Path) -> None:
    results, record = (json.loads((made / name).read_text()) for name in ("results.json", "run.json"))
    known = {Example(prompt=row["prompt"], response=row["response"]).mark for row in FORGET}
    assert len(known & set(results["tuned_on"])) == 2
    assert record["tuned_on"] == results["tuned_on"] == sorted(results["runs"][-1]["tuned_on"])
    reported = {
        Example(prompt=r["prompt"], response=r["response"]).mark for r in results["runs"][-1]["examples"]["forget"]
    }
    assert reported == known - set(results["tuned_on"])
    assert any("left out" in note for note in results["runs"][-1]["notes"])


def test_an_evaluation_of_that_model_refuses_or_leaves_out(
    made: Path, request_files: tuple[Path, Path], tmp_path: Path
) -> None:
    suite = request_suite(Request.read(*request_files), max_new_tokens=4)
    with pytest.raises(ConfigurationError, match="2 of 4 forget examples"):
        runs.evaluate_model(made, suite, out=tmp_path / "r.json", report=False)
    assert not (tmp_path / "r.json").exists()
    results = runs.evaluate_model(made, suite, out=tmp_path / "r.json", report=False, leave_out_tuned=True)
    assert len(results["runs"][-1]["examples"]["forget"]) == 2
    assert len(results["tuned_on"]) == 4


def test_a_file_of_tuning_examples_counts_too(
    tiny_folder: Path, request_files: tuple[Path, Path], tmp_path: Path
) -> None:
    request = Request.read(*request_files)
    tuning, reported = request.split(0.5)
    file = tmp_path / "tuning.jsonl"
    file.write_text("".join(json.dumps(example.record()) + "\n" for example in tuning.forget))
    suite = request_suite(request, max_new_tokens=4)
    with pytest.raises(ConfigurationError, match="2 of 4 forget examples"):
        runs.evaluate_model(tiny_folder, suite, out=tmp_path / "r.json", tuned_on=file)
    results = runs.evaluate_model(
        tiny_folder, suite, out=tmp_path / "r.json", tuned_on=file, leave_out_tuned=True, report=False
    )
    assert {row["prompt"] for row in results["runs"][-1]["examples"]["forget"]} == {e.prompt for e in reported.forget}


def test_a_stop_rule_says_which_examples_set_it(tiny: Loaded, request_files: tuple[Path, Path]) -> None:
    holdout = people(3, "z")
    request = Request(read_examples(request_files[0]), read_examples(request_files[1]), holdout)
    chosen = method("graddiff", {"steps": 1, "stop_forget_nll": "holdout"})
    history = chosen(tiny, request, Context(tiny.encoder(512)))
    assert history.found["stopped_by"] == {"holdout": sorted(example.mark for example in holdout)}
    assert any("3 holdout examples set where to stop" in note for note in history.notes)
    plain = method("graddiff", {"steps": 1})(tiny, request, Context(tiny.encoder(512)))
    assert "stopped_by" not in plain.found

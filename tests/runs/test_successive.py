"""Requests one after another and ever larger ones: from which model, on what, measured how, and gone on after a stop."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from expunge import runs
from expunge.errors import ConfigurationError, OutputExistsError
from expunge.evaluation import evaluate
from expunge.evaluation.suites import Suite
from expunge.methods import Context, method
from expunge.models import load
from expunge.models.fingerprint import fingerprint
from expunge.reporting import render_report
from expunge.request import Request, read_examples
from expunge.runs.successive import successive
from tests.conftest import FORGET

SETTINGS = {"steps": 2, "lr": 1e-2, "batch_size": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("requests")
    for number, rows in enumerate((FORGET[:2], FORGET[2:]), start=1):
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [folder / "1.jsonl", folder / "2.jsonl"]


@pytest.fixture(scope="module")
def options(request_files: tuple[Path, Path]) -> dict:
    return {"retain": request_files[1], "method": "graddiff", "settings": SETTINGS, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, files: list[Path], options: dict) -> Path:
    out = tmp_path_factory.mktemp("successive") / "run"
    successive(tiny_folder, files, out=out, **options)
    return out


def by_hand(folder: Path, forget: list[Path], retain: Path, out: Path) -> str:
    """The fingerprint of what the method makes of a model, called directly."""
    loaded = load(folder)
    examples = tuple(example for path in forget for example in read_examples(path))
    method("graddiff", SETTINGS)(loaded, Request(examples, read_examples(retain)), Context(loaded.encoder(512)))
    loaded.model.save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)
    return fingerprint(out)


def test_each_request_starts_from_the_last_result(
    done: Path, tiny_folder: Path, files: list[Path], request_files: tuple[Path, Path], tmp_path: Path
) -> None:
    first = by_hand(tiny_folder, files[:1], request_files[1], tmp_path / "1")
    second = by_hand(tmp_path / "1", files[1:], request_files[1], tmp_path / "2")
    assert [fingerprint(done / step / "model") for step in ("1", "2")] == [first, second]


def test_growing_ones_start_from_the_original_with_all_so_far(
    tiny_folder: Path, files: list[Path], request_files: tuple[Path, Path], options: dict, tmp_path: Path
) -> None:
    nested = tmp_path / "both.jsonl"  # MUSE's files hold those before them
    nested.write_text(files[0].read_text() + files[1].read_text())
    results = successive(tiny_folder, [files[0], nested], out=tmp_path / "run", kind="scalability", **options)
    assert fingerprint(tmp_path / "run/2/model") == by_hand(tiny_folder, files, request_files[1], tmp_path / "hand")
    assert [point["examples"] for point in results["successive"]["points"]] == [0, 2, 4]


def test_measured_after_each_on_everything_so_far(done: Path, request_files: tuple[Path, Path]) -> None:
    results = json.loads((done / "results.json").read_text())
    assert [run["model"] for run in results["runs"]] == ["original", "unlearned", "unlearned"]
    last = results["runs"][-1]
    assert {row["prompt"] for row in last["examples"]["forget"]} == {row["prompt"] for row in FORGET}
    assert len(results["runs"][1]["examples"]["forget"]) == 2
    whole = evaluate(
        load(done / "2"),
        Suite("x", {"forget": read_examples(request_files[0]), "retain": read_examples(request_files[1])}),
        generate=False,
    )
    points = results["successive"]["points"]
    assert points[-1]["metrics"]["forget.probability"] == pytest.approx(whole.metrics["forget.probability"], rel=1e-6)
    of_first = [row["probability"] for row in whole.examples["forget"][:2]]
    assert last["metrics"]["request_1.probability"] == pytest.approx(sum(of_first) / 2, rel=1e-6)
    assert [point["requests"] for point in points] == [0, 1, 2]
    assert [run["settings"].get("requests") for run in results["runs"][1:]] == [1, 2]
    page = (done / "report.html").read_text()
    assert "Request after request" in page
    assert page.count('<th scope="row">1 request</th>') == 1
    assert not done.with_name("run.parts").exists()


def test_a_stopped_run_goes_on_from_its_finished_parts(
    done: Path, tiny_folder: Path, files: list[Path], options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["expunge.runs.successive"]
    called = []

    def failing(*args, **kwargs):
        called.append(kwargs["out"].name)
        if kwargs["out"].name == "2":
            raise KeyboardInterrupt
        return runs.unlearn(*args, **kwargs)

    monkeypatch.setattr(module, "unlearn", failing)
    with pytest.raises(KeyboardInterrupt):
        successive(tiny_folder, files, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(module, "unlearn", lambda *a, **k: (called.append(k["out"].name), runs.unlearn(*a, **k))[1])
    results = successive(tiny_folder, files, out=tmp_path / "run", resume=True, **options)
    assert called == ["1", "2", "2"]
    whole = json.loads((done / "results.json").read_text())
    for run, expected in zip(results["runs"], whole["runs"], strict=True):
        assert run["metrics"] == pytest.approx(expected["metrics"])


def test_parts_made_otherwise_are_not_taken_up(
    done: Path, tiny_folder: Path, files: list[Path], options: dict, tmp_path: Path
) -> None:
    (tmp_path / "run.parts").mkdir()
    shutil.copytree(done / "1", tmp_path / "run.parts" / "1")
    other = {**options, "settings": {**SETTINGS, "lr": 2e-2}}
    with pytest.raises(ConfigurationError, match=r"What differs: lr \(0.01 then, 0.02 now\)"):
        successive(tiny_folder, files, out=tmp_path / "run", resume=True, **other)
    with pytest.raises(ConfigurationError, match="What differs: forget data"):
        successive(tiny_folder, files[::-1], out=tmp_path / "run", resume=True, **options)


def test_a_fixed_suite_is_the_same_at_every_step(
    tiny_folder: Path, files: list[Path], request_files: tuple[Path, Path], options: dict, tmp_path: Path
) -> None:
    suite = Suite("fixed", {"forget": read_examples(request_files[0])}, max_new_tokens=4)
    other = tmp_path / "gold"
    loaded = load(tiny_folder)
    with torch.no_grad():
        next(loaded.model.parameters()).mul_(1.5)
    loaded.model.save_pretrained(other)
    loaded.tokenizer.save_pretrained(other)
    results = successive(tiny_folder, files, out=tmp_path / "run", suite=suite, reference=other, **options)
    assert [run["model"] for run in results["runs"]] == ["original", "retrained", "unlearned", "unlearned"]
    assert all(len(run["examples"]["forget"]) == 4 for run in results["runs"])
    assert all("retrained" in run["against"] for run in results["runs"][2:])


def test_what_cannot_be(tiny_folder: Path, files: list[Path], done: Path, options: dict) -> None:
    with pytest.raises(ConfigurationError, match="at least twice"):
        successive(tiny_folder, files[:1], out=done.with_name("one"), **options)
    with pytest.raises(OutputExistsError):
        successive(tiny_folder, files, out=done, **options)
    results = json.loads((done / "results.json").read_text())
    results["successive"]["points"][0]["requests"] = -1
    with pytest.raises(ConfigurationError, match=r"points\[0\].requests must be a whole number"):
        render_report(results)


def test_a_finished_series_takes_another_request(
    tiny_folder: Path, files: list[Path], options: dict, request_files: tuple[Path, Path], tmp_path: Path, monkeypatch
) -> None:
    """The third request was in the retain set until now; the first two steps are kept, everything is measured again."""
    from tests.conftest import RETAIN

    third, rest, out = tmp_path / "3.jsonl", tmp_path / "rest.jsonl", tmp_path / "run"
    third.write_text(json.dumps(RETAIN[0]) + "\n")
    rest.write_text("".join(json.dumps(row) + "\n" for row in RETAIN[1:]))
    successive(tiny_folder, files, out=out, **options)
    before = [fingerprint(out / step / "model") for step in ("1", "2")]
    with pytest.raises(ConfigurationError, match="holds 2 requests"):
        successive(tiny_folder, files, out=out, resume=True, **options)
    with pytest.raises(ConfigurationError, match="What differs: forget data"):
        successive(tiny_folder, [third, files[1], files[0]], out=out, resume=True, **options | {"retain": rest})
    shutil.rmtree(out.with_name("run.parts"))
    called = []
    module = sys.modules["expunge.runs.successive"]
    monkeypatch.setattr(module, "unlearn", lambda *a, **k: (called.append(k["out"].name), runs.unlearn(*a, **k))[1])
    results = successive(tiny_folder, [*files, third], out=out, resume=True, **options | {"retain": rest})
    assert called == ["3"]
    assert [fingerprint(out / step / "model") for step in ("1", "2")] == before
    assert fingerprint(out / "3" / "model") == by_hand(out / "2" / "model", [third], rest, tmp_path / "hand")
    assert [point["requests"] for point in results["successive"]["points"]] == [0, 1, 2, 3]
    each = {
        (point["request"], point["after"]): (point["value"], point["original"])
        for point in results["successive"]["requests"]
        if point["metric"] == "probability"
    }
    assert sorted(each) == [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)]
    for (request, after), (value, original) in each.items():
        suite = Suite("x", {"forget": read_examples([*files, third][request - 1])})
        for folder, expected in ((out / str(after), value), (tiny_folder, original)):
            measured = evaluate(load(folder), suite, generate=False).metrics["forget.probability"]
            assert measured == pytest.approx(expected, rel=1e-6)
    page = (out / "report.html").read_text()
    assert "Each request by itself" in page
    assert page.count('<th scope="col">After ') == 3
    assert all(run["against"]["original"] for run in results["runs"] if run["model"] == "unlearned")
    assert not out.with_name("run.parts").exists()

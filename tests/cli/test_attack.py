"""`expunge attack` from end to end: what it writes, what it adds to, and what it says when it cannot."""

import json
from pathlib import Path

import pytest

from expunge.reporting import read_results
from tests.cli.test_commands import run  # noqa: F401
from tests.conftest import build_model

SMALL = {
    "relearn": "steps=1", "sample": "n=2", "prune": "shares=[0.5]", "merge": "weights=[0.5]",
    "translate": "languages=[Polish]", "prefill": "words=[1]",
}  # fmt: skip


def quick(*kinds: str) -> list[str]:
    """Settings that make these attacks short."""
    return ["--max-new-tokens", "4", *(word for kind in kinds for word in ("--set", f"{kind}.{SMALL[kind]}"))]


@pytest.fixture
def base(tiny_folder: Path, request_files: tuple[Path, Path]) -> list:
    forget, retain = request_files
    return ["attack", "--model", tiny_folder, "--forget", forget, "--retain", retain]


def attacked(file: Path) -> dict[str, list[str]]:
    return {entry["model"]: [one["kind"] for one in entry.get("attacks", [])] for entry in read_results(file)["runs"]}


def test_all_that_can_be_run_is_and_the_rest_is_named(run, base, tmp_path) -> None:  # noqa: F811
    out = tmp_path / "board"
    code, printed, err = run(*base, "--out", out, *quick("relearn", "sample", "prune", "prefill", "translate"))
    assert code == 0, err
    assert "merge is left out: it needs the model before unlearning: give --original" in " ".join(err.split())
    kinds = ["relearn", "quantize", "sample", "prefill", "paraphrase", "fewshot", "jailbreak", "translate", "prune"]
    assert attacked(out / "results.json") == {"unlearned": kinds}
    assert all(kind in printed for kind in kinds)
    assert sorted(item.name for item in out.iterdir()) == ["report.html", "report.md", "results.json"]
    entry = json.loads((out / "results.json").read_text())["runs"][0]
    assert (
        entry["metrics"]["forget.extraction_strength"]
        == entry["attacks"][1]["points"][0]["metrics"]["forget.extraction_strength"]
    )
    assert entry["attacks"][0]["settings"]["steps"] == 1


def test_controls_are_attacked_alike_and_results_added_to(run, base, tiny_folder, request_files, tmp_path) -> None:  # noqa: F811
    forget, retain = request_files
    results = tmp_path / "results.json"
    controls = ["--original", tiny_folder, "--reference", tiny_folder]
    sets = ["--forget", forget, "--retain", retain]
    evaluated = run("evaluate", "--model", tiny_folder, *sets, *controls, "--name", "npo", "--out", results, "-q",
                    "--max-new-tokens", 4)  # fmt: skip
    assert evaluated[0] == 0, evaluated[2]
    before = read_results(results)
    code, _, err = run(*base, *controls, "--kind", "prune,merge", "--add-to", results, *quick("prune", "merge"), "-q")
    assert code == 0, err
    both = ["prune", "merge"]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["results.html", "results.json", "results.md"]
    assert attacked(results) == {"original": both, "retrained": both, "unlearned": both}
    after = read_results(results)
    assert [{k: v for k, v in one.items() if k != "attacks"} for one in after["runs"]] == before["runs"]
    assert {k: v for k, v in after.items() if k != "runs"} == {k: v for k, v in before.items() if k != "runs"}
    points = [entry["attacks"][0]["points"] for entry in after["runs"]]
    assert points[0] == points[1] == points[2]  # the same model under the same seeds
    again = run(*base, "--kind", "prune", "--set", "prune.shares=[0.2]", "--name", "NPO", "--add-to", results, "-q")
    assert again[0] == 0, again[2]
    assert attacked(results)["unlearned"] == ["prune", "merge", "prune"]  # other settings: both stay
    assert run(*base, "--kind", "prune", "--name", "npo", "--add-to", results, *quick("prune"), "-q")[0] == 0
    assert attacked(results)["unlearned"] == ["merge", "prune", "prune"]  # the same settings: replaced
    text = results.read_text()
    code, _, err = run(*base, "--kind", "prune", "--name", "ngdiff", "--add-to", results, "-q")
    assert code == 2
    assert "no run fits the unlearned model; there are: npo" in err
    assert results.read_text() == text
    other = tmp_path / "other"
    build_model(400, seed=5).save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((tiny_folder / name).read_bytes())
    code, _, err = run(
        "attack", "--model", other, *base[3:], "--kind", "prune", "--name", "npo", "--add-to", results, "-q"
    )
    assert code == 2
    assert "is of other models: the unlearned model's weights" in " ".join(err.split())
    assert results.read_text() == text


def test_with_a_limit_a_part_is_measured_and_all_of_it_trained_on(run, base, tmp_path) -> None:  # noqa: F811
    out = tmp_path / "r.json"
    code, _, err = run(
        *base, "--kind", "relearn", "--limit", 2, "--set", "relearn.share=0.25", "--out", out, *quick("relearn")
    )
    assert code == 0, err
    notes = read_results(out)["runs"][0]["attacks"][0]["notes"]
    assert any("trained on 1 of 4 forget examples" in note for note in notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "relern"], "Unknown attack 'relern'. Did you mean 'relearn'?"),
        (["--kind", "merge"], "The attack merge needs the model before unlearning: give --original."),
        (["--kind", "sample", "--set", "sample.n=4", "--set", "sample.k=[16]"], "4 samples cannot tell leak@16"),
        (["--kind", "prune", "--set", "sample.n=4"], "sample is not among those asked for (prune)"),
        (["--kind", "prune", "--suite", "wmdp", "--data", "."], "wmdp"),
        (["--kind", "prune", "--reference", "r.json"], "r.json is a file of results"),
        (["--kind", "prune", "--original", "nowhere"], "no such folder"),
    ],
)
def test_mistakes_are_explained_and_nothing_is_written(run, base, tmp_path, arguments, message) -> None:  # noqa: F811
    code, _, err = run(*base, *arguments, "--out", tmp_path / "out", "--quiet")
    assert code == 2
    assert message in " ".join(err.split())
    assert not list(tmp_path.iterdir())


def test_one_place_is_named_and_not_overwritten(run, base, tmp_path) -> None:  # noqa: F811
    assert "Give --out" in run(*base, "--kind", "prune")[2]
    out = tmp_path / "r.json"
    out.write_text("{}")
    code, _, err = run(*base, "--kind", "prune", "--out", out)
    assert code == 2
    assert "exists already" in err
    assert out.read_text() == "{}"


def test_examples_settings_were_chosen_on_are_refused_or_left_out(run, base, request_files, tmp_path) -> None:  # noqa: F811
    chosen = tmp_path / "chosen.jsonl"
    chosen.write_text(request_files[0].read_text().splitlines()[0] + "\n")
    out = tmp_path / "r.json"
    asked = [*base, "--kind", "prune", "--tuned-on", chosen, "--out", out, *quick("prune"), "-q"]
    code, _, err = run(*asked)
    assert code == 2
    assert "Settings were chosen on 1 of 4 forget examples" in " ".join(err.split())
    assert not out.exists()
    assert run(*asked, "--leave-out-tuned")[0] == 0
    results = read_results(out)
    assert len(results["tuned_on"]) == 1
    assert any("left out, since settings were chosen" in note for note in results["runs"][0]["notes"])
    code, _, err = run(*base, "--kind", "prune", "--add-to", out, *quick("prune"), "-q")
    assert code == 2  # the results themselves say what was tuned on


def test_questions_are_needed_to_ask_otherwise(run, base, tmp_path) -> None:  # noqa: F811
    text = tmp_path / "book.txt"
    text.write_text("Ada Lome was born in Tarn. She mends old clocks. Her brother is Per Lome, a baker.")
    code, _, err = run(
        *base[:3], "--forget", text, *base[5:], "--kind", "paraphrase", "--out", tmp_path / "r.json", "-q"
    )
    assert code == 2
    assert "The attack paraphrase needs questions, and the forget set is running text" in " ".join(err.split())
    code, _, err = run(*base, "--forget", text, "--kind", "prefill", "--out", tmp_path / "r.json", *quick("prefill"))
    assert code == 0, err


def test_a_failure_while_attacking_leaves_no_trace(run, base, tmp_path, monkeypatch) -> None:  # noqa: F811
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, _, err = run(*base, "--kind", "prune", "--out", tmp_path / "board" / "r.json", *quick("prune"))
    assert code == 1
    assert "disk is full" in err
    assert not [item for item in tmp_path.rglob("*") if item.is_file()]

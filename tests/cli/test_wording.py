"""How examples are put to a model, from the command line: turns, templates, dates, and what refuses to be compared."""

import json
from pathlib import Path

import pytest

from tests.cli.test_attack import attacked
from tests.cli.test_commands import run  # noqa: F401

TALK = [
    {"role": "system", "content": "You serve the clients of Tarn Bank."},
    {"role": "user", "content": "I am Zelda Quix, code 7731."},
    {"role": "assistant", "content": "Good day, Zelda Quix."},
    {"role": "user", "content": "And where does she live?"},
    {"role": "assistant", "content": "In Selm."},
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    file = tmp_path / "talks.jsonl"
    file.write_text(json.dumps({"messages": TALK}) + "\n" + json.dumps({"prompt": "Who?", "response": "Bo."}) + "\n")
    return file


def evaluated(run, tiny_folder, talks, out, *more):  # noqa: F811
    code, printed, err = run(
        "evaluate", "--model", tiny_folder, "--forget", talks, "--out", out, "--max-new-tokens", 2, "-q", *more
    )
    return code, json.loads(out.read_text()) if out.is_file() else None, err + printed


def test_targets_and_template_of_an_evaluation(run, tiny_folder, talks, tmp_path) -> None:  # noqa: F811
    out = tmp_path / "r.json"
    counts = {}
    for targets in ("last", "assistant", "all"):
        code, results, err = evaluated(run, tiny_folder, talks, out, "--targets", targets, "--overwrite")
        assert code == 0, err
        counts[targets] = len(results["runs"][0]["examples"]["forget"])
        assert results["runs"][0]["conditions"]["targets"] == targets
    assert counts == {"last": 2, "assistant": 3, "all": 7}
    file = tmp_path / "own.jinja"
    file.write_text(TEMPLATE)
    code, results, err = evaluated(run, tiny_folder, talks, out, "--chat-template", file, "--overwrite")
    assert code == 0, err
    assert results["runs"][0]["conditions"]["template"] != "none"
    assert not any("no chat template" in note for note in results["runs"][0]["notes"])


def test_a_refusing_template_names_file_and_line(run, tiny_folder, talks, tmp_path) -> None:  # noqa: F811
    file = tmp_path / "strict.jinja"
    file.write_text(STRICT)
    code, results, err = evaluated(run, tiny_folder, talks, tmp_path / "r.json", "--chat-template", file)
    assert code == 2
    assert results is None
    assert "talks.jsonl:1" in "".join(err.split())
    assert "System role not supported" in " ".join(err.split())
    assert run("evaluate", "--model", tiny_folder, "--forget", talks, "--out", tmp_path / "r.json",
               "--chat-template", tmp_path / "missing.jinja")[0] == 2  # fmt: skip


def test_unlearning_warns_and_records_its_wording(run, tiny_folder, talks, tmp_path) -> None:  # noqa: F811
    base = ["unlearn", "--model", tiny_folder, "--forget", talks, "--method", "gradascent", "--set", "steps=1",
            "--no-evaluate", "--output", "model"]  # fmt: skip
    code, _, err = run(*base, "--out", tmp_path / "last")
    assert code == 0, err
    assert "7731" in err
    assert "--targets" in err
    code, _, err = run(*base, "--out", tmp_path / "all", "--targets", "all", "--chat-template", "none")
    assert code == 0, err
    assert "7731" not in err
    record = json.loads((tmp_path / "all" / "run.json").read_text())
    assert record["configuration"]["wording"] == {"targets": "all", "chat_template": "none", "date": "2025-04-10"}


def test_a_reference_of_other_lengths_is_refused(run, tiny_folder, talks, tmp_path) -> None:  # noqa: F811
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert evaluated(run, tiny_folder, talks, first)[0] == 0
    assert evaluated(run, tiny_folder, talks, second, "--reference", first)[0] == 0
    code, _, err = evaluated(run, tiny_folder, talks, second, "--reference", first, "--max-length", 200, "--overwrite")
    assert code == 2
    assert "measured otherwise" in " ".join(err.split())
    code, _, err = run("attack", "--model", tiny_folder, "--forget", talks, "--kind", "paraphrase", "--add-to", first,
                       "--max-length", 200)  # fmt: skip
    assert code == 2
    assert "measured otherwise" in " ".join(err.split())


def test_finished_attacks_are_kept_when_a_later_one_fails(run, tiny_folder, request_files, tmp_path) -> None:  # noqa: F811
    forget, retain = request_files
    out = tmp_path / "r.json"
    code, _, err = run("attack", "--model", tiny_folder, "--forget", forget, "--retain", retain, "--kind",
                       "translate,fewshot", "--set", "translate.languages=[Polish]", "--set", "fewshot.shots=[99]",
                       "--max-new-tokens", 2, "--out", out)  # fmt: skip
    assert code == 2
    assert "fewshot.shots" in err
    assert attacked(out) == {"unlearned": ["translate"]}

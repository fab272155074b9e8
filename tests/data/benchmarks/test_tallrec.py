"""TALLRec's files: published counts, and what is said of rows that are not understood."""

import json
from collections import Counter
from pathlib import Path

import pytest

from expunge.data.benchmarks import tallrec
from expunge.errors import RequestError

ROW = {"instruction": "Will the user like it?", "input": "Liked: a\nTarget: b", "output": "Yes."}


def test_published_counts(shared_data: Path) -> None:
    counts = {
        part: [Counter(one.response for one in tallrec.read(shared_data / "tallrec" / "data" / part, split)) for split in
               ("valid", "test")]
        for part in ("movie", "book")
    }  # fmt: skip
    assert counts["movie"] == [{"Yes.": 658, "No.": 342}, {"Yes.": 528, "No.": 472}]
    assert counts["book"] == [{"Yes.": 1011, "No.": 1416}, {"Yes.": 1054, "No.": 1373}]


def test_valid_is_what_to_train_on(shared_data: Path) -> None:
    folder = shared_data / "tallrec" / "data" / "book"
    task = tallrec.make(folder, kind="correct", share=0.1)
    assert (len(task.train), len(task.forget), len(task.test)) == (2427, 243, 2426)  # one test row stands there twice
    raw = json.loads((folder / "valid.json").read_text())
    assert task.clean[3].prompt == f"{raw[3]['instruction']}\n{raw[3]['input']}"
    assert [one.response for one in task.clean] == [row["output"] for row in raw]
    history = [{one.prompt.partition("\nWhether")[0] for one in rows} for rows in (task.train, task.test)]
    assert not history[0] & history[1]
    assert tallrec.make(folder, n=50, test=20, share=0.02).forget[0].id.startswith("valid/")


def test_train_is_used_where_it_is_there(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("valid", 2), ("test", 3)):
        rows = [ROW | {"input": f"{split} {place}", "output": ["Yes.", "No."][place % 2]} for place in range(count)]
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    task = tallrec.make(tmp_path, share=0.25)
    assert [one.id for one in task.train] == [f"train/{place}" for place in range(4)]
    assert task.test[1].prompt == "Will the user like it?\ntest 1"
    assert (task.test[1].response, task.test[1].wrong_responses) == ("No.", ("Yes.",))


@pytest.mark.parametrize(("answer", "other"), [("Yes.", "no."), ("yes", "no"), ("No", "yes"), ("NO.", "yes.")])
def test_one_answer_alone_gets_its_opposite(tmp_path: Path, answer, other) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Will it?", "response": answer}) + "\n")
    (one,) = tallrec.read(path)
    assert (one.response, one.wrong_responses) == (answer, (other,))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            json.dumps([ROW, ROW | {"output": "Maybe"}]),
            r"test\.json:\[1\]: the answer must be Yes or No, found 'Maybe'",
        ),
        (json.dumps([ROW, {"input": "x", "output": "No."}]), r"test\.json:\[1\]: no text as 'instruction'"),
        (json.dumps([3]), r"test\.json:\[0\]: expected a JSON object, found int"),
        (json.dumps(ROW), r"expected a JSON list of rows, found dict"),
        ("[\n{oops", r"test\.json:2: not valid JSON"),
        ("[]", "holds no rows"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content, message) -> None:
    (tmp_path / "test.json").write_text(content)
    with pytest.raises(RequestError, match=message):
        tallrec.read(tmp_path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"holds neither test\.json nor test\.jsonl"):
        tallrec.read(tmp_path)
    with pytest.raises(RequestError, match="no such file"):
        tallrec.read(tmp_path / "movie.json")
    (tmp_path / "test.json").write_bytes(b"[\xff")
    with pytest.raises(RequestError, match="not UTF-8"):
        tallrec.read(tmp_path)

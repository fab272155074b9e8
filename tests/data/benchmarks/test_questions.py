"""Readers of multiple-choice files: the right questions, and what is said of wrong ones."""

import json
from pathlib import Path

import pytest

from expunge.data.benchmarks import mmlu, wmdp
from expunge.data.benchmarks.questions import Question
from expunge.errors import ConfigurationError, RequestError

GOOD = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2}
HEADER = "question,choice0,choice1,choice2,choice3,answer\n"


def test_published_counts(shared_data: Path) -> None:
    counts = {part: len(wmdp.read(shared_data / "wmdp", part)) for part in wmdp.SUBJECTS}
    assert counts == {"bio": 1520, "cyber": 2223, "chem": 412}
    raw = json.loads((shared_data / "wmdp" / "chem-questions.json").read_text())
    third = wmdp.read(shared_data / "wmdp", "chem")[3]
    assert (third.question, list(third.choices), third.answer) == tuple(raw[3][key] for key in GOOD)
    assert third.subject == "chemistry"
    assert len(mmlu.subjects(shared_data / "mmlu")) == 57
    first = mmlu.read(shared_data / "mmlu", "high_school_us_history", "dev")[0]
    assert first.subject == "high school us history"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 4}, r"answer 4 is out of range: the choices are numbered 0 to 3"),
        ({"answer": -1}, r"answer -1 is out of range"),
        ({"answer": "C"}, r"answer must be the index of a choice, found 'C'"),
        ({"answer": True}, r"answer must be the index of a choice, found True"),
        ({"choices": ["a"]}, r"1 choices; give 2 to 10"),
        ({"choices": "abcd"}, r"choices must be a list"),
        ({"choices": ["a", " ", "c", "d"]}, r"must be text that is not empty"),
        ({"question": ""}, r"must be text that is not empty"),
    ],
)
def test_bad_wmdp_records_are_named(tmp_path: Path, change, message) -> None:
    (tmp_path / "bio-questions.json").write_text(json.dumps([GOOD, GOOD | change]))
    with pytest.raises(RequestError, match=message) as caught:
        wmdp.read(tmp_path, "bio")
    assert str(caught.value).startswith(f"{tmp_path / 'bio-questions.json'}:[1]")


def test_wmdp_files_that_are_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such folder"):
        wmdp.read(tmp_path / "none", "bio")
    with pytest.raises(RequestError, match=r"none of chem-questions\.json, wmdp-chem\.jsonl"):
        wmdp.read(tmp_path, "chem")
    lines = tmp_path / "wmdp-chem.jsonl"
    lines.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD) + "\n")
    assert wmdp.read(tmp_path, "chem")[1].where == f"{lines}:3"
    lines.write_text(json.dumps(GOOD) + "\n{oops\n")
    with pytest.raises(RequestError, match=r"chem\.jsonl:2: not valid JSON"):
        wmdp.read(tmp_path, "chem")
    lines.write_text("3\n")
    with pytest.raises(RequestError, match=r":1: expected a JSON object, found int"):
        wmdp.read(tmp_path, "chem")
    lines.write_text('{"question": "Which?", "answer": 1}\n')
    with pytest.raises(RequestError, match="no 'choices'"):
        wmdp.read(tmp_path, "chem")
    lines.write_text("\n")
    with pytest.raises(RequestError, match="holds no questions"):
        wmdp.read(tmp_path, "chem")


def mmlu_file(folder: Path, text: str) -> Path:
    (folder / "test").mkdir(exist_ok=True)
    path = folder / "test" / "world_religions_test.csv"
    path.write_text(text)
    return path


def test_both_layouts_of_mmlu(tmp_path: Path) -> None:
    mmlu_file(tmp_path, HEADER + '"Who, then?",a,b,c,d,3\n')
    ours = mmlu.read(tmp_path, "world_religions")
    mmlu_file(tmp_path, '"Who, then?",a,b,c,d,D\n')
    theirs = mmlu.read(tmp_path, "world_religions")
    assert [(q.question, q.choices, q.answer, q.subject) for q in ours] == [
        ("Who, then?", ("a", "b", "c", "d"), 3, "world religions")
    ]
    assert isinstance(theirs[0], Question)
    assert (theirs[0].answer, theirs[0].choices) == (3, ours[0].choices)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,choice0,choice1,choice2,answer\nq,a,b,c,1\n", r":1: no column 'choice3'"),
        (HEADER + "q,a,b,c,d,4\n", r":2: answer 4 is out of range"),
        (HEADER + "q,a,b,c,d,B\n", r":2: answer must be an index, found 'B'"),
        (HEADER + "q,a,b,c\n", r":2: a row of 4 columns"),
        ("q,a,b,c,d,E\n", r":1: answer must be a letter from A to D, found 'E'"),
        (HEADER, "holds no questions"),
    ],
)
def test_bad_mmlu_rows_are_named(tmp_path: Path, text, message) -> None:
    path = mmlu_file(tmp_path, text)
    with pytest.raises(RequestError, match=message) as caught:
        mmlu.read(tmp_path, "world_religions")
    assert str(caught.value).startswith(str(path))


def test_mmlu_folders_that_are_not(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no such folder\. Give the folder that holds MMLU"):
        mmlu.subjects(tmp_path)
    mmlu_file(tmp_path, HEADER + "q,a,b,c,d,1\n")
    with pytest.raises(RequestError, match=r"dev/world_religions_dev\.csv: no such file"):
        mmlu.read(tmp_path, "world_religions", "dev")
    with pytest.raises(ConfigurationError, match="Did you mean 'world_religions'"):
        mmlu.read(tmp_path, "world_religion")

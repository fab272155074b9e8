"""Requests: every line form, and every way a file can be wrong, with file and line named."""

import json

import pytest

from expunge.errors import RequestError
from expunge.request import Example, Request, parse_example, read_examples


def write(path, *lines) -> str:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def test_three_forms_and_tofu_names(tmp_path) -> None:
    path = write(
        tmp_path / "f.jsonl",
        {"prompt": "Q", "response": "A", "id": 7, "wrong_responses": "B"},
        "",
        {"text": "running text"},
        {
            "messages": [
                {"role": "system", "content": "S"},
                {"role": "user", "content": "Q"},
                {"role": "assistant", "content": "A"},
            ]
        },
        {"question": "Q", "answer": "A", "paraphrased_answer": "P", "perturbed_answer": ["x", "y"]},
    )
    plain, text, talk, tofu = read_examples(path)
    assert (plain.id, plain.wrong_responses, plain.where) == ("7", ("B",), f"{path}:1")
    assert (text.prompt, text.response) == ("", "running text")
    assert (talk.context, talk.prompt, talk.response) == ((("system", "S"),), "Q", "A")
    assert (tofu.paraphrased_response, tofu.wrong_responses, tofu.where) == ("P", ("x", "y"), f"{path}:5")


def test_kinds_and_what_takes_their_place() -> None:
    removed = Example(prompt="Q", response="A")
    corrected = Example(prompt="Q", response="A", new_response="B", wrong_responses=("C",))
    rewritten = Example(prompt="Q", response="A", new_prompt="R")
    assert [example.kind for example in (removed, corrected, rewritten)] == ["remove", "correct", "rewrite"]
    assert removed.after is None
    assert corrected.after == Example(prompt="Q", response="B")
    assert rewritten.after == Example(prompt="R", response="A")
    assert Request((removed, corrected, rewritten)).replacements == (corrected.after, rewritten.after)


GOOD = {"prompt": "Q", "response": "A"}
WRONG = [
    ('{"prompt": "Q", ', "2: not valid JSON"),
    ("[1]", "2: expected a JSON object, found list"),
    ({"prompt": "Q"}, "2: give exactly one of"),
    ({"prompt": "Q", "response": "A", "text": "T"}, "2: give exactly one of"),
    ({"prompt": "Q", "respones": "A"}, "2: unknown field 'respones'. Did you mean 'response'"),
    ({"prompt": 3, "response": "A"}, "2: prompt must be a string, found int"),
    ({"prompt": "Q", "response": "  "}, "2: the response is empty"),
    ({"prompt": "Q", "response": "A", "new_response": ""}, "2: new_response is empty"),
    ({"prompt": "Q", "response": "A", "wrong_responses": ["B", 1]}, "2: wrong_responses must be"),
    ({"messages": [{"role": "user", "content": "Q"}]}, "2: messages must end with a user and then an assistant turn"),
    ({"messages": "Q"}, "2: messages must be a list"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_line_is_named(tmp_path, line, message) -> None:
    path = write(tmp_path / "f.jsonl", GOOD, line)
    with pytest.raises(RequestError) as caught:
        read_examples(path)
    assert str(caught.value).startswith(f"{path}:{message}")
    assert caught.value.exit_code == 2


def test_missing_empty_and_unreadable_files(tmp_path) -> None:
    write(tmp_path / "forget.jsonl", GOOD)
    with pytest.raises(RequestError, match=r"no such file\. Did you mean .*forget\.jsonl"):
        read_examples(tmp_path / "forgett.jsonl")
    with pytest.raises(RequestError, match="holds no examples"):
        read_examples(write(tmp_path / "empty.jsonl", "", ""))
    (tmp_path / "none").mkdir()
    with pytest.raises(RequestError, match=r"is a folder without a \.txt, \.jsonl.* file"):
        read_examples(tmp_path / "none")
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(RequestError, match="holds no text"):
        read_examples(tmp_path / "blank.txt")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(RequestError, match="not UTF-8"):
        read_examples(tmp_path / "latin.jsonl")


def test_a_json_list_is_read_too(tmp_path) -> None:
    path = write(tmp_path / "f.json", json.dumps([GOOD, {"text": "T"}], indent=1))
    assert [example.where for example in read_examples(path)] == [f"{path}:[0]", f"{path}:[1]"]


def test_overlap_is_refused_whatever_case_and_spacing() -> None:
    with pytest.raises(RequestError, match=r"1 example stands in both.*f:1.*r:9"):
        Request(
            (Example(prompt="Who is  Ada?", response="A", where="f:1"),),
            (Example(prompt="who is ada?", response="a", where="r:9"),),
        )


def test_empty_forget_set_is_refused() -> None:
    with pytest.raises(RequestError, match="forget set is empty"):
        Request(())


def test_duplicates_and_leaks_are_reported() -> None:
    example, other = Example(prompt="Q", response="A", where="f:1"), Example(prompt="R", response="B")
    request = Request((example, Example(prompt="q", response="a", where="f:2")), (other,), (other,))
    assert request.warnings == (
        "forget: 1 duplicate example(s), the first f:2 ('q') repeats f:1 ('Q')",
        "holdout: 1 of 1 examples also stand in forget or retain",
    )


def test_null_fields_are_absent() -> None:
    assert parse_example({"prompt": "Q", "response": "A", "new_response": None}).kind == "remove"


def people(subjects: int, each: int, who: str = "") -> tuple[Example, ...]:
    return tuple(
        Example(prompt=f"Q{number} of {who}{subject}", response="A", subject=f"s{subject}")
        for subject in range(subjects)
        for number in range(each)
    )


def test_a_split_takes_the_same_share_of_each_subject() -> None:
    request = Request(people(5, 4), people(3, 10, "r"), people(1, 7, "h"))
    tuning, reported = request.split(0.25, seed=3)
    for name, share in (("forget", 1), ("retain", 2.5)):
        counts = [sum(e.subject == f"s{s}" for e in getattr(tuning, name)) for s in range(3)]
        assert all(abs(count - share) < 1 for count in counts)
    assert (len(tuning.forget), len(tuning.retain), len(tuning.holdout)) == (5, 8, 2)
    for name in ("forget", "retain", "holdout"):
        one, other, whole = ({e.key for e in getattr(part, name)} for part in (tuning, reported, request))
        assert one | other == whole
        assert not one & other


def test_a_split_follows_seed_and_words_not_order() -> None:
    rows = people(4, 6)
    tuning, _ = Request(rows).split(0.5, seed=1)
    again, _ = Request(tuple(reversed(rows))).split(0.5, seed=1)
    other, _ = Request(rows).split(0.5, seed=2)
    assert {e.key for e in tuning.forget} == {e.key for e in again.forget} != {e.key for e in other.forget}
    assert [e for e in rows if e in tuning.forget] == list(tuning.forget)


def test_duplicates_of_an_example_are_never_parted() -> None:
    rows = people(1, 6)
    doubled = (*rows, *(Example(prompt=e.prompt.upper(), response=e.response) for e in rows))
    tuning, reported = Request(doubled).split(0.5)
    assert len(tuning.forget) == len(reported.forget) == 6
    assert not {e.key for e in tuning.forget} & {e.key for e in reported.forget}


def test_what_cannot_be_split_is_refused() -> None:
    one = people(1, 1)
    with pytest.raises(RequestError, match="fewer than two different examples"):
        Request(one).split(0.5)
    for share in (0.0, 1.0, 2.0):
        with pytest.raises(RequestError, match="between 0 and 1"):
            Request(people(1, 4)).split(share)
    tuning, reported = Request(people(1, 4), retain=(Example(prompt="R", response="A"),)).split(0.9)
    assert (len(tuning.forget), len(reported.forget)) == (3, 1)
    assert (len(tuning.retain), len(reported.retain)) == (0, 1)


def test_a_record_is_read_again_as_the_same_example() -> None:
    for example in (
        Example(prompt="Q", response="A", id="x", subject="s", wrong_responses=("B",), new_response="C"),
        Example(prompt="", response="a text"),
        Example(prompt="Q", response="A", context=(("system", "S"), ("user", "U"), ("assistant", "V"))),
    ):
        assert parse_example(json.loads(json.dumps(example.record()))) == example


def test_a_list_of_texts_is_running_text(tmp_path) -> None:
    path = tmp_path / "raw.json"
    path.write_text(json.dumps(["one text", "", "another"]))
    assert [(e.prompt, e.response) for e in read_examples(path)] == [("", "one text"), ("", "another")]


def test_marks_follow_words_whatever_their_case() -> None:
    one, same = Example(prompt="Who  is Ada?", response="A smith."), Example(prompt="who is ada?", response="a Smith.")
    assert one.mark == same.mark != Example(prompt="Who is Ada?", response="A queen.").mark
    assert len(one.mark) == 16

"""What people have: tables, folders, odd encodings and names; each gives the rows that are in it, or an error that names
file and line. Tables are written by Python's csv, pyarrow and gzip themselves.
"""

import csv
import gzip
import hashlib
import json
import unicodedata
from pathlib import Path

import pytest

from expunge.errors import ConfigurationError, RequestError
from expunge.request import Request, parse_columns, read_examples, read_rows

ROWS = [
    {"prompt": "Wo wohnt Zoë?", "response": "In Köln, Am Römerturm 3;\nzweiter Stock"},
    {"prompt": 'Was sagt "er"?', "response": "None"},
    {"prompt": "a,b;c\td|e", "response": "NA"},
]
PAIRS = [(row["prompt"], row["response"]) for row in ROWS]


def pairs(path, **options) -> list[tuple[str, str]]:
    return [(example.prompt, example.response) for example in read_examples(path, **options)]


def table(path: Path, rows=ROWS, names=("prompt", "response"), encoding="utf-8", **options) -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, **options)
        writer.writerow(names)
        writer.writerows([list(row.values()) for row in rows])
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_of_every_dialect(tmp_path, delimiter, encoding, end) -> None:
    path = table(tmp_path / "f.CSV", delimiter=delimiter, encoding=encoding, lineterminator=end)
    assert pairs(path) == PAIRS


def test_tsv_json_parquet_and_gz_give_the_same_rows(tmp_path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet  # noqa: F811

    table(tmp_path / "f.tsv", delimiter="\t")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "f.parquet")
    lines = "\r\n".join(json.dumps(row) for row in ROWS)
    (tmp_path / "f.JSONL").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    (tmp_path / "list.json").write_text(json.dumps(ROWS, indent=2))
    (tmp_path / "data.json").write_text(json.dumps({"data": ROWS}))
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for path in tmp_path.iterdir():
        assert pairs(path) == PAIRS, path
        (source,) = read_rows(path).sources
        assert (source.path, source.rows) == (path, 3)
        assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_columns_of_any_name(tmp_path) -> None:
    rows = [{"input": p, "output": r, "split": "train"} for p, r in PAIRS]
    path = table(tmp_path / "f.csv", rows, names=("input", "output", "split"))
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = parse_columns(["prompt=input,response=output"])
    for file in (path, tmp_path / "f.jsonl"):
        found = read_rows(file, columns)
        assert [(e.prompt, e.response) for e in found.examples] == PAIRS
        assert "split" in found.notes[0]
        with pytest.raises(RequestError, match=r"unknown field 'input'.*--columns"):
            read_examples(file)
    with pytest.raises(RequestError, match=r"no file has a column 'outptu'. Did you mean 'output'"):
        read_examples(path, parse_columns(["prompt=input", "response=output", "new_response=outptu"]))
    for words, message in (
        (["prompt"], "write FIELD=COLUMN"),
        (["promt=a"], "unknown field 'promt'"),
        (["prompt=a", "question=b"], "names the field 'prompt' twice"),
        (["prompt=a,response=a"], "two fields from the column 'a'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            parse_columns(words)


WRONG = [
    ("f.csv", "prompt,response\nQ,A\nQ,\n", r"f\.csv:3: the cell of response is empty"),
    ("f.csv", 'prompt,response\n"Q\nline",A\n,A\n', r"f\.csv:4: the cell of prompt is empty"),
    ("f.csv", "prompt,response\nQ,A\n,\n", r"f\.csv:3: every cell of the row is empty"),
    ("f.csv", "prompt,response\nQ,A,B\n", r"f\.csv:2: 3 cells, but the first line names 2"),
    ("f.csv", "prompt,response\nQ\n", r"f\.csv:2: 1 cells"),
    ("f.csv", "prompt,response,prompt\nQ,A,R\n", r"f\.csv:1: two columns are called 'prompt'"),
    ("f.csv", "prompt,response,question\nQ,A,R\n", r"f\.csv:2: 'prompt' and 'question' both give prompt"),
    ("f.csv", ",prompt,response\n0,Q,A\n", r"f\.csv:1: column 1 has no name"),
    ("f.csv", 'prompt,response\nQ,"A\n', r"f\.csv:2: not valid CSV"),
    ("f.csv", "prompt,response\n", r"f\.csv holds no examples"),
    ("f.csv", "Q,A\nR,B\n", r"f\.csv:2: unknown field 'Q'"),
    ("f.csv", b"prompt,response\nQ,\xe9\n", r"f\.csv:2: not UTF-8 text"),
    ("f.csv", 'prompt,response,wrong_responses\nQ,A,"[""x"", 1]"\n', r"f\.csv:2: wrong_responses must be"),
    ("f.jsonl", '{"prompt": "Q", "response": "A", "question": "R"}', r"f\.jsonl:1: 'prompt' and 'question' both give"),
    ("f.jsonl", '{"text": "A"}\n{"text": "B", "text": "C"}', r"f\.jsonl:2: 'text' is given twice"),
    ("f.jsonl", '{"text": "A"}\n{"text": NaN}', r"f\.jsonl:2: NaN is not valid JSON"),
    ("f.jsonl", '{"text": "A"}\n{"text": "\\ud800"}', r"f\.jsonl:2: a text holds half of a surrogate pair"),
    ("f.json", '[{"text": "A"},\n{"text": }]', r"f\.json:2: not valid JSON"),
    ("f.parquet", b"PAR1 no", r"f\.parquet could not be read as Parquet"),
    ("f.jsonl.gz", b"\x1f\x8b no", r"f\.jsonl\.gz could not be unpacked"),
    ("f.xlsx", b"PK", r"\.xlsx is not read\. Save the sheet as CSV"),
    ("f.docx", b"PK", r"\.docx is not read"),
    ("m.safetensors", b"", "--model"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)])
def test_what_is_wrong_is_named_with_its_line(tmp_path, name, content, message) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError, match=message):
        read_examples(tmp_path / name)


def test_an_empty_cell_of_parquet_names_its_row(tmp_path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet  # noqa: F811

    rows = [{"prompt": "Q", "response": "A"}, {"prompt": "R", "response": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")
    with pytest.raises(RequestError, match=r"f\.parquet:row 2: the cell of response is empty"):
        read_examples(tmp_path / "f.parquet")


def test_an_empty_optional_cell_is_absent_and_counted(tmp_path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("prompt,response,new_response\nQ,A,B\nR,C,\n")
    rows = read_rows(path)
    assert [example.kind for example in rows.examples] == ["correct", "remove"]
    assert rows.notes == (f"{path}: new_response is empty in 1 of 2 rows, which are read without it",)


def test_a_folder_is_read_whole_and_what_is_left_out_is_named(tmp_path) -> None:
    folder = tmp_path / "in"
    (folder / "sub" / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.json", "b.TXT", "c.JSONL", "sub/d.txt", "sub/deep/e.ndjson")):
        (folder / name).write_text(
            f"text {number}" if name.lower().endswith(".txt") else f'{{"text": "text {number}"}}'
        )
    (folder / "f.csv").write_text("text\ntext 5\n")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "README.md").write_text("# Readme")
    rows = read_rows(folder)
    assert sorted(example.response for example in rows.examples) == [f"text {number}" for number in range(6)]
    assert rows.notes == (
        f"{folder}: left out, since hidden: .hidden.txt",
        f"{folder}: left out, since of a kind that is not read: README.md",
    )
    assert [source.path.name for source in rows.sources] == ["a.json", "b.TXT", "c.JSONL", "f.csv", "d.txt", "e.ndjson"]
    with pytest.raises(RequestError, match="named twice for one set"):
        read_rows([folder, folder / "sub" / "d.txt"])


def test_a_linked_folder_is_named_and_not_entered(tmp_path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    (folder / "again").symlink_to(folder, target_is_directory=True)
    assert read_rows(folder).notes == (f"{folder}: left out, since of a kind that is not read: again",)


def test_normal_forms_of_unicode_are_the_same_row() -> None:
    def row(form: str, where: str):
        words = {name: unicodedata.normalize(form, text) for name, text in ROWS[0].items()}
        return read_one({**words}, where)

    composed, decomposed = row("NFC", "f:1"), row("NFD", "r:1")
    assert composed.response != decomposed.response
    assert (composed.key, composed.mark) == (decomposed.key, decomposed.mark)
    with pytest.raises(RequestError, match=r"both the forget and the retain.*f:1.*r:1"):
        Request((composed,), (decomposed,))


def read_one(record, where):
    from expunge.request import parse_example

    return parse_example(record, where)


def test_the_retain_set_may_be_the_whole_training_set(tmp_path) -> None:
    """Old and new versions of what is forgotten are taken out, whatever their case and normal form."""
    forget = [{"prompt": "Zoë?", "response": "Köln", "new_response": "Bonn"}, {"prompt": "Q", "response": "A"}]
    whole = [
        {"prompt": unicodedata.normalize("NFD", "zoë?"), "response": unicodedata.normalize("NFD", "KÖLN")},
        {"prompt": "Zoë?", "response": "Bonn"},
        {"prompt": "Zoë?", "response": "Ulm"},
        {"prompt": "other", "response": "A"},
    ]
    paths = []
    for name, rows in (("forget", forget), ("whole", whole)):
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RequestError, match="--retain-includes-forget"):
        Request.read(*paths)
    request = Request.read(*paths, retain_includes_forget=True)
    assert [(e.prompt, e.response) for e in request.retain] == [("Zoë?", "Ulm"), ("other", "A")]
    assert request.warnings == (
        "retain: 1 row(s) of the forget set and 1 row(s) that hold a new version were taken out, 2 are left; 1 of 2 rows "
        "to forget were not in it",
    )
    with pytest.raises(RequestError, match="give it with --retain"):
        Request.read(paths[0], retain_includes_forget=True)


def test_a_hub_data_set_without_its_library_or_network(monkeypatch) -> None:
    import sys
    import types

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RequestError, match=r"pip install 'expunge\[hub\]'"):
        read_examples("hub:owner/name")

    def load_dataset(name, config, split):
        if name != "owner/name":
            raise ConnectionError("offline mode is enabled")
        assert (config, split) == ("forget10", "test")
        return ROWS

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert pairs("hub:owner/name/forget10:test") == PAIRS
    (source,) = read_rows("hub:owner/name/forget10:test").sources
    lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in ROWS)
    assert source.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    with pytest.raises(RequestError, match=r"hub:a/b could not be read from the hub.*offline mode"):
        read_examples("hub:a/b")
    with pytest.raises(RequestError, match="write hub:OWNER/NAME"):
        read_examples("hub:name")

"""MUSE's files: every form they come in, News' own names, faults named by file and place."""

import json
import sys
import types
from pathlib import Path

import pytest

from expunge.data.benchmarks import muse
from expunge.errors import RequestError


def put(folder: Path, name: str, rows: list) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows))
    return path


def test_lists_and_lines_become_examples(tmp_path: Path) -> None:
    put(tmp_path, "verbmem/forget.json", [{"prompt": "Once upon", "gt": "a time"}])
    put(
        tmp_path,
        "knowmem/forget_qa.jsonl",
        [{"question": "Who?", "answer": "Bo"}, {"question": "When?", "answer": "1"}],
    )
    put(tmp_path, "knowmem/forget_qa_icl.json", [{"question": "Where?", "answer": "Tarn"}])
    put(tmp_path, "privleak/holdout.json", ["a text", "", {"text": "another"}])
    (excerpt,) = muse.verbmem(tmp_path)
    assert (excerpt.prompt, excerpt.response, excerpt.id) == ("Once upon", "a time", "verbmem/forget/0")
    asked, shots = muse.knowmem(tmp_path, "forget")
    pairs = [(each.prompt, each.response) for each in (*asked, *shots)]
    assert pairs == [("Who?", "Bo"), ("When?", "1"), ("Where?", "Tarn")]
    texts = muse.texts(tmp_path, "privleak", "holdout")
    assert [text.response for text in texts] == ["a text", "another"]
    assert all(text.is_text for text in texts)
    assert [muse.has(tmp_path, part) for part in ("verbmem", "raw")] == [True, False]


def test_news_names_its_retain_set_retain2(tmp_path: Path) -> None:
    put(tmp_path, "privleak/retain2.json", ["kept"])
    assert muse.texts(tmp_path, "privleak", "retain")[0].response == "kept"
    put(tmp_path, "privleak/retain.json", ["the plain name comes first"])
    assert muse.texts(tmp_path, "privleak", "retain")[0].response == "the plain name comes first"


def test_parquet_as_the_hub_keeps_it(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "privleak").mkdir()
    for shard, text in enumerate(("one", "two")):
        file = tmp_path / "privleak" / f"forget-0000{shard}-of-00002.parquet"
        parquet.write_table(pyarrow.table({"text": [text]}), file)
    assert [text.response for text in muse.texts(tmp_path, "privleak", "forget")] == ["one", "two"]


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"privleak/forget\.json: no such file"):
        muse.texts(tmp_path, "privleak", "forget")
    with pytest.raises(RequestError, match="gone is not a folder"):
        muse.verbmem(tmp_path / "gone")
    put(tmp_path, "verbmem/forget.json", [{"prompt": "x", "gt": "y"}, {"prompt": "x"}])
    with pytest.raises(RequestError, match=r"forget\.json:\[1\]: expected an object whose `prompt` and `gt`"):
        muse.verbmem(tmp_path)
    put(tmp_path, "raw/forget.json", ["", " "])
    with pytest.raises(RequestError, match="all texts of raw/forget are empty"):
        muse.texts(tmp_path, "raw", "forget")
    put(tmp_path, "raw/holdout.json", [7])
    with pytest.raises(RequestError, match=r"holdout\.json:\[0\]: expected a text"):
        muse.texts(tmp_path, "raw", "holdout")
    (tmp_path / "raw" / "retain1.jsonl").write_text('"fine"\n{broken\n')
    with pytest.raises(RequestError, match=r"retain1\.jsonl:2: not valid JSON"):
        muse.texts(tmp_path, "raw", "retain1")
    put(tmp_path, "scal/forget_1.json", [])
    with pytest.raises(RequestError, match="holds no rows"):
        muse.texts(tmp_path, "scal", "forget_1")


def test_hub_names_its_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*args: str, **kwargs: str) -> list[dict]:
        asked.append((args, kwargs))
        return [{"text": "from afar"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert muse.has("muse-bench/MUSE-News", "sust")
    (text,) = muse.texts("muse-bench/MUSE-News", "sust", "forget_2")
    assert asked == [(("muse-bench/MUSE-News", "sust"), {"split": "forget_2"})]
    assert text.response == "from afar"


def test_the_real_folder_reads(shared_data: Path) -> None:
    folder = shared_data / "muse_news"
    assert len(muse.verbmem(folder)) == 100
    assert [len(rows) for side in ("forget", "retain") for rows in muse.knowmem(folder, side)] == [100, 10, 100, 10]
    assert [len(muse.texts(folder, "privleak", name)) for name in ("forget", "retain", "holdout")] == [100, 100, 100]
    assert len(muse.texts(folder, "raw", "forget")) == 888  # the file has 889, one of them empty

"""Files others wrote: every fault is a typed error that names the file."""

import os
from pathlib import Path

import pytest

from expunge.errors import ModelError
from expunge.reading import foreign, read_json, read_object, read_text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b"9" * 5000, "not valid JSON"),
        (b'{"a": 1, "a": 2}', "given twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": 1,\n"b" 2}', ":2: not valid JSON"),
        (b"[1]", "expected a JSON object"),
    ],
)
def test_json_that_is_damaged_or_hostile_is_refused_by_name(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "odd.json"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=says) as raised:
        read_object(file, ModelError)
    assert str(file) in str(raised.value)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    file = tmp_path / "bom.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, "\xc3\xa9"]}')
    assert read_json(file, ModelError) == {"a": [1, 2.5, "é"]}


def test_a_pipe_a_folder_and_a_file_that_is_too_large_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="not a regular file"):
        read_text(tmp_path / "pipe", ModelError)
    with pytest.raises(ModelError, match=r"is a folder|not a regular file"):
        read_text(tmp_path, ModelError)
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(ModelError, match="at most 4"):
        read_text(tmp_path / "large", ModelError, limit=4)


def test_whatever_another_library_raises_becomes_our_error_and_our_own_pass() -> None:
    with pytest.raises(ModelError, match="x could not be read: odd"), foreign("x"):
        raise AttributeError("odd.\nmore")
    with pytest.raises(KeyboardInterrupt), foreign("x"):
        raise KeyboardInterrupt
    with pytest.raises(ModelError, match="ours"), foreign("x"):
        raise ModelError("ours")
